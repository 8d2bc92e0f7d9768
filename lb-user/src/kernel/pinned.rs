//! The maps of a load balancer that runs, to be looked at: single entries, and nothing is written.
//!
//! Every map is opened through its pin with `BPF_F_RDONLY`, so that the kernel itself refuses a
//! write. Entries are looked up one by one, because the tables of flows may hold millions; such a
//! look does not make an entry of an LRU count as used.

use std::{cell::RefCell, collections::BTreeMap, marker::PhantomData, path::Path};

use anyhow::{Context, Result, bail, ensure};
use lb_common::abi::{
    ABI_VERSION, Address, Answered, Backend, BackendId, Conversation, Direct, Endpoint,
    EndpointKey, Flow, FlowKey, Fragment, FragmentKey, Service, ServiceId, Settings,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    flows::Table,
    pins::Pins,
    syscall::{RawMap, open_map_to_read, open_pin_to_read},
};

/// The maps of one instance.
#[derive(Debug)]
pub struct Pinned {
    interfaces: Vec<String>,
    settings: Settings,
    endpoints: Entries<EndpointKey, Endpoint>,
    services: Entries<u32, Service>,
    backends: Entries<u32, Backend>,
    locals: Entries<Address, u32>,
    flows: Entries<FlowKey, Flow>,
    new_flows: Entries<FlowKey, Flow>,
    direct: Entries<Conversation, Direct>,
    fragments: Entries<FragmentKey, Fragment>,
    answered: Entries<Address, Answered>,
    rotations: RawMap,
    slots: Entries<u32, u32>,
    /// Lookup tables that were opened, by service: all looks are at the same one.
    opened: RefCell<BTreeMap<ServiceId, Option<Entries<u32, BackendId>>>>,
}

impl Pinned {
    /// Opens what is pinned below `pins`; nothing if no program is.
    ///
    /// # Errors
    ///
    /// When a map cannot be opened, or was made by another version.
    pub fn open(pins: &Path) -> Result<Option<Self>> {
        let Some(pins) = Pins::there(pins)? else {
            return Ok(None);
        };
        let settings: Entries<u32, Settings> = Entries::open(&pins, "settings")?;
        let settings = settings.find(&0)?.unwrap_or_default();
        if settings.abi_version != ABI_VERSION {
            bail!(
                "the pinned maps have version {} and this lb-user reads {ABI_VERSION}: use the \
                 lb-user that made them",
                settings.abi_version
            );
        }
        Ok(Some(Self {
            interfaces: pins.links()?,
            settings,
            endpoints: Entries::open(&pins, "endpoints")?,
            services: Entries::open(&pins, "services")?,
            backends: Entries::open(&pins, "backends")?,
            locals: Entries::open(&pins, "locals")?,
            flows: Entries::open(&pins, "flows")?,
            new_flows: Entries::open(&pins, "new_flows")?,
            direct: Entries::open(&pins, "direct")?,
            fragments: Entries::open(&pins, "fragments")?,
            answered: Entries::open(&pins, "answered")?,
            rotations: open(&pins, "rotations")?,
            slots: Entries::open(&pins, "slots")?,
            opened: RefCell::default(),
        }))
    }

    /// Names of the interfaces that the program is attached to.
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// What concerns all services.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What an address, port and protocol mean.
    ///
    /// # Errors
    ///
    /// This, and all looks: when the kernel refuses.
    pub fn endpoint(&self, key: &EndpointKey) -> Result<Option<Endpoint>> {
        self.endpoints.find(key)
    }

    /// A service's record; all zero if it was removed, none beyond the map's end.
    ///
    /// # Errors
    ///
    /// As [`Pinned::endpoint`].
    pub fn service(&self, id: ServiceId) -> Result<Option<Service>> {
        self.services.find(&id.0)
    }

    /// A backend's record; all zero if it was removed, none beyond the map's end.
    ///
    /// # Errors
    ///
    /// As [`Pinned::endpoint`].
    pub fn backend(&self, id: BackendId) -> Result<Option<Backend>> {
        self.backends.find(&id.0)
    }

