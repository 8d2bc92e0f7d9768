//! The program and its maps in the kernel: made, taken over, filled, read and removed.
//!
//! What is pinned outlives the agent: packets flow while it is stopped, killed or upgraded.
//! [`Kernel::open`] makes the pins or takes them over; a new program replaces the old one through
//! the pinned links, and no packet is without a program in between. Killed at any moment it leaves a
//! state that the next [`Kernel::open`] mends.
//!
//! One agent at a time: whoever calls [`Kernel::open`] has made sure that no other does.
//! All calls are short system calls, except opening with another size and reading flows
//! ([`FlowTables`], made to be used on a thread of its own).

mod apply;
mod attach;
mod batch;
mod counters;
pub mod decap;
mod flows;
mod open;
mod pinned;
mod pins;
mod requirements;
mod shape;
mod syscall;
mod tables;

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result, anyhow};
use aya::{Ebpf, programs::Xdp};
use lb_common::abi::{Address, Settings, limits};

use crate::{events::Events, objects, plan::Tables};
use tokio::io::{Interest, unix::AsyncFd};

use pins::Pins;
use tables::Maps;

pub use attach::{Attached, Attachment, XdpMode};
pub use flows::{FlowEntry, FlowTables, Table, clock};
pub use pinned::Pinned;

/// How much the maps hold. Every one can be changed later: the living contents are copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Services, the id 0 included, which none has.
    pub services: u32,
    /// Backends of all services, the id 0 included, which none has.
    pub backends: u32,
    /// Service addresses and `nat` backends together.
    pub endpoints: u32,
    /// Confirmed flows.
    pub flows: u32,
    /// Flows that the other side has not yet answered.
    pub new_flows: u32,
    /// Conversations opened directly with a backend.
    pub direct: u32,
    /// Datagrams whose later fragments follow the first.
    pub fragments: u32,
    /// Addresses of this host.
    pub locals: u32,
    /// Attached interfaces.
    pub interfaces: u32,
    /// Bytes of the event ring; rounded up to a power of two of pages.
    pub event_bytes: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            services: limits::SERVICES,
            backends: limits::BACKENDS,
            endpoints: limits::ENDPOINTS,
            flows: limits::FLOWS,
            new_flows: limits::NEW_FLOWS,
            direct: limits::DIRECT,
            fragments: limits::FRAGMENTS,
            locals: limits::LOCALS,
            interfaces: limits::INTERFACES,
            event_bytes: limits::EVENT_BYTES,
        }
    }
}

impl Sizes {
    /// The size of the map `name`, if it is set here.
    fn of(&self, name: &str) -> Option<u32> {
        Some(match name {
            "services" | "slots" | "rotations" | "svc_counters" => self.services,
            "backends" | "be_counters" => self.backends,
            "endpoints" => self.endpoints,
            "flows" => self.flows,
            "new_flows" => self.new_flows,
            "direct" => self.direct,
            "fragments" => self.fragments,
            "locals" => self.locals,
            "if_counters" => self.interfaces,
            "events" => self.event_bytes,
            _ => return None,
        })
    }
}

/// The maps whose size is in [`Sizes`].
const SIZED: [&str; 13] = [
    "services",
    "slots",
    "rotations",
    "svc_counters",
    "backends",
    "be_counters",
    "endpoints",
    "flows",
    "new_flows",
    "direct",
    "fragments",
    "locals",
    "if_counters",
];

/// How [`Kernel::open`] is to open.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of the pins, on a bpffs: `/sys/fs/bpf/lb-user/<instance>`. No dot in its name.
    pub pins: PathBuf,
    /// How much the maps hold.
    pub sizes: Sizes,
    /// What is pinned is detached and removed first, flows and counters with it.
    pub discard: bool,
    /// The program writes rare packets to its log ([`Kernel::packet_log`]).
    pub log_packets: bool,
}

/// What [`Kernel::open`] has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing: everything is new and empty.
    Fresh,
    /// A program and its maps.
    TakenOver {
        /// The maps that have another size now, with what was alive in them.
        resized: Vec<String>,
    },
}

/// The program and its maps.
pub struct Kernel {
    pins: Pins,
    ebpf: Ebpf,
    maps: Maps,
    log_packets: bool,
}

