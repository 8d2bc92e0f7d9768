//! Answers: which commands do tests, demo and bench run, and which Debian packages bring them?
//!
//! Promises: installing them starts no service and asks no question.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Result, bail};

use super::Tool;
use crate::step;

/// A command, the package that brings it, and what runs it.
struct Package {
    command: &'static str,
    name: &'static str,
    purpose: &'static str,
}

const PACKAGES: [Package; 8] = [
    package("ip", "iproute2", "to lay out test networks"),
    package(
        "ethtool",
        "ethtool",
        "to turn off checksum offload of veth senders",
    ),
    package("ping", "iputils-ping", "to test what is not ours"),
    package(
        "nginx",
        "nginx",
        "as the backends of network tests and demo",
    ),
    package("curl", "curl", "as the client of network tests and demo"),
    package(
        "sysctl",
        "procps",
        "to compare kernel settings before and after",
    ),
    package("iperf3", "iperf3", "for bulk transfers in network tests"),
    package(
        "nft",
        "nftables",
        "for rules inside test networks, and as bench's peer",
    ),
];

const fn package(command: &'static str, name: &'static str, purpose: &'static str) -> Package {
    Package {
        command,
        name,
        purpose,
    }
}

/// The commands of [`PACKAGES`].
pub(super) fn tools() -> Vec<Tool> {
    let tool = |package: &Package| Tool {
        name: package.command.to_owned(),
        purpose: package.purpose,
        found: command(package.command)
            .map(|file| file.display().to_string())
            .ok_or_else(|| format!("no such command, package {}", package.name)),
    };
    PACKAGES.iter().map(tool).collect()
}

/// Installs the packages whose commands are missing.
pub(super) fn install_tools() -> Result<()> {
    let absent = PACKAGES
        .iter()
        .filter(|package| command(package.command).is_none());
    let names: Vec<&str> = absent.map(|package| package.name).collect();
    let asleep = if names.contains(&"nginx") {
        Some(Asleep::lull("nginx")?)
    } else {
        None
    };
    let installed = install(&names);
    if let Some(asleep) = asleep {
        asleep.settle()?;
    }
    installed
}

/// Installs packages by name. The package lists are fetched once per run of xtask.
///
/// # Errors
///
/// Fails where there is no apt-get, naming the packages, or with what apt-get says.
pub(super) fn install(names: &[&str]) -> Result<()> {
    refresh(&format!("installing {}", names.join(", ")))?;
    step::run(
        &format!("apt-get install {}", names.join(" ")),
        apt_get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(names),
    )
}

/// Whether the package lists offer every one of `names`.
///
/// # Errors
///
/// Fails where there is no apt-get, or the lists cannot be fetched.
pub(super) fn offers(names: &[&str]) -> Result<bool> {
    if command("apt-get").is_none() {
        return Ok(false);
    }
    refresh("fetching the list of packages")?;
    // Quiet and successful for a name it does not know; a name it cannot install has no candidate.
    let policy = step::read(Command::new("apt-cache").arg("policy").args(names))?;
    Ok(candidates(&policy) == names.len())
}

fn candidates(policy: &str) -> usize {
    let lines = policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "));
    lines.filter(|version| *version != "(none)").count()
}

/// `apt-get update`, the first time it is called.
fn refresh(purpose: &str) -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_some() {
        return Ok(());
    }
    if command("apt-get").is_none() {
        bail!("{purpose} needs Debian's apt-get: install the same with this system's own tools");
    }
    step::become_root_for(purpose)?;
    step::run("apt-get update", apt_get().arg("update"))?;
    DONE.get_or_init(|| ());
    Ok(())
}

/// apt-get as root: asks nothing, waits for another apt-get to finish.
fn apt_get() -> Command {
    let variables = [
        ("DEBIAN_FRONTEND", "noninteractive".to_owned()),
        // sysvinit starts no service in single-user mode.
        ("RUNLEVEL", "1".to_owned()),
    ];
    let mut command = step::as_root("apt-get", &variables);
    command.args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// The file of a command, looked for where root would find it too.
pub(super) fn command(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Keeps a service that is about to be installed from being started, now or at boot.
///
/// Only systemd would start it: sysvinit is told otherwise by [`apt_get`], and without an init
/// system invoke-rc.d starts nothing.
struct Asleep {
    service: &'static str,
}

impl Asleep {
    /// Masks the service before its package is unpacked. The mask is gone after a reboot.
    fn lull(service: &'static str) -> Result<Self> {
        if systemd() {
            step::become_root_for("installing a service without starting it")?;
            systemctl(&["mask", "--runtime", service])?;
        }
        Ok(Self { service })
    }

    /// Leaves the service as an administrator would who does not want it at boot.
    fn settle(self) -> Result<()> {
        if systemd() {
            // Fails where the package could not be installed; that is reported by apt-get.
            let disabled = systemctl(&["disable", self.service]);
            systemctl(&["unmask", "--runtime", self.service])?;
            disabled?;
        }
        Ok(())
    }
}

fn systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    step::read(step::as_root("systemctl", &[]).args(arguments))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_candidate_is_not_offered() {
        let policy = "curl:\n  Installed: (none)\n  Candidate: 7.88.1-10\n  Version table:\n\
                      old:\n  Installed: 1.0\n  Candidate: (none)\n";
        assert_eq!(candidates(policy), 1);
    }

    #[test]
    fn a_command_is_found_as_a_file() {
        assert!(command("sh").is_some());
        assert_eq!(command("no-such-command-anywhere"), None);
    }
}
