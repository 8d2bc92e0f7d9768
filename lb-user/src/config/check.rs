//! From what was written to what is meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::abi::limits;

use super::{
    Algorithm, Backend, Config, Error, Events, Interface, Mode, Placement, Protocol, RawConfig,
    Service, Sizes, State, Timeouts, Tunnel, egress, parse,
    raw::{RawAddress, RawBackend, RawService, RawSizes, RawTimeouts, Span},
};

/// The most cells of a lookup table: 64 MiB of it.
const MOST_SLOTS: u32 = 1 << 24;

/// Says that a configuration was checked: it is made nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checked;

impl Config {
    /// Checks `raw` as a whole. The first thing that is wrong is the error; order of the checks is
    /// the order of the file.
    pub fn check(raw: &RawConfig) -> Result<Self, Error> {
        if let Some(node) = &raw.node {
            name("node", node)?;
        }
        let interfaces = interfaces(raw)?;
        let sizes = sizes(&raw.sizes)?;
        let timeouts = timeouts(&raw.timeouts, &Timeouts::default(), "[timeouts]")?;
        let events = Events::default();
        let tunnel = Tunnel::check(&raw.tunnel)?;
        let services = raw
            .services
            .iter()
            .map(|s| service(s, raw.node.as_deref(), &timeouts))
            .collect::<Result<Vec<_>, _>>()?;
        let mut config = Self {
            interfaces,
            sizes,
            events: Events {
                new_flows: raw.events.new_flows.unwrap_or(events.new_flows),
                drops: raw.events.drops.unwrap_or(events.drops),
            },
            egress: egress::check(&raw.egress)?,
            tunnel,
            services,
            warnings: Vec::new(),
            checked: Checked,
        };
        unique(&config.services)?;
        backends_are_not_services(&config.services)?;
        config.warnings = shared_backends(&config.services)?;
        fits(&config, &config.sizes)?;
        Ok(config)
    }
}

/// Refuses what is no name of a service or a node.
pub(super) fn name(what: &'static str, name: &str) -> Result<(), Error> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=63).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(Error::Name {
        what,
        name: name.into(),
    })
}

/// The name of a service in an error.
fn of_service(name: &str) -> String {
    format!("service {name:?}")
}

fn interfaces(raw: &RawConfig) -> Result<Vec<Interface>, Error> {
    let mut seen = BTreeSet::new();
    let written = raw.interfaces.iter().flatten();
    written
        .map(|interface| {
            let name = interface.name.clone();
            interface_name(&name)?;
            if !seen.insert(name.clone()) {
                return Err(Error::DuplicateInterface { name });
            }
            Ok(Interface {
                name,
                xdp_mode: interface.xdp_mode,
            })
        })
        .collect()
}

/// Refuses what is no name of an interface: the kernel's `dev_valid_name()`.
pub(super) fn interface_name(name: &str) -> Result<(), Error> {
    let wrong = |c: char| c == '/' || c == ':' || c.is_whitespace();
    let is_name = (1..=15).contains(&name.len()) && !matches!(name, "." | "..");
    if is_name && !name.contains(wrong) {
        return Ok(());
    }
    Err(Error::InterfaceName { name: name.into() })
}

fn sizes(raw: &RawSizes) -> Result<Sizes, Error> {
    let default = Sizes::default();
    let entries = |name: &'static str, written: Option<u32>, default: u32| {
        let value = written.unwrap_or(default);
        if (2..=1 << 27).contains(&value) {
            return Ok(value);
        }
        Err(Error::Size {
            name,
            value,
            must: "must be from 2 to 134217728",
        })
    };
    let event_bytes = raw.event_bytes.unwrap_or(default.event_bytes);
    if !event_bytes.is_power_of_two() || !(4096..=1 << 30).contains(&event_bytes) {
        return Err(Error::Size {
            name: "event_bytes",
            value: event_bytes,
            must: "must be a power of two from 4096 to 1073741824",
        });
    }
    Ok(Sizes {
        services: entries("services", raw.services, default.services)?,
        backends: entries("backends", raw.backends, default.backends)?,
        endpoints: entries("endpoints", raw.endpoints, default.endpoints)?,
        flows: entries("flows", raw.flows, default.flows)?,
        new_flows: entries("new_flows", raw.new_flows, default.new_flows)?,
        direct: entries("direct", raw.direct, default.direct)?,
        fragments: entries("fragments", raw.fragments, default.fragments)?,
        locals: entries("locals", raw.locals, default.locals)?,
        interfaces: entries("interfaces", raw.interfaces, default.interfaces)?,
        event_bytes,
    })
}

