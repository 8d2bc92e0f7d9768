//! From what was typed to an [`Edit`].

use anyhow::Result;

use crate::{
    cli::{Backend, Egress, Service, ServiceAdd, ServiceChange, ServiceOptions},
    config::{
        BackendSet, Edit, Error, ServiceEndpoint, ServiceSet,
        egress::RawPrefix,
        raw::{RawAddress, RawBackend, RawService, RawTimeouts},
    },
};

/// `service add`, `del` and `set`.
pub(super) fn service(command: Service) -> Result<Edit> {
    Ok(match command {
        Service::List => unreachable!("a list is no change"),
        Service::Add(add) => Edit::ServiceAdd { service: new(add)? },
        Service::Del { service } => Edit::ServiceDel { service },
        Service::Set(ServiceChange {
            service,
            options,
            remove_address,
            put_address,
        }) => {
            let timeouts = timeouts(&options);
            let no_address = match (options.no_address, put_address) {
                (true, _) => Some(true),
                (false, true) => Some(false),
                (false, false) => None,
            };
            Edit::ServiceSet {
                service,
                set: ServiceSet {
                    mode: options.mode,
                    algorithm: options.algorithm,
                    slots: options.slots,
                    no_address,
                    timeouts,
                    add_addresses: options.address,
                    remove_addresses: remove_address,
                },
            }
        }
    })
}

fn new(add: ServiceAdd) -> Result<RawService, Error> {
    let ServiceAdd {
        endpoint,
        name,
        options,
    } = add;
    let place: ServiceEndpoint = endpoint.parse()?;
    let timeouts = timeouts(&options);
    let first = place.address.to_string();
    let (address, addresses) = if options.address.is_empty() {
        (Some(first), Vec::new())
    } else {
        let all = std::iter::once(first).chain(options.address);
        (None, all.map(RawAddress::Everywhere).collect())
    };
    Ok(RawService {
        name: name.unwrap_or_else(|| place.name()),
        address,
        addresses,
        port: place.port,
        protocol: Some(place.protocol),
        mode: options.mode,
        algorithm: options.algorithm,
        slots: options.slots,
        no_address: options.no_address,
        timeouts,
        backends: Vec::new(),
    })
}

fn timeouts(options: &ServiceOptions) -> RawTimeouts {
    RawTimeouts {
        half_open: options.half_open,
        established: options.established,
        closing: options.closing,
        udp: options.udp,
    }
}

/// `egress add` and `del`.
pub(super) fn egress(command: Egress) -> Edit {
    match command {
        Egress::List => unreachable!("a list is no change"),
        Egress::Add { prefix, interface } => Edit::EgressAdd {
            egress: RawPrefix { prefix, interface },
        },
        Egress::Del { prefix } => Edit::EgressDel { prefix },
    }
}

/// `backend add`, `del` and `set`.
pub(super) fn backend(command: Backend) -> Edit {
    match command {
        Backend::List { .. } => unreachable!("a list is no change"),
        Backend::Add {
            service,
            address,
            weight,
            state,
        } => Edit::BackendAdd {
            service,
            backend: RawBackend {
                address,
                weight,
                state,
            },
        },
        Backend::Del { service, address } => Edit::BackendDel { service, address },
        Backend::Set {
            service,
            address,
            weight,
            state,
        } => Edit::BackendSet {
            service,
            address,
            set: BackendSet { weight, state },
        },
    }
}
