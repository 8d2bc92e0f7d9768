//! What the agent and the command line say to each other: HTTP and JSON over the agent's Unix
//! socket. `-o json` prints the same objects, so they are stable: fields are added, never renamed
//! or removed.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/stats` | [`Stats`] |
//! | `GET /v1/flows?service=&backend=&client=&limit=` | list of [`Flow`] |
//! | `GET /v1/flows/summary` | [`FlowSummary`] |
//! | `POST /v1/flows/flush` a [`FlowFilter`] that names something | [`Flushed`] |
//! | `GET /v1/recipe?service=&backend=` | list of [`Recipe`](crate::recipe::Recipe) |
//! | `GET /v1/config` | [`RawConfig`](crate::config::RawConfig) |
//! | `GET /v1/events?follow=true` | a [`Event`] in each line |
//! | `POST /v1/edits` with [`Edits`] | [`Edited`] |
//! | `POST /v1/detach` with [`Detach`] | [`Detached`] |
//!
//! Anything refused is answered with status 4xx or 5xx and [`Refusal`].

pub mod client;
pub mod server;

use std::net::IpAddr;

use lb_common::abi::{self, Reason};
use serde::{Deserialize, Serialize};

use crate::config::{self, Algorithm, Edit, Mode, Protocol, State};

/// Packets and the bytes of their frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header to the end of the frame.
    pub bytes: u64,
}

impl From<abi::Counter> for Count {
    fn from(counter: abi::Counter) -> Self {
        Self {
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }
}

impl Count {
    /// The sum of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// The state of the agent and of everything it forwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The instance's name.
    pub instance: String,
    /// The agent's process.
    pub pid: u32,
    /// The agent's version.
    pub version: String,
    /// Seconds since the agent was started.
    pub uptime_s: u64,
    /// The network namespace that it entered; null for that of its starter.
    pub netns: Option<String>,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// The services.
    pub services: Vec<Service>,
    /// The networks whose own connections are masqueraded.
    #[serde(default)]
    pub egress: Vec<Egress>,
    /// What deserves a word: a line each.
    pub warnings: Vec<String>,
}

/// An interface of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index; null while it is not there.
    pub ifindex: Option<u32>,
    /// `driver` or `skb` (generic); null while it is not attached.
    pub mode: Option<String>,
    /// Its MAC address.
    pub mac: Option<String>,
    /// Its MTU.
    pub mtu: Option<u32>,
    /// Whether it is up.
    pub up: bool,
    /// Why it is not attached, or not in driver mode; null if all is well.
    pub note: Option<String>,
    /// Packets that came in on it, all reasons together.
    pub packets: u64,
    /// Packets that came in on it, by reason; reasons that never occurred are left out.
    pub reasons: std::collections::BTreeMap<String, Count>,
}

/// A network whose own connections are masqueraded, and what it has carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// The network, `10.0.1.0/24`.
    pub prefix: String,
    /// The interface asked for; null for those that a default route goes out of.
    pub interface: Option<String>,
    /// The interfaces that it is masqueraded on now.
    pub interfaces: Vec<String>,
    /// Connections that were begun.
    pub connections: u64,
    /// From the network, with bytes of the IP packets.
    pub out: Count,
    /// To the network, with bytes of the IP packets.
    pub back: Count,
    /// Why nothing is masqueraded; null if all is well.
    pub note: Option<String>,
}

/// A service and what it has carried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its addresses on this node.
    pub addresses: Vec<IpAddr>,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// How its packets are forwarded.
    pub mode: Mode,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Cells of its lookup table now; 0 while it has no backend to offer.
    pub slots: u32,
    /// Flows given to its backends.
    pub new_flows: u64,
    /// From clients to backends.
    pub forward: Count,
    /// From backends to clients (`nat` only).
    pub back: Count,
    /// Its backends.
    pub backends: Vec<Backend>,
}

impl Service {
    /// Where it is, each of its addresses.
    pub fn places(&self) -> Vec<String> {
        config::places(&self.addresses, self.port, self.protocol)
    }
}

/// A backend of a service and what it has carried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Its address and port, `10.0.1.5:8080`.
    pub address: String,
    /// Whether it takes packets.
    pub state: State,
    /// Its share, relative to the others'.
    pub weight: u16,
    /// Cells of the service's lookup table that name it.
    pub slots: u32,
    /// Whether its next hop's MAC address is known.
    pub resolved: bool,
    /// That MAC address.
    pub mac: Option<String>,
    /// The interface it is reached through.
    pub interface: Option<String>,
    /// Source of the outer headers, an address or the prefix in which it varies (tunnel modes only).
    pub outer_source: Option<String>,
    /// Longest packet that the way to it carries, outer headers included, in bytes.
    pub mtu: Option<u16>,
    /// Flows given to it.
    pub new_flows: u64,
    /// From clients to it.
    pub forward: Count,
    /// From it to clients (`nat` only).
    pub back: Count,
}

