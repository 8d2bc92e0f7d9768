//! Carrying out one step of a plan on the maps.

use anyhow::{Context, Result};
use aya::maps::PerCpuValues;
use lb_common::abi::{Backend, BackendId, Service, ServiceId, Traffic};

use super::{Kernel, tables::gone};
use crate::plan::{Change, Way};

impl Kernel {
    /// Carries out one step of a plan. Each is one write that is whole for any packet, except that
    /// the counters of an id that is given anew are cleared before.
    ///
    /// [`Change::AddAddress`] and [`Change::RemoveAddress`] are no matter of the maps: nothing
    /// happens.
    ///
    /// # Errors
    ///
    /// When the map is full, or the id beyond its size.
    pub fn apply(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::State { backend, state } => {
                let record = Backend {
                    state: *state,
                    ..self.backend(*backend)?
                };
                self.write_backend(*backend, record)
            }
            Change::PutBackend(id, backend) => self.put_backend(*id, *backend),
            Change::PutSlots(id, slots) => self
                .maps
                .put_slots(id.0, slots)
                .with_context(|| format!("cannot write the lookup table of service {}", id.0)),
            Change::PutService(id, service) => self.put_service(*id, *service),
            Change::PutEndpoint(key, endpoint) => self
                .maps
                .endpoints
                .insert(key, endpoint, 0)
                .context("cannot write to the map endpoints: is sizes.endpoints too small?"),
            Change::RemoveEndpoint(key) => gone(self.maps.endpoints.remove(key))
                .context("cannot remove from the map endpoints"),
            Change::RemoveService(id) => self.write_service(*id, Service::default()),
            Change::RemoveSlots(id) => self
                .maps
                .slots_raw
                .delete(&id.0.to_ne_bytes())
                .with_context(|| format!("cannot remove the lookup table of service {}", id.0)),
            Change::RemoveBackend(id) => {
                let left = Backend {
                    generation: self.backend(*id)?.generation,
                    ..Backend::default()
                };
                self.write_backend(*id, left)
            }
            Change::AddAddress(_) | Change::RemoveAddress(_) => Ok(()),
        }
    }

    /// Writes a backend's way; nothing is written if it is so already.
    ///
    /// # Errors
    ///
    /// When the id is beyond the map's size.
    pub fn set_way(&mut self, id: BackendId, way: Way) -> Result<()> {
        let backend = self.backend(id)?;
        if Way::of(&backend) == way {
            return Ok(());
        }
        self.write_backend(id, way.on(backend))
    }

    fn put_backend(&mut self, id: BackendId, backend: Backend) -> Result<()> {
        let present = self.backend(id)?;
        if present.service != backend.service || present.generation != backend.generation {
            let zero = zeroed::<Traffic>()?;
            self.maps
                .be_counters
                .set(id.0, zero, 0)
                .context("cannot clear the counters of a backend")?;
        }
        let is_same = present.service.0 != 0 && present.address == backend.address;
        let way = match Way::of(&backend) {
            way if is_same && way == Way::default() => Way::of(&present),
            way => way,
        };
        self.write_backend(id, way.on(backend))
    }

    fn put_service(&mut self, id: ServiceId, service: Service) -> Result<()> {
        let present = self.maps.services.get(&id.0, 0).with_context(|| {
            format!("cannot read service {}: is sizes.services too small?", id.0)
        })?;
        if present.seed != service.seed || present.mode.0 == 0 {
            let zero = zeroed::<Traffic>()?;
            self.maps
                .svc_counters
                .set(id.0, zero, 0)
                .context("cannot clear the counters of a service")?;
            let zero = zeroed::<u64>()?;
            self.maps
                .rotations
                .set(id.0, zero, 0)
                .context("cannot clear the rotation of a service")?;
        }
        self.write_service(id, service)
    }

    fn backend(&self, id: BackendId) -> Result<Backend> {
        self.maps
            .backends
            .get(&id.0, 0)
            .with_context(|| format!("cannot read backend {}: is sizes.backends too small?", id.0))
    }

    fn write_backend(&mut self, id: BackendId, backend: Backend) -> Result<()> {
        self.maps
            .backends
            .set(id.0, backend, 0)
            .with_context(|| format!("cannot write backend {}", id.0))
    }

    fn write_service(&mut self, id: ServiceId, service: Service) -> Result<()> {
        self.maps
            .services
            .set(id.0, service, 0)
            .with_context(|| format!("cannot write service {}", id.0))
    }
}

/// The zero of every CPU.
pub(super) fn zeroed<T: Default + Copy + aya::Pod>() -> Result<PerCpuValues<T>> {
    let cpus = aya::util::nr_cpus().map_err(|(path, error)| {
        anyhow::Error::new(error).context(format!("cannot read {path}"))
    })?;
    PerCpuValues::try_from(vec![T::default(); cpus]).context("cannot count the CPUs")
}
