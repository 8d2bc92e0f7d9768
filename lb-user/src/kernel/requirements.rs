//! Whether this process, on this kernel, can load the program at all.

use std::fs;

use anyhow::{Context, Result, bail};
use aya::util::KernelVersion;

/// The oldest kernel whose verifier, helpers and neighbour tables are what the program and the
/// agent need.
const OLDEST: KernelVersion = KernelVersion::new(6, 1, 0);

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` as bits (Linux `include/uapi/linux/capability.h`). The
/// second one, and not only `CAP_BPF`, because maps are opened by their ids.
const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Says in one line what is missing.
pub(super) fn check() -> Result<()> {
    if let Ok(version) = KernelVersion::current()
        && version < OLDEST
    {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        bail!(
            "Linux {} is too old: 6.1 or later is needed",
            release.trim()
        );
    }
    let status = fs::read_to_string("/proc/thread-self/status")
        .context("cannot read /proc/thread-self/status: is /proc mounted?")?;
    if let Some(missing) = missing(&status) {
        bail!("{missing} is missing: run lb-user as root (sudo)");
    }
    Ok(())
}

/// The first capability that a process with this `status` lacks.
fn missing(status: &str) -> Option<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())?;
    NEEDED
        .into_iter()
        .find(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        assert_eq!(missing("CapEff:\t000001ffffffffff\n"), None);
        assert_eq!(
            missing("CapEff:\t0000000000000000\n"),
            Some("CAP_NET_ADMIN")
        );
        assert_eq!(
            missing("CapEff:\t0000000000001000\n"),
            Some("CAP_SYS_ADMIN")
        );
    }
}
