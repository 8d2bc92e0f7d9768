//! Counters, summed over the CPUs.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lb_common::abi::{BackendId, InterfaceCounters, ServiceId, Traffic};

use super::Kernel;

impl Kernel {
    /// What came in on every attached interface, by its index and by reason.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn interface_counters(&self) -> Result<BTreeMap<u32, InterfaceCounters>> {
        let mut sums = BTreeMap::new();
        for entry in self.maps.if_counters.iter() {
            let (ifindex, per_cpu) = entry.context("cannot read the map if_counters")?;
            let mut sum = InterfaceCounters::default();
            for counters in per_cpu.iter() {
                for (total, counter) in sum.reasons.iter_mut().zip(&counters.reasons) {
                    *total = total.plus(*counter);
                }
            }
            sums.insert(ifindex, sum);
        }
        Ok(sums)
    }

    /// What a service has carried since its id was given to it.
    ///
    /// # Errors
    ///
    /// When the id is beyond the map's size.
    pub fn service_counters(&self, id: ServiceId) -> Result<Traffic> {
        let per_cpu = self
            .maps
            .svc_counters
            .get(&id.0, 0)
            .with_context(|| format!("cannot read the counters of service {}", id.0))?;
        Ok(sum(&per_cpu))
    }

    /// What a backend has carried since its id was given to it.
    ///
    /// # Errors
    ///
    /// When the id is beyond the map's size.
    pub fn backend_counters(&self, id: BackendId) -> Result<Traffic> {
        let per_cpu = self
            .maps
            .be_counters
            .get(&id.0, 0)
            .with_context(|| format!("cannot read the counters of backend {}", id.0))?;
        Ok(sum(&per_cpu))
    }
}

fn sum(per_cpu: &[Traffic]) -> Traffic {
    per_cpu
        .iter()
        .fold(Traffic::default(), |total, &traffic| total.plus(traffic))
}