/// Counters alone, with the time they were read at, for rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// The services.
    pub services: Vec<Service>,
    /// The networks whose own connections are masqueraded.
    #[serde(default)]
    pub egress: Vec<Egress>,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The service's name; null if it has just been removed.
    pub service: Option<String>,
    /// The client's address.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The service address that the client uses.
    pub address: IpAddr,
    /// The backend, `10.0.1.5:8080`; null if it has just been removed.
    pub backend: Option<String>,
    /// `half-open`, `established`, `closing` or `udp`.
    pub state: String,
    /// The table it is in: `new_flows` until the other side has answered, then `flows`.
    pub table: String,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
    /// Whether it has left `new_flows`.
    pub confirmed: bool,
}

/// Which flows to list, or to flush.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowFilter {
    /// Of this service.
    pub service: Option<String>,
    /// Of this backend, with or without port.
    pub backend: Option<String>,
    /// Of this client.
    pub client: Option<IpAddr>,
    /// No more than so many.
    pub limit: Option<usize>,
}

/// What flushing has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// How many flows were forgotten.
    pub flows: u64,
}

/// Whose recipes to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeFilter {
    /// The service.
    pub service: String,
    /// Only of this backend, with or without port.
    pub backend: Option<String>,
}

/// How many flows there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSummary {
    /// Confirmed flows.
    pub flows: u64,
    /// Room for confirmed flows.
    pub flows_size: u32,
    /// Flows that the other side has not answered.
    pub new_flows: u64,
    /// Room for them.
    pub new_flows_size: u32,
    /// Of both tables, by service.
    pub services: Vec<FlowCount>,
}

/// The flows of one backend of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCount {
    /// The service's name.
    pub service: String,
    /// The backend.
    pub backend: String,
    /// Confirmed flows.
    pub flows: u64,
    /// Flows that the other side has not answered.
    pub new_flows: u64,
}

/// A reason, and how often it occurred on all interfaces together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// Its name.
    pub name: String,
    /// `passed`, `forwarded`, `dropped` or `answered`.
    pub fate: String,
    /// Packets; null if no agent runs.
    pub packets: Option<u64>,
    /// Bytes; null if no agent runs.
    pub bytes: Option<u64>,
    /// What it means and what can be done.
    pub explanation: String,
}

impl ReasonCount {
    /// Every reason, counted over `interfaces` where there is an agent to ask.
    pub fn all(interfaces: Option<&[Interface]>) -> Vec<Self> {
        let count = |name: &str| {
            interfaces.map(|interfaces| {
                let counts = interfaces.iter().filter_map(|i| i.reasons.get(name));
                counts.fold(Count::default(), |sum, &count| sum.plus(count))
            })
        };
        Reason::ALL
            .iter()
            .map(|reason| {
                let count = count(reason.name());
                Self {
                    name: reason.name().into(),
                    fate: reason.fate().name().into(),
                    packets: count.map(|c| c.packets),
                    bytes: count.map(|c| c.bytes),
                    explanation: reason.explanation().into(),
                }
            })
            .collect()
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in the local clock's words of RFC 3339, UTC.
    pub time: String,
    /// `new-flow`, `drop` or `neighbour`.
    pub kind: String,
    /// Why; a reason's name.
    pub reason: Option<String>,
    /// Source of the packet.
    pub source: String,
    /// Destination of the packet; of `neighbour` the address that is to be resolved.
    pub destination: String,
    /// IP protocol: `tcp`, `udp` or a number.
    pub protocol: String,
    /// The service's name.
    pub service: Option<String>,
    /// The backend.
    pub backend: Option<String>,
    /// The interface it came in on.
    pub interface: Option<String>,
}

/// Changes to make, all or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edits {
    /// The changes, in order.
    pub edits: Vec<Edit>,
    /// Say what would happen, and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What was changed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edited {
    /// A line for each difference, with `+`, `-` or `~` first.
    pub changes: Vec<String>,
    /// What was done to the host for it: addresses, kernel settings, how it was attached.
    pub notes: Vec<String>,
    /// What works but deserves a word.
    pub warnings: Vec<String>,
}

/// What to detach from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// The interfaces; none: all of them, and the agent ends.
    pub interfaces: Vec<String>,
}

/// What detaching has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// A line for each thing.
    pub notes: Vec<String>,
    /// Whether the agent ends.
    pub ends: bool,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One line.
    pub error: String,
}
