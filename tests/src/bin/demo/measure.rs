//! What the packets cost while the demo runs.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use aya::{programs::ProgramInfo, sys::Stats};

use crate::balancer::LoadBalancer;

/// Packets and run time of the program, as the kernel counts them.
pub(crate) struct Measure {
    pin: PathBuf,
    runs: u64,
    time: Duration,
    /// The kernel measures as long as this is open.
    _switch: std::os::fd::OwnedFd,
}

/// What was measured.
pub(crate) struct Cost {
    /// Packets that the program has seen.
    pub(crate) packets: u64,
    /// Its run time, shared among them.
    pub(crate) nanos_per_packet: f64,
}

impl Measure {
    /// Measures from now on.
    pub(crate) fn start(lb: &LoadBalancer) -> Result<Self> {
        let switch = aya::sys::enable_stats(Stats::RunTime)?;
        let pin = lb.pins().join("program");
        let info = ProgramInfo::from_pin(&pin)?;
        Ok(Self {
            pin,
            runs: info.run_count(),
            time: info.run_time(),
            _switch: switch,
        })
    }

    /// What there was since the start.
    pub(crate) fn end(self) -> Result<Cost> {
        let info = ProgramInfo::from_pin(&self.pin)?;
        let packets = info.run_count() - self.runs;
        ensure!(packets > 0, "no packet went through the program");
        let nanos = (info.run_time() - self.time).as_nanos();
        Ok(Cost {
            packets,
            nanos_per_packet: nanos as f64 / packets as f64,
        })
    }
}
