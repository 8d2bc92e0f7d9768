//! What a backend must have for its service's mode to work: said on the load balancer, done and
//! checked on the backend.
//!
//! [`recipe`] is pure: from what the load balancer knows to the list of [`Need`]s, in an order in
//! which nothing vanishes while they are met one after the other. A [`Recipe`] travels as JSON.
//! [`shell`] is the same as commands; [`check`] looks which needs are met on the machine it runs on.

pub mod check;
mod listening;
pub mod shell;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::config::{Mode, Protocol};

/// What one backend of one service needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The service's name.
    pub service: String,
    /// How its packets are forwarded.
    pub mode: Mode,
    /// The backend's address and port.
    pub backend: SocketAddr,
    /// The load balancer's own address towards the backend.
    pub balancer: IpAddr,
    /// What the backend needs, in the order in which it is to be met.
    pub needs: Vec<Need>,
}

/// One thing that a backend needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "need", rename_all = "kebab-case")]
pub enum Need {
    /// Its default route is the load balancer.
    DefaultRoute {
        /// The load balancer's address on the backend's network.
        via: IpAddr,
        /// The most that a packet may have on the way to the clients, in bytes, where that is less
        /// than on the backend's network.
        mtu: Option<u32>,
    },
    /// Routers are between: the load balancer must be on their way to the clients.
    RoutedBack {
        /// The load balancer's address.
        balancer: IpAddr,
        /// The router that is next to it on the way to the backend.
        router: IpAddr,
    },
    /// Its default route is another one than the load balancer, which would drop answers that have
    /// its own address as their source.
    WayOfItsOwn {
        /// The load balancer's address.
        balancer: IpAddr,
    },
    /// ARP requests for the service's address are not answered, and ARP does not name it.
    ArpSilence,
    /// Requests that come in on another interface than answers leave by are not dropped.
    LooseReversePath,
    /// It has the service's address, where nobody hears of it.
    Address {
        /// The service's address.
        address: IpAddr,
    },
    /// A server listens.
    Server {
        /// Where.
        at: SocketAddr,
        /// The protocol.
        protocol: Protocol,
    },
}

/// What the load balancer knows of a backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The service's name.
    pub service: String,
    /// Its mode.
    pub mode: Mode,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The backend's address and port.
    pub backend: SocketAddr,
    /// The load balancer's own address towards the backend.
    pub balancer: IpAddr,
    /// The router towards the backend, if it is not on a network of the load balancer's.
    pub router: Option<IpAddr>,
    /// MTU of the load balancer's interface towards the backend.
    pub mtu: u32,
    /// The smallest MTU of the interfaces it is attached to.
    pub least_mtu: u32,
}

/// What the backend needs.
pub fn recipe(facts: &Facts) -> Recipe {
    let needs = match facts.mode {
        Mode::Nat => nat(facts),
        Mode::DsrL2 => direct(facts),
    };
    Recipe {
        service: facts.service.clone(),
        mode: facts.mode,
        backend: facts.backend,
        balancer: facts.balancer,
        needs,
    }
}

/// Answers go through the load balancer.
fn nat(facts: &Facts) -> Vec<Need> {
    let way_back = match facts.router {
        None => Need::DefaultRoute {
            via: facts.balancer,
            mtu: (facts.least_mtu < facts.mtu).then_some(facts.least_mtu),
        },
        Some(router) => Need::RoutedBack {
            balancer: facts.balancer,
            router,
        },
    };
    let server = Need::Server {
        at: facts.backend,
        protocol: facts.protocol,
    };
    vec![way_back, server]
}

/// Answers go past the load balancer, from the service's address.
fn direct(facts: &Facts) -> Vec<Need> {
    let mut needs = vec![Need::WayOfItsOwn {
        balancer: facts.balancer,
    }];
    if facts.balancer.is_ipv4() {
        // Before the address: else the backend would take the service's traffic from the load
        // balancer.
        needs.extend([Need::ArpSilence, Need::LooseReversePath]);
    }
    let addresses = || facts.addresses.iter().copied();
    needs.extend(addresses().map(|address| Need::Address { address }));
    needs.extend(addresses().map(|address| Need::Server {
        at: SocketAddr::new(address, facts.port),
        protocol: facts.protocol,
    }));
    needs
}
