//! The one CPU that everything runs on.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Keeps this process, and with it everything that is measured, on the last CPU it may use: the
/// first takes most of a machine's interrupts. Returns its number.
pub(crate) fn stay_on_one() -> Result<usize> {
    let this = Pid::from_raw(0);
    let may = sched_getaffinity(this)?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|&cpu| may.is_set(cpu).unwrap_or(false))
        .context("no CPU may be used")?;
    let mut one = CpuSet::new();
    one.set(last)?;
    sched_setaffinity(this, &one).context("cannot stay on one CPU")?;
    Ok(last)
}

/// The kernel's thread for softirqs that are too many for the process they interrupt.
pub(crate) struct Softirqs {
    schedstat: PathBuf,
}

impl Softirqs {
    /// The thread of a CPU.
    pub(crate) fn of(cpu: usize) -> Result<Self> {
        let name = format!("ksoftirqd/{cpu}");
        for process in fs::read_dir("/proc")?.flatten() {
            let comm = fs::read_to_string(process.path().join("comm"));
            if comm.is_ok_and(|comm| comm.trim_end() == name) {
                return Ok(Self {
                    schedstat: process.path().join("schedstat"),
                });
            }
        }
        anyhow::bail!(
            "no process {name}: what it does for packets cannot be counted, run this outside of \
             containers"
        )
    }

    /// How long it has run since the machine was started.
    pub(crate) fn ran(&self) -> Result<Duration> {
        let path = self.schedstat.display();
        let text =
            fs::read_to_string(&self.schedstat).with_context(|| format!("cannot read {path}"))?;
        let nanos = text.split_whitespace().next().unwrap_or_default();
        let nanos = nanos
            .parse()
            .with_context(|| format!("{path} begins with {nanos:?}"))?;
        Ok(Duration::from_nanos(nanos))
    }
}