    /// The backend in a cell of a service's lookup table. The table is the one that was there at
    /// the first look, even if the agent has swapped it since.
    ///
    /// # Errors
    ///
    /// As [`Pinned::endpoint`].
    pub fn slot(&self, service: ServiceId, cell: u32) -> Result<Option<BackendId>> {
        let mut opened = self.opened.borrow_mut();
        if let std::collections::btree_map::Entry::Vacant(place) = opened.entry(service) {
            let table = match self.slots.find(&service.0)? {
                Some(id) => {
                    let fd = open_map_to_read(id).with_context(|| {
                        format!("cannot open the slots of service {}", service.0)
                    })?;
                    Some(Entries::new(RawMap::new(fd)?, "slots")?)
                }
                None => None,
            };
            place.insert(table);
        }
        match opened.get(&service) {
            Some(Some(table)) => table.find(&cell),
            _ => Ok(None),
        }
    }

    /// Whether this is an address of the load balancer itself.
    ///
    /// # Errors
    ///
    /// As [`Pinned::endpoint`].
    pub fn is_local(&self, address: &Address) -> Result<bool> {
        Ok(self.locals.find(address)?.is_some())
    }

    /// A flow's entry in one of the tables.
    ///
    /// # Errors
    ///
    /// As [`Pinned::endpoint`].
    pub fn flow(&self, table: Table, key: &FlowKey) -> Result<Option<Flow>> {
        match table {
            Table::Confirmed => self.flows.find(key),
            Table::New => self.new_flows.find(key),
        }
    }

    /// The entry of a conversation that a client opened with a backend itself.
    ///
    /// # Errors
    ///
    /// As [`Pinned::endpoint`].
    pub fn direct(&self, conversation: &Conversation) -> Result<Option<Direct>> {
        self.direct.find(conversation)
    }

    /// What was decided for a datagram's first fragment.
    ///
    /// # Errors
    ///
    /// As [`Pinned::endpoint`].
    pub fn fragment(&self, key: &FragmentKey) -> Result<Option<Fragment>> {
        self.fragments.find(key)
    }

    /// What the clients of a prefix were told by ICMP.
    ///
    /// # Errors
    ///
    /// As [`Pinned::endpoint`].
    pub fn answered(&self, prefix: &Address) -> Result<Option<Answered>> {
        self.answered.find(prefix)
    }

    /// How many round-robin tickets of a service a CPU has drawn; none if there is no such CPU.
    ///
    /// # Errors
    ///
    /// As [`Pinned::endpoint`].
    pub fn tickets(&self, service: ServiceId, cpu: u32) -> Result<Option<u64>> {
        let mut values = vec![0; self.rotations.value_bytes()];
        let found = self
            .rotations
            .lookup(service.0.as_bytes(), &mut values)
            .context("cannot read the map rotations")?;
        let of_cpu = values.chunks_exact(size_of::<u64>()).nth(cpu as usize);
        Ok(of_cpu
            .filter(|_| found)
            .and_then(|bytes| u64::read_from_bytes(bytes).ok()))
    }
}

/// A map of `K` to `V`.
#[derive(Debug)]
struct Entries<K, V> {
    map: RawMap,
    name: &'static str,
    kinds: PhantomData<fn(K) -> V>,
}

impl<K: IntoBytes + Immutable, V: FromBytes + IntoBytes> Entries<K, V> {
    fn open(pins: &Pins, name: &'static str) -> Result<Self> {
        Self::new(open(pins, name)?, name)
    }

    fn new(map: RawMap, name: &'static str) -> Result<Self> {
        let fits = map.key_bytes() == size_of::<K>() && map.value_bytes() == size_of::<V>();
        ensure!(
            fits,
            "the pinned map {name} has another layout than this lb-user reads: use the lb-user \
             that made it"
        );
        Ok(Self {
            map,
            name,
            kinds: PhantomData,
        })
    }

    fn find(&self, key: &K) -> Result<Option<V>> {
        let mut value = V::new_zeroed();
        let found = self
            .map
            .lookup(key.as_bytes(), value.as_mut_bytes())
            .with_context(|| format!("cannot read the map {}", self.name))?;
        Ok(found.then_some(value))
    }
}

fn open(pins: &Pins, name: &str) -> Result<RawMap> {
    let path = pins.map(name);
    let fd = open_pin_to_read(&path).with_context(|| format!("cannot open {}", path.display()))?;
    RawMap::new(fd).with_context(|| format!("cannot look at {}", path.display()))
}
