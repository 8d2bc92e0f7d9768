//! Changes of a configuration, as the command line asks for them.
//!
//! An edit is made on a copy of what was written; the copy is then checked as a whole, so that an
//! edit can do nothing that a file could not.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{
    Algorithm, Error, Mode, RawConfig, ServiceEndpoint, State, check,
    egress::{self, RawPrefix},
    parse,
    raw::{RawAddress, RawBackend, RawInterface, RawService, RawTimeouts},
};

/// One change. Services are named by name or by `203.0.113.10:80/tcp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "edit", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Edit {
    /// Adds a service.
    ServiceAdd {
        /// The service.
        service: RawService,
    },
    /// Removes a service with its backends.
    ServiceDel {
        /// The service.
        service: String,
    },
    /// Changes a service; what is not given stays.
    ServiceSet {
        /// The service.
        service: String,
        /// What changes.
        set: ServiceSet,
    },
    /// Adds a backend to a service.
    BackendAdd {
        /// The service.
        service: String,
        /// The backend.
        backend: RawBackend,
    },
    /// Removes a backend from a service.
    BackendDel {
        /// The service.
        service: String,
        /// The backend.
        address: String,
    },
    /// Changes a backend; what is not given stays.
    BackendSet {
        /// The service.
        service: String,
        /// The backend.
        address: String,
        /// What changes.
        set: BackendSet,
    },
    /// Attaches to an interface, or to one that is attached in another way.
    InterfaceAdd {
        /// The interface.
        interface: RawInterface,
    },
    /// Detaches from an interface.
    InterfaceDel {
        /// The interface's name.
        interface: String,
    },
    /// Masquerades connections from a prefix, or does so out of another interface.
    EgressAdd {
        /// The prefix.
        egress: RawPrefix,
    },
    /// Masquerades connections from a prefix no more.
    EgressDel {
        /// The prefix.
        prefix: String,
    },
    /// Puts a whole configuration in place of the one there is. Interfaces that it leaves out
    /// stay as they are.
    Replace {
        /// The configuration.
        config: RawConfig,
    },
}

/// What can be changed of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceSet {
    /// How packets are forwarded.
    pub mode: Option<Mode>,
    /// How a backend is chosen.
    pub algorithm: Option<Algorithm>,
    /// Cells of the lookup table.
    pub slots: Option<u32>,
    /// Whether the address is left alone.
    pub no_address: Option<bool>,
    /// Idle times; those not given stay.
    pub timeouts: RawTimeouts,
    /// Addresses to add.
    pub add_addresses: Vec<String>,
    /// Addresses to remove.
    pub remove_addresses: Vec<String>,
}

/// What can be changed of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackendSet {
    /// Its share.
    pub weight: Option<u16>,
    /// Whether it takes packets.
    pub state: Option<State>,
}

impl Edit {
    /// Makes the change in `raw`. When it fails, `raw` is to be thrown away.
    pub fn apply(&self, raw: &mut RawConfig) -> Result<(), Error> {
        match self {
            Self::ServiceAdd { service } => add_service(raw, service),
            Self::ServiceDel { service } => {
                let index = find(raw, service)?;
                raw.services.remove(index);
                Ok(())
            }
            Self::ServiceSet { service, set } => {
                let index = find(raw, service)?;
                set_service(&mut raw.services[index], set)
            }
            Self::BackendAdd { service, backend } => {
                let index = find(raw, service)?;
                add_backend(&mut raw.services[index], backend)
            }
            Self::BackendDel { service, address } => {
                let index = find(raw, service)?;
                let service = &mut raw.services[index];
                let backend = find_backend(service, address)?;
                service.backends.remove(backend);
                Ok(())
            }
            Self::BackendSet {
                service,
                address,
                set,
            } => {
                let index = find(raw, service)?;
                set_backend(&mut raw.services[index], address, set)
            }
            Self::InterfaceAdd { interface } => {
                let interfaces = raw.interfaces.get_or_insert_default();
                match interfaces
                    .iter_mut()
                    .find(|known| known.name == interface.name)
                {
                    Some(known) => *known = interface.clone(),
                    None => interfaces.push(interface.clone()),
                }
                Ok(())
            }
            Self::InterfaceDel { interface } => remove_interface(raw, interface),
            Self::EgressAdd { egress } => egress::add(&mut raw.egress, egress),
            Self::EgressDel { prefix } => egress::remove(&mut raw.egress, prefix),
            Self::Replace { config } => {
                let interfaces = config.interfaces.clone().or(raw.interfaces.take());
                *raw = config.clone();
                raw.interfaces = interfaces;
                Ok(())
            }
        }
    }
}

fn add_service(raw: &mut RawConfig, service: &RawService) -> Result<(), Error> {
    check::name("service", &service.name)?;
    if raw.services.iter().any(|s| s.name == service.name) {
        return Err(Error::ServiceExists {
            name: service.name.clone(),
        });
    }
    raw.services.push(service.clone());
    Ok(())
}

/// The service of this name, or at this place.
fn find(raw: &RawConfig, reference: &str) -> Result<usize, Error> {
    let by_name = raw.services.iter().position(|s| s.name == reference);
    let by_place = || {
        let place: ServiceEndpoint = reference.parse().ok()?;
        raw.services.iter().position(|s| {
            s.port == place.port
                && s.protocol.unwrap_or(super::Protocol::Tcp) == place.protocol
                && addresses(s).any(|text| is_ip(text, place.address))
        })
    };
    by_name.or_else(by_place).ok_or_else(|| Error::NoService {
        name: reference.into(),
        known: raw.services.iter().map(|s| s.name.clone()).collect(),
    })
}

