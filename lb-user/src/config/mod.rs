//! What is meant: a configuration in which nothing can be wrong.
//!
//! [`Config::check`] is the only way to one. It takes what was written ([`RawConfig`]), fills in
//! what was left out and refuses, with one [`Error`], anything that could not work. What works but
//! deserves a word is in [`Config::warnings`].

mod check;
mod diff;
mod edit;
pub mod egress;
mod error;
mod parse;
pub mod raw;
mod tunnel;
mod words;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::abi::{self, Ticks, limits};

pub use crate::kernel::Sizes;
pub use diff::differences;
pub use edit::{BackendSet, Edit, ServiceSet};
pub use egress::Egress;
pub use error::Error;
pub use parse::ServiceEndpoint;
pub(crate) use parse::places;
pub use raw::{RawConfig, Spacing};
pub use tunnel::{Source, Tunnel};
pub use words::{Algorithm, Mode, Protocol, State, XdpMode};

/// A checked configuration, for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The interfaces to attach to.
    pub interfaces: Vec<Interface>,
    /// Sizes of the maps.
    pub sizes: Sizes,
    /// Which packets become events.
    pub events: Events,
    /// Which of the backends' own connections are masqueraded, longest prefix first.
    pub egress: Vec<Egress>,
    /// What packets in tunnels look like.
    pub tunnel: Tunnel,
    /// The services, in the order of the file.
    pub services: Vec<Service>,
    /// What works but deserves a word: a line each.
    pub warnings: Vec<String>,
    /// Only [`Config::check`] has one of these.
    checked: check::Checked,
}

impl Config {
    /// The service of this name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// What concerns all services, as the maps hold it.
    pub fn settings(&self) -> abi::Settings {
        abi::Settings {
            tunnel: self.tunnel.abi(),
            answers_per_second: limits::ANSWERS_PER_SECOND,
            ..self.events.abi()
        }
    }

    /// Whether everything has room in maps of these sizes: those that are there may be other than
    /// the configuration's, which take effect when the agent starts.
    ///
    /// # Errors
    ///
    /// When it has not.
    pub fn fits(&self, sizes: &Sizes) -> Result<(), Error> {
        check::fits(self, sizes)
    }
}

/// An interface to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Where the program is attached.
    pub xdp_mode: XdpMode,
}

/// The shortest time between two events of a kind on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// New flows.
    pub new_flows: Spacing,
    /// Dropped packets.
    pub drops: Spacing,
}

impl Default for Events {
    fn default() -> Self {
        let often = Spacing(Some(Duration::from_millis(100)));
        Self {
            new_flows: often,
            drops: often,
        }
    }
}

impl Events {
    /// As the maps hold them.
    pub fn abi(&self) -> abi::Settings {
        let ticks = |spacing: Spacing| spacing.0.map_or(Ticks(u32::MAX), Ticks::from_duration);
        abi::Settings {
            new_flow_spacing: ticks(self.new_flows),
            drop_spacing: ticks(self.drops),
            ..abi::Settings::default()
        }
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name; the seed of its choices.
    pub name: String,
    /// Its addresses on this node, at least one, all of one family.
    pub addresses: Vec<IpAddr>,
    /// Its port, not 0.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// How packets are forwarded.
    pub mode: Mode,
    /// How backends are chosen.
    pub algorithm: Algorithm,
    /// Cells of its lookup table.
    pub slots: u32,
    /// Whether the agent puts its addresses on the attached interfaces.
    pub placement: Placement,
    /// Idle times of its flows.
    pub timeouts: Timeouts,
    /// Its backends.
    pub backends: Vec<Backend>,
}

impl Service {
    /// Where it is, each of its addresses in words: `203.0.113.10:80/tcp`.
    pub fn places(&self) -> Vec<String> {
        places(&self.addresses, self.port, self.protocol)
    }
}

/// Who puts a service's addresses on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The agent.
    Agent,
    /// Somebody else, or nobody (`no_address`).
    Others,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address and port; in the direct-return modes the service's port. In tunnel modes it may be
    /// of the other family.
    pub address: SocketAddr,
    /// Its share, relative to the others'.
    pub weight: u16,
    /// Whether it takes packets.
    pub state: State,
}

/// Idle times after which a flow is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, handshake not finished.
    pub half_open: Duration,
    /// TCP, established.
    pub established: Duration,
    /// TCP, after FIN or RST.
    pub closing: Duration,
    /// UDP.
    pub udp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            half_open: Duration::from_secs(10),
            established: Duration::from_secs(350),
            closing: Duration::from_secs(10),
            udp: Duration::from_secs(30),
        }
    }
}

impl Timeouts {
    /// As the maps hold them.
    pub fn abi(&self) -> abi::Timeouts {
        abi::Timeouts {
            half_open: Ticks::from_duration(self.half_open),
            established: Ticks::from_duration(self.established),
            closing: Ticks::from_duration(self.closing),
            udp: Ticks::from_duration(self.udp),
        }
    }
}

#[cfg(test)]
mod tests;