fn timeouts(raw: &RawTimeouts, default: &Timeouts, of: &str) -> Result<Timeouts, Error> {
    let timeout = |name: &'static str, written: Option<Span>, default: Duration| {
        let value = written.map_or(default, |span| span.0);
        // Idle times wrap after 52 days.
        if (Duration::from_secs(1)..=Duration::from_secs(30 * 86_400)).contains(&value) {
            return Ok(value);
        }
        Err(Error::Timeout {
            of: of.into(),
            name,
            value: Span(value).to_string(),
        })
    };
    Ok(Timeouts {
        half_open: timeout("half_open", raw.half_open, default.half_open)?,
        established: timeout("established", raw.established, default.established)?,
        closing: timeout("closing", raw.closing, default.closing)?,
        udp: timeout("udp", raw.udp, default.udp)?,
    })
}

fn service(raw: &RawService, node: Option<&str>, default: &Timeouts) -> Result<Service, Error> {
    name("service", &raw.name)?;
    let addresses = addresses(raw, node)?;
    if raw.port == 0 {
        return Err(Error::PortZero {
            of: of_service(&raw.name),
        });
    }
    let mode = raw.mode.unwrap_or(Mode::Nat);
    let backends = raw
        .backends
        .iter()
        .map(|b| backend(b, raw, mode, addresses[0]))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = backends.iter().find(|b| !seen.insert(b.address)) {
        return Err(Error::DuplicateBackend {
            service: raw.name.clone(),
            address: twice.address,
        });
    }
    if !backends.is_empty() && backends.iter().all(|b| b.weight == 0) {
        return Err(Error::NoWeight {
            service: raw.name.clone(),
        });
    }
    let algorithm = raw.algorithm.unwrap_or(Algorithm::Maglev);
    Ok(Service {
        slots: slots(raw, algorithm, backends.len())?,
        timeouts: timeouts(&raw.timeouts, default, &of_service(&raw.name))?,
        name: raw.name.clone(),
        addresses,
        port: raw.port,
        protocol: raw.protocol.unwrap_or(Protocol::Tcp),
        mode,
        algorithm,
        placement: if raw.no_address {
            Placement::Others
        } else {
            Placement::Agent
        },
        backends,
    })
}

/// The service's addresses on this node. Those on other nodes are looked at too: a mistake there
/// should not wait for the other node.
fn addresses(raw: &RawService, node: Option<&str>) -> Result<Vec<IpAddr>, Error> {
    let service = || raw.name.clone();
    let of = || of_service(&raw.name);
    if raw.address.is_some() && !raw.addresses.is_empty() {
        return Err(Error::AddressTwice { service: service() });
    }
    let mut first = None;
    let mut here = Vec::new();
    let mut elsewhere = false;
    let written = raw.address.iter().map(|a| (a, None));
    let listed = raw.addresses.iter().map(|address| match address {
        RawAddress::Everywhere(address) => (address, None),
        RawAddress::OnNode(on) => (&on.address, Some(&on.node)),
    });
    for (text, on) in written.chain(listed) {
        let address = parse::ip(text, of)?;
        let first = *first.get_or_insert(address);
        if first.is_ipv4() != address.is_ipv4() {
            return Err(Error::FamilyMix {
                service: service(),
                first,
                other: address,
            });
        }
        if let Some(on) = on {
            name("node", on)?;
            if node.is_none() {
                return Err(Error::NodeMissing { service: service() });
            }
        }
        if on.is_none_or(|on| Some(&**on) == node) {
            here.push(address);
        } else {
            elsewhere = true;
        }
    }
    match (here.is_empty(), elsewhere, node) {
        (true, true, Some(node)) => Err(Error::NodeWithoutAddress {
            service: service(),
            node: node.into(),
        }),
        (true, ..) => Err(Error::AddressMissing { service: service() }),
        (false, ..) => Ok(here),
    }
}

fn backend(raw: &RawBackend, of: &RawService, mode: Mode, first: IpAddr) -> Result<Backend, Error> {
    let address = parse::socket(&raw.address, of.port, || {
        format!("backend {} of service {:?}", raw.address, of.name)
    })?;
    if address.is_ipv4() != first.is_ipv4() && !mode.is_tunnel() {
        return Err(Error::BackendFamily {
            service: of.name.clone(),
            address,
            first,
        });
    }
    if mode != Mode::Nat && address.port() != of.port {
        return Err(Error::DsrPort {
            mode,
            service: of.name.clone(),
            address,
            port: of.port,
        });
    }
    Ok(Backend {
        address,
        weight: raw.weight.unwrap_or(1),
        state: raw.state.unwrap_or(State::Enabled),
    })
}

