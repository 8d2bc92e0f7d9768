//! `[egress]`: the networks whose own connections leave under the load balancer's address.
//!
//! In mode `nat` the load balancer is the backends' default route, so their way out is its
//! business too. A prefix says whose connections are masqueraded, and out of which interface.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Error, check};
use crate::network::masquerade;

/// `[egress]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawEgress {
    /// The networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<RawPrefix>,
}

/// A network: its prefix, or a table with more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Form", into = "Form")]
pub struct RawPrefix {
    /// The sources, such as `10.0.1.0/24`.
    pub prefix: String,
    /// The interface out of which they are masqueraded; if left out, each attached interface that
    /// a default route goes out of.
    pub interface: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "an egress prefix is \"10.0.1.0/24\", or { prefix = \"10.0.1.0/24\", interface = \"eth0\" }"
)]
enum Form {
    Prefix(String),
    Table(Table),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    prefix: String,
    interface: Option<String>,
}

impl From<Form> for RawPrefix {
    fn from(form: Form) -> Self {
        let (prefix, interface) = match form {
            Form::Prefix(prefix) => (prefix, None),
            Form::Table(Table { prefix, interface }) => (prefix, interface),
        };
        Self { prefix, interface }
    }
}

impl From<RawPrefix> for Form {
    fn from(RawPrefix { prefix, interface }: RawPrefix) -> Self {
        match interface {
            None => Self::Prefix(prefix),
            interface => Self::Table(Table { prefix, interface }),
        }
    }
}

/// A network whose own connections are masqueraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Where they come from.
    pub prefix: IpNet,
    /// The interface they leave by; none: each attached one that a default route goes out of.
    pub interface: Option<String>,
}

impl Egress {
    /// The interface in words.
    pub fn way(&self) -> &str {
        self.interface.as_deref().unwrap_or("the default route")
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} out of {}", self.prefix, self.way())
    }
}

/// What is meant, longest prefix first: of two that cover a source the longer one counts.
pub(super) fn check(raw: &RawEgress) -> Result<Vec<Egress>, Error> {
    let mut all: Vec<Egress> = Vec::new();
    for RawPrefix { prefix, interface } in &raw.prefixes {
        let prefix = parse(prefix)?;
        usable(prefix)?;
        if let Some(interface) = interface {
            check::interface_name(interface)?;
            if !masquerade::nameable(interface) {
                return Err(Error::EgressInterface {
                    name: interface.clone(),
                });
            }
        }
        if all.iter().any(|known| known.prefix == prefix) {
            return Err(Error::EgressTwice { prefix });
        }
        all.push(Egress {
            prefix,
            interface: interface.clone(),
        });
    }
    all.sort_by_key(|egress| (128 - egress.prefix.prefix_len(), egress.prefix));
    Ok(all)
}

/// Adds a prefix, or gives one that is there another interface.
pub(super) fn add(raw: &mut RawEgress, egress: &RawPrefix) -> Result<(), Error> {
    let prefix = parse(&egress.prefix)?;
    match position(raw, prefix) {
        Some(index) => raw.prefixes[index] = egress.clone(),
        None => raw.prefixes.push(egress.clone()),
    }
    Ok(())
}

/// Removes a prefix.
pub(super) fn remove(raw: &mut RawEgress, text: &str) -> Result<(), Error> {
    let prefix = parse(text)?;
    let index = position(raw, prefix).ok_or_else(|| Error::NoEgress {
        prefix,
        known: raw.prefixes.iter().map(|p| p.prefix.clone()).collect(),
    })?;
    raw.prefixes.remove(index);
    Ok(())
}

fn position(raw: &RawEgress, prefix: IpNet) -> Option<usize> {
    let is_it = |known: &RawPrefix| parse(&known.prefix).is_ok_and(|known| known == prefix);
    raw.prefixes.iter().position(is_it)
}

/// A prefix; an address alone is a prefix of its own.
fn parse(text: &str) -> Result<IpNet, Error> {
    let alone = || text.parse::<IpAddr>().map(IpNet::from);
    let written = text
        .parse::<IpNet>()
        .or_else(|_| alone())
        .map_err(|_| Error::Prefix { text: text.into() })?;
    let network = written.trunc();
    if network != written {
        return Err(Error::HostBits {
            written,
            network,
            alone: IpNet::from(written.addr()),
        });
    }
    Ok(network)
}

fn usable(prefix: IpNet) -> Result<(), Error> {
    let first = prefix.network();
    let why = match first {
        _ if prefix.prefix_len() == 0 => "every address, the clients' too",
        _ if first.is_multicast() => "multicast",
        _ if first.is_loopback() => "loopback",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "link-local",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "IPv4 in IPv6",
        _ => return Ok(()),
    };
    Err(Error::EgressUnusable { prefix, why })
}