/// The program's name in the object.
const PROGRAM: &str = "lb";

/// The map of events.
const EVENTS: &str = "events";

impl Kernel {
    /// Makes the program and its maps, or takes over those that are pinned. A program that is
    /// attached is replaced by the one built in here.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong and what to do: missing rights, a kernel that is too old,
    /// no bpffs, pinned maps of another layout ([`Options::discard`] gives them up), more alive in
    /// a map than its new size holds. What is attached then runs on as it did.
    pub fn open(options: &Options) -> Result<(Self, Taken)> {
        requirements::check()?;
        open::open(options, objects::LB)
    }

    /// What the maps hold, slots included, so that a restarted agent plans from the truth.
    /// [`Tables::addresses`] is empty: addresses are not in the maps.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn read(&self) -> Result<Tables> {
        self.maps.read()
    }

    /// Makes `wanted` the load balancer's own addresses. One that stays is never missing.
    ///
    /// # Errors
    ///
    /// When there are more than [`Sizes::locals`].
    pub fn set_locals(&mut self, wanted: &BTreeSet<Address>) -> Result<()> {
        self.maps.set_locals(wanted)
    }

    /// Writes what concerns all services. [`Settings::abi_version`] and
    /// [`Settings::transmit_by_redirect`] are the kernel's own and stay.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_settings(&mut self, settings: Settings) -> Result<()> {
        let own = self.settings()?;
        self.write_settings(Settings {
            abi_version: own.abi_version,
            transmit_by_redirect: own.transmit_by_redirect,
            ..settings
        })
    }

    /// What concerns all services, as it was last written.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn settings(&self) -> Result<Settings> {
        let settings = self.maps.settings.get(&0, 0);
        settings.context("cannot read the map settings")
    }

    fn write_settings(&mut self, settings: Settings) -> Result<()> {
        self.maps
            .settings
            .set(0, settings, 0)
            .context("cannot write the map settings")
    }

    /// What the program tells from now on. Once only: the second call has nothing to give. To be
    /// called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// When it was called before.
    pub fn events(&mut self) -> Result<Events> {
        let map = self
            .ebpf
            .take_map(EVENTS)
            .ok_or_else(|| anyhow!("the events are read already"))?;
        Events::new(map.try_into().context("events")?)
    }

    /// Hands the program's log lines to the logger of the `log` crate, as long as the returned
    /// future is polled; nothing if [`Options::log_packets`] was not set. To be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    ///
    /// When it was called before.
    pub fn packet_log(
        &mut self,
    ) -> Result<Option<impl Future<Output = Result<()>> + Send + use<>>> {
        if !self.log_packets {
            return Ok(None);
        }
        let logger = aya_log::EbpfLogger::init(&mut self.ebpf)
            .context("the program's log is read already")?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types whose descriptor may change; this one owns its own"
        )]
        let mut logger = AsyncFd::with_interest(logger, Interest::READABLE)
            .context("cannot wait for the program's log")?;
        Ok(Some(async move {
            loop {
                let mut ready = logger.readable_mut().await?;
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        }))
    }

    /// The id of the program that is built in, as the kernel has loaded it.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn program_id(&self) -> Result<u32> {
        let program: &Xdp = self
            .ebpf
            .program(PROGRAM)
            .ok_or_else(|| anyhow!("no program {PROGRAM}"))?
            .try_into()?;
        Ok(program.info()?.id())
    }

    /// Detaches the program everywhere and removes every pin. Flows and counters are gone.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed; what is left is removed by the next [`Kernel::open`].
    pub fn remove_pins(self) -> Result<()> {
        attach::detach_all(&self.pins)?;
        self.pins.clear()?;
        self.pins.remove_folder()
    }

    /// The loaded program.
    fn program(&mut self) -> Result<&mut Xdp> {
        open::program(&mut self.ebpf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The agent may keep it in a task that moves between threads.
    #[test]
    fn it_may_move_between_threads() {
        fn is_send<T: Send>() {}
        is_send::<Kernel>();
        is_send::<FlowTables>();
        is_send::<Events>();
    }

    #[test]
    fn every_map_with_a_size_has_one() {
        for name in SIZED {
            assert!(
                Sizes::default().of(name).is_some_and(|size| size > 0),
                "{name}"
            );
        }
    }
}