fn slots(raw: &RawService, algorithm: Algorithm, backends: usize) -> Result<u32, Error> {
    let slots = raw.slots.unwrap_or(limits::SLOTS);
    let least = u32::try_from(backends).unwrap_or(u32::MAX).max(2);
    if !(least..=MOST_SLOTS).contains(&slots) {
        return Err(Error::SlotsRange {
            service: raw.name.clone(),
            slots,
            least,
            most: MOST_SLOTS,
        });
    }
    // Round-robin's wheel is as long as the weights need; `slots` only bounds it.
    if algorithm != Algorithm::RoundRobin && !is_prime(slots) {
        return Err(Error::SlotsNotPrime {
            service: raw.name.clone(),
            slots,
            lower: (2..slots).rev().find(|&n| is_prime(n)).unwrap_or(2),
            upper: (slots..).find(|&n| is_prime(n)).unwrap_or(limits::SLOTS),
        });
    }
    Ok(slots)
}

fn is_prime(n: u32) -> bool {
    n >= 2
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

/// No two services of one name or at one place.
fn unique(services: &[Service]) -> Result<(), Error> {
    let mut names = BTreeSet::new();
    let mut places = BTreeMap::new();
    for service in services {
        if !names.insert(&service.name) {
            return Err(Error::DuplicateService {
                name: service.name.clone(),
            });
        }
        for &address in &service.addresses {
            let place = (address, service.port, service.protocol);
            if let Some(first) = places.insert(place, &service.name) {
                return Err(Error::DuplicateEndpoint {
                    first: first.clone(),
                    second: service.name.clone(),
                    address,
                    port: service.port,
                    protocol: service.protocol,
                });
            }
        }
    }
    Ok(())
}

/// A backend at a service's address would be this host itself.
fn backends_are_not_services(services: &[Service]) -> Result<(), Error> {
    let owners: BTreeMap<IpAddr, &str> = services
        .iter()
        .flat_map(|s| s.addresses.iter().map(|&a| (a, &*s.name)))
        .collect();
    for service in services {
        for backend in &service.backends {
            if let Some(&other) = owners.get(&backend.address.ip()) {
                return Err(Error::BackendIsService {
                    service: service.name.clone(),
                    address: backend.address,
                    other: other.to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// Backends of several `nat` services: a warning each, an error where the way back gives up.
fn shared_backends(services: &[Service]) -> Result<Vec<String>, Error> {
    let mut sharers: BTreeMap<(SocketAddr, Protocol), Vec<&str>> = BTreeMap::new();
    for service in services.iter().filter(|s| s.mode == Mode::Nat) {
        for backend in &service.backends {
            let key = (backend.address, service.protocol);
            sharers.entry(key).or_default().push(&service.name);
        }
    }
    let mut warnings = Vec::new();
    for ((address, protocol), names) in sharers.into_iter().filter(|(_, n)| n.len() > 1) {
        if names.len() > usize::from(limits::SHARED_RETURNS) {
            return Err(Error::SharedTooOften {
                address,
                protocol,
                count: names.len(),
            });
        }
        warnings.push(format!(
            "backend {address}/{protocol} is shared by {}: its answers find their way back by the \
             flow table alone, so a load balancer without the flow's entry drops them; a port of \
             its own for each service avoids that",
            names.join(" and ")
        ));
    }
    Ok(warnings)
}

/// Whether everything has room in the maps.
pub(super) fn fits(config: &Config, sizes: &Sizes) -> Result<(), Error> {
    let services = &config.services;
    let backends = services.iter().map(|s| s.backends.len()).sum();
    let addresses: usize = services.iter().map(|s| s.addresses.len()).sum();
    let ways_back: usize = services
        .iter()
        .filter(|s| s.mode == Mode::Nat)
        .map(|s| s.backends.len())
        .sum();
    // Id 0 is reserved.
    let room = |what, count, name, size: u32, reserved: u32| {
        let room = (size - reserved) as usize;
        if count <= room {
            return Ok(());
        }
        Err(Error::TooMany {
            what,
            count,
            name,
            size,
            room,
        })
    };
    room("services", services.len(), "services", sizes.services, 1)?;
    room("backends", backends, "backends", sizes.backends, 1)?;
    room(
        "service addresses and nat backends",
        addresses + ways_back,
        "endpoints",
        sizes.endpoints,
        0,
    )?;
    room(
        "interfaces",
        config.interfaces.len(),
        "interfaces",
        sizes.interfaces,
        0,
    )
}
