//! The maps that the agent reads and writes, by their types, and reading them back.

use std::{collections::BTreeSet, os::fd::AsFd as _, sync::Arc};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap},
};
use lb_common::abi::{
    Address, Backend, BackendId, Endpoint, EndpointKey, InterfaceCounters, Mode, Service,
    ServiceId, Settings, Traffic,
};
use zerocopy::{FromBytes, IntoBytes as _};

use super::{batch::Batches, shape, syscall::RawMap};
use crate::plan::{Slots, Tables};

/// `BPF_F_INNER_MAP` (Linux 5.10): inner arrays may differ in size.
pub(super) const INNER_MAP: u32 = 0x1000;

/// Every map that the agent uses. Named as in the program.
pub(super) struct Maps {
    pub(super) endpoints: HashMap<MapData, EndpointKey, Endpoint>,
    pub(super) services: Array<MapData, Service>,
    pub(super) backends: Array<MapData, Backend>,
    pub(super) slots: ArrayOfMaps<MapData, MapData>,
    /// The same map as `slots`, to delete from.
    pub(super) slots_raw: RawMap,
    pub(super) locals: HashMap<MapData, Address, u32>,
    pub(super) settings: Array<MapData, Settings>,
    pub(super) rotations: PerCpuArray<MapData, u64>,
    pub(super) if_counters: PerCpuHashMap<MapData, u32, InterfaceCounters>,
    /// The same map as `if_counters`, to delete from.
    pub(super) if_counters_raw: RawMap,
    pub(super) svc_counters: PerCpuArray<MapData, Traffic>,
    pub(super) be_counters: PerCpuArray<MapData, Traffic>,
}

impl Maps {
    /// Takes the maps out of what was loaded.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let Map::ArrayOfMaps(slots) = map(ebpf, "slots")? else {
            return Err(anyhow!("the map slots is no array of maps"));
        };
        let slots_raw = RawMap::duplicate(slots.fd().as_fd())?;
        let Map::PerCpuHashMap(if_counters) = map(ebpf, "if_counters")? else {
            return Err(anyhow!("the map if_counters is no per-CPU hash map"));
        };
        let if_counters_raw = RawMap::duplicate(if_counters.fd().as_fd())?;
        Ok(Self {
            endpoints: map(ebpf, "endpoints")?.try_into().context("endpoints")?,
            services: map(ebpf, "services")?.try_into().context("services")?,
            backends: map(ebpf, "backends")?.try_into().context("backends")?,
            slots: Map::ArrayOfMaps(slots).try_into().context("slots")?,
            slots_raw,
            locals: map(ebpf, "locals")?.try_into().context("locals")?,
            settings: map(ebpf, "settings")?.try_into().context("settings")?,
            rotations: map(ebpf, "rotations")?.try_into().context("rotations")?,
            if_counters: Map::PerCpuHashMap(if_counters)
                .try_into()
                .context("if_counters")?,
            if_counters_raw,
            svc_counters: map(ebpf, "svc_counters")?
                .try_into()
                .context("svc_counters")?,
            be_counters: map(ebpf, "be_counters")?
                .try_into()
                .context("be_counters")?,
        })
    }

    /// What the maps hold, as far as a plan is concerned.
    pub(super) fn read(&self) -> Result<Tables> {
        let mut tables = Tables::default();
        for entry in self.endpoints.iter() {
            let (key, endpoint) = entry.context("cannot read the map endpoints")?;
            tables.endpoints.insert(key, endpoint);
        }
        for (id, service) in (0..).zip(self.services.iter()) {
            let service = service.context("cannot read the map services")?;
            if service.mode != Mode::default() {
                tables.services.insert(ServiceId(id), service);
            }
        }
        for (id, backend) in (0..).zip(self.backends.iter()) {
            let backend = backend.context("cannot read the map backends")?;
            if backend != Backend::default() {
                tables.backends.insert(BackendId(id), backend);
            }
        }
        for id in 0..self.slots.len() {
            if let Some(slots) = self.read_slots(id)? {
                tables.slots.insert(ServiceId(id), slots);
            }
        }
        Ok(tables)
    }

    /// The lookup table of one service, if it has one.
    fn read_slots(&self, service: u32) -> Result<Option<Slots>> {
        let inner = match self.slots.get(&service, 0) {
            Ok(inner) => inner,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot read the slots of service {service}"));
            }
        };
        let raw = RawMap::duplicate(inner.fd().as_fd())?;
        let mut slots = Vec::with_capacity(raw.shape().entries as usize);
        let mut batches = Batches::new(&raw);
        while let Some(batch) = batches.next()? {
            let cells = batch.values.chunks_exact(size_of::<BackendId>());
            slots.extend(cells.filter_map(|cell| BackendId::read_from_bytes(cell).ok()));
        }
        Ok(Some(Arc::from(slots)))
    }

    /// Puts a lookup table in place of the one there is, whole.
    pub(super) fn put_slots(&mut self, service: u32, slots: &[BackendId]) -> Result<()> {
        let cells = u32::try_from(slots.len())?;
        let template = shape::table(cells);
        let inner = MapData::create(
            aya_obj::Map::new_from_params(
                template.kind,
                template.key,
                template.value,
                template.entries,
                template.flags,
            ),
            "lb_slots",
            None,
        )?;
        let keys: Vec<u32> = (0..cells).collect();
        RawMap::duplicate(inner.fd().as_fd())?.update_batch(keys.as_bytes(), slots.as_bytes())?;
        self.slots.set(service, &inner, 0)?;
        Ok(())
    }

    /// Makes `wanted` the load balancer's own addresses; those that stay are never missing.
    pub(super) fn set_locals(&mut self, wanted: &BTreeSet<Address>) -> Result<()> {
        let present = self
            .locals
            .keys()
            .collect::<Result<BTreeSet<Address>, _>>()
            .context("cannot read the map locals")?;
        for address in wanted.difference(&present) {
            self.locals
                .insert(address, 1, 0)
                .context("cannot add to the map locals: is sizes.locals too small?")?;
        }
        for address in present.difference(wanted) {
            gone(self.locals.remove(address)).context("cannot remove from the map locals")?;
        }
        Ok(())
    }
}

/// That an entry was not there is no failure to remove it.
pub(super) fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn map(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("the program that is built in has no map {name}"))
}