fn addresses(service: &RawService) -> impl Iterator<Item = &str> {
    let listed = service.addresses.iter().map(|address| match address {
        RawAddress::Everywhere(address) => &**address,
        RawAddress::OnNode(on) => &*on.address,
    });
    service.address.iter().map(|a| &**a).chain(listed)
}

fn is_ip(text: &str, address: std::net::IpAddr) -> bool {
    parse::ip(text, String::new).is_ok_and(|ip| ip == address)
}

fn set_service(service: &mut RawService, set: &ServiceSet) -> Result<(), Error> {
    let ServiceSet {
        mode,
        algorithm,
        slots,
        no_address,
        timeouts,
        add_addresses,
        remove_addresses,
    } = set;
    if *set == ServiceSet::default() {
        return Err(Error::NothingToSet {
            options: "--mode, --algorithm, --slots, --address, --remove-address, --no-address or a \
                      timeout",
        });
    }
    service.mode = mode.or(service.mode);
    service.algorithm = algorithm.or(service.algorithm);
    service.slots = slots.or(service.slots);
    service.no_address = no_address.unwrap_or(service.no_address);
    let RawTimeouts {
        half_open,
        established,
        closing,
        udp,
    } = timeouts;
    let known = &mut service.timeouts;
    known.half_open = half_open.or(known.half_open);
    known.established = established.or(known.established);
    known.closing = closing.or(known.closing);
    known.udp = udp.or(known.udp);

    if add_addresses.is_empty() && remove_addresses.is_empty() {
        return Ok(());
    }
    if let Some(address) = service.address.take() {
        service.addresses.insert(0, RawAddress::Everywhere(address));
    }
    let of = || format!("service {:?}", service.name);
    for text in add_addresses {
        let address = parse::ip(text, of)?;
        let is_known = addresses(service).any(|known| is_ip(known, address));
        if !is_known {
            service.addresses.push(RawAddress::Everywhere(text.clone()));
        }
    }
    for text in remove_addresses {
        let address = parse::ip(text, of)?;
        let is_it = |known: &RawAddress| match known {
            RawAddress::Everywhere(known) => is_ip(known, address),
            RawAddress::OnNode(on) => is_ip(&on.address, address),
        };
        if !service.addresses.iter().any(is_it) {
            return Err(Error::NoAddress {
                service: service.name.clone(),
                address,
                known: addresses(service).map(str::to_owned).collect(),
            });
        }
        service.addresses.retain(|known| !is_it(known));
        if service.addresses.is_empty() {
            return Err(Error::LastAddress {
                service: service.name.clone(),
                address: text.clone(),
            });
        }
    }
    if let [RawAddress::Everywhere(only)] = &*service.addresses {
        service.address = Some(only.clone());
        service.addresses.clear();
    }
    Ok(())
}

fn socket(service: &RawService, text: &str) -> Result<SocketAddr, Error> {
    parse::socket(text, service.port, || {
        format!("backend {text} of service {:?}", service.name)
    })
}

fn add_backend(service: &mut RawService, backend: &RawBackend) -> Result<(), Error> {
    let address = socket(service, &backend.address)?;
    let is_known = service
        .backends
        .iter()
        .any(|known| socket(service, &known.address).is_ok_and(|known| known == address));
    if is_known {
        return Err(Error::BackendExists {
            service: service.name.clone(),
            address,
        });
    }
    service.backends.push(backend.clone());
    Ok(())
}

/// The backend at this address; the port may be left out where that is enough.
fn find_backend(service: &RawService, text: &str) -> Result<usize, Error> {
    let address = socket(service, text)?;
    let known: Vec<SocketAddr> = service
        .backends
        .iter()
        .map(|backend| socket(service, &backend.address))
        .collect::<Result<_, _>>()?;
    if let Some(index) = known.iter().position(|&known| known == address) {
        return Ok(index);
    }
    let has_port = text.parse::<SocketAddr>().is_ok();
    let mut alike = (0..known.len()).filter(|&i| known[i].ip() == address.ip());
    match (has_port, alike.next(), alike.next()) {
        (false, Some(index), None) => Ok(index),
        _ => Err(Error::NoBackend {
            service: service.name.clone(),
            address: text.into(),
            known: known.iter().map(SocketAddr::to_string).collect(),
        }),
    }
}

fn set_backend(service: &mut RawService, address: &str, set: &BackendSet) -> Result<(), Error> {
    let &BackendSet { weight, state } = set;
    if *set == BackendSet::default() {
        return Err(Error::NothingToSet {
            options: "--weight or --state",
        });
    }
    let index = find_backend(service, address)?;
    let backend = &mut service.backends[index];
    backend.weight = weight.or(backend.weight);
    backend.state = state.or(backend.state);
    Ok(())
}

fn remove_interface(raw: &mut RawConfig, name: &str) -> Result<(), Error> {
    let interfaces = raw.interfaces.get_or_insert_default();
    let Some(index) = interfaces.iter().position(|i| i.name == name) else {
        return Err(Error::NoInterface {
            name: name.into(),
            known: interfaces.iter().map(|i| i.name.clone()).collect(),
        });
    };
    interfaces.remove(index);
    Ok(())
}
