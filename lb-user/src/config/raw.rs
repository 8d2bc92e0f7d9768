//! The configuration as it is written, in a file or by the command line: nothing in it is checked
//! yet beyond its keys and types.
//!
//! A file is read into [`RawConfig`] and a [`RawConfig`] is written out again by `export`, with
//! nothing lost.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Algorithm, Error, Mode, Protocol, State, XdpMode, egress::RawEgress};

/// A whole configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// This node's name, for services that have another address on each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The interfaces to attach to. Left out in `apply -f`: those that are attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<Vec<RawInterface>>,
    /// Sizes of the maps.
    #[serde(skip_serializing_if = "is_default")]
    pub sizes: RawSizes,
    /// Idle times of flows, for services that say nothing else.
    #[serde(skip_serializing_if = "is_default")]
    pub timeouts: RawTimeouts,
    /// Which packets become events.
    #[serde(skip_serializing_if = "is_default")]
    pub events: RawEvents,
    /// Which of the backends' own connections are masqueraded.
    #[serde(skip_serializing_if = "is_default")]
    pub egress: RawEgress,
    /// What packets in tunnels look like.
    #[serde(skip_serializing_if = "is_default")]
    pub tunnel: RawTunnel,
    /// The services.
    #[serde(rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<RawService>,
}

impl RawConfig {
    /// Reads TOML. `origin` (a file's name) begins the error.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, Error> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Error::Syntax {
                place: line.map_or_else(|| origin.to_owned(), |n| format!("{origin}:{n}")),
                message: error.message().replace('\n', " "),
            }
        })
    }

    /// Writes TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }
}

/// An interface: its name, or a table with more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "InterfaceForm", into = "InterfaceForm")]
pub struct RawInterface {
    /// Its name.
    pub name: String,
    /// Where the program is attached; `auto` if left out.
    pub xdp_mode: XdpMode,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "an interface is a name, or { name = \"eth1\", xdp_mode = \"auto|driver|skb\" }"
)]
enum InterfaceForm {
    Name(String),
    Table(InterfaceTable),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterfaceTable {
    name: String,
    xdp_mode: Option<XdpMode>,
}

impl From<InterfaceForm> for RawInterface {
    fn from(form: InterfaceForm) -> Self {
        let (name, xdp_mode) = match form {
            InterfaceForm::Name(name) => (name, None),
            InterfaceForm::Table(InterfaceTable { name, xdp_mode }) => (name, xdp_mode),
        };
        Self {
            name,
            xdp_mode: xdp_mode.unwrap_or(XdpMode::Auto),
        }
    }
}

impl From<RawInterface> for InterfaceForm {
    fn from(RawInterface { name, xdp_mode }: RawInterface) -> Self {
        match xdp_mode {
            XdpMode::Auto => Self::Name(name),
            mode => Self::Table(InterfaceTable {
                name,
                xdp_mode: Some(mode),
            }),
        }
    }
}

/// `[sizes]`: entries of the maps. They take effect when the agent starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSizes {
    /// Services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<u32>,
    /// Backends of all services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<u32>,
    /// Service addresses and `nat` backends together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<u32>,
    /// Flows that the other side has answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flows: Option<u32>,
    /// Flows that it has not answered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_flows: Option<u32>,
    /// Conversations opened directly with a backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<u32>,
    /// Datagrams whose later fragments follow the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragments: Option<u32>,
    /// Addresses of this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locals: Option<u32>,
    /// Attached interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<u32>,
    /// Bytes of the event ring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_bytes: Option<u32>,
}

/// `[timeouts]` and `[service.timeouts]`: idle times after which a flow is forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTimeouts {
    /// TCP, handshake not finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_open: Option<Span>,
    /// TCP, established.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub established: Option<Span>,
    /// TCP, after FIN or RST.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closing: Option<Span>,
    /// UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<Span>,
}

/// `[events]`: the shortest time between two events of a kind on one CPU, or `off`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawEvents {
    /// New flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_flows: Option<Spacing>,
    /// Dropped packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drops: Option<Spacing>,
}

/// `[tunnel]`: the outer headers of `dsr-ipip` and `dsr-gue`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTunnel {
    /// Source of outer IPv4 headers; the address that the route to the backend prefers if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source4: Option<String>,
    /// The prefix in which it varies by flow, `10.99.0.0/24`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_prefix4: Option<String>,
    /// Source of outer IPv6 headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source6: Option<String>,
    /// The prefix in which it varies by flow, `fd00:99::/64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_prefix6: Option<String>,
    /// UDP destination port of GUE; 6080 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gue_port: Option<u16>,
}

/// `[[service]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawService {
    /// Its name.
    pub name: String,
    /// Its address, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its addresses, where it has several, or another on each node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<RawAddress>,
    /// Its port.
    pub port: u16,
    /// Its protocol; `tcp` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// How packets are forwarded; `nat` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// How a backend is chosen; `maglev` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// Cells of its lookup table, a prime; 65537 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Leave the address alone: it is put on this host, or routed to it, by somebody else.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_address: bool,
    /// Idle times of its flows.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeouts: RawTimeouts,
    /// Its backends.
    #[serde(default, rename = "backend", skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<RawBackend>,
}

/// An address of a service: on every node, or on one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "an address is a string, or { node = \"a\", address = \"10.0.0.101\" }"
)]
pub enum RawAddress {
    /// On every node.
    Everywhere(String),
    /// On one node.
    OnNode(NodeAddress),
}

/// An address on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAddress {
    /// The node.
    pub node: String,
    /// The address.
    pub address: String,
}

/// `[[service.backend]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBackend {
    /// Its address and port; without a port, the service's.
    pub address: String,
    /// Its share, relative to the other backends'; 1 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Whether it takes packets; `enabled` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
}

/// A length of time, written `350s`, `5m` or `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| format!("{text:?} is no length of time: write 350s, 5m or 1h 30m"))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whole seconds as they are usually written; humantime would say "5m 50s".
        if self.0.subsec_nanos() == 0 {
            write!(f, "{}s", self.0.as_secs())
        } else {
            humantime::format_duration(self.0).fmt(f)
        }
    }
}

/// The time between two events, written `100ms`; or none at all, written `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Spacing(pub Option<Duration>);

impl TryFrom<String> for Spacing {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match &*text {
            "off" => Ok(Self(None)),
            text => match text.parse() {
                Ok(Span(time)) => Ok(Self(Some(time))),
                Err(_) => Err(format!(
                    "{text:?} is no time between events: write 100ms, 1s or off"
                )),
            },
        }
    }
}

impl From<Spacing> for String {
    fn from(spacing: Spacing) -> Self {
        spacing.to_string()
    }
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(time) => Span(time).fmt(f),
            None => f.write_str("off"),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
