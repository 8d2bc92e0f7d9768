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

use ipnet::IpNet;
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
    /// TCP announces segments that fit into the tunnel: answers to SYNs go past the load balancer.
    Advmss {
        /// Whether it is the default route of IPv4.
        ipv4: bool,
        /// The largest segment, in bytes.
        most: u32,
    },
    /// Packets are taken out of the tunnel.
    Decap {
        /// Where they come from.
        from: IpNet,
        /// The UDP port of GUE.
        gue_port: u16,
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
    /// The load balancer's address of the service's family on the same interface.
    pub like_service: Option<IpAddr>,
    /// MTU of the load balancer's way to the backend.
    pub mtu: u32,
    /// The smallest MTU of the interfaces it is attached to.
    pub least_mtu: u32,
    /// Where outer headers come from.
    pub outer: Option<IpNet>,
    /// The UDP port of GUE.
    pub gue_port: u16,
}

/// What the backend needs.
pub fn recipe(facts: &Facts) -> Recipe {
    let needs = match facts.mode {
        Mode::Nat => nat(facts),
        Mode::DsrL2 => direct(facts, Vec::new()),
        Mode::DsrIpip => direct(facts, tunnel(facts, 0)),
        Mode::DsrGue => direct(facts, tunnel(facts, UDP_HEADER)),
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

/// Bytes of a UDP header.
const UDP_HEADER: u32 = 8;

/// Bytes of an IP header like that of `address`.
const fn ip_header(address: IpAddr) -> u32 {
    if address.is_ipv4() { 20 } else { 40 }
}

/// Bytes of a TCP header.
const TCP_HEADER: u32 = 20;

/// What comes in is in a tunnel, with so many bytes between the IP headers.
fn tunnel(facts: &Facts, between: u32) -> Vec<Need> {
    let service = facts.addresses[0];
    let around = ip_header(facts.backend.ip()) + between + ip_header(service) + TCP_HEADER;
    let advmss = Need::Advmss {
        ipv4: service.is_ipv4(),
        most: facts.mtu.saturating_sub(around),
    };
    let decap = facts.outer.map(|from| Need::Decap {
        from,
        gue_port: facts.gue_port,
    });
    let is_tcp = facts.protocol == Protocol::Tcp;
    is_tcp.then_some(advmss).into_iter().chain(decap).collect()
}

/// Answers go past the load balancer, from the service's address. `tunnel` is what else is needed
/// for requests to come in; the address is there before they do.
fn direct(facts: &Facts, tunnel: Vec<Need>) -> Vec<Need> {
    let balancer = facts.like_service;
    let way_out = balancer.map(|balancer| Need::WayOfItsOwn { balancer });
    let mut needs: Vec<Need> = way_out.into_iter().collect();
    if facts.addresses[0].is_ipv4() {
        // Before the address: else the backend would take the service's traffic from the load
        // balancer.
        needs.extend([Need::ArpSilence, Need::LooseReversePath]);
    }
    let addresses = || facts.addresses.iter().copied();
    needs.extend(addresses().map(|address| Need::Address { address }));
    needs.extend(tunnel);
    needs.extend(addresses().map(|address| Need::Server {
        at: SocketAddr::new(address, facts.port),
        protocol: facts.protocol,
    }));
    needs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(mode: Mode) -> Facts {
        Facts {
            service: "web".into(),
            mode,
            addresses: vec![[203, 0, 113, 10].into()],
            port: 80,
            protocol: Protocol::Tcp,
            backend: "10.0.1.11:80".parse().unwrap(),
            balancer: [10, 0, 1, 1].into(),
            router: None,
            like_service: Some([10, 0, 1, 1].into()),
            mtu: 1500,
            least_mtu: 1500,
            outer: Some("10.0.1.1/32".parse().unwrap()),
            gue_port: 6080,
        }
    }

    fn titles(facts: &Facts) -> Vec<String> {
        recipe(facts).needs.iter().map(Need::title).collect()
    }

    #[test]
    fn requests_come_out_of_the_tunnel_when_everything_else_is_there() {
        let all = titles(&facts(Mode::DsrIpip));
        assert_eq!(
            all,
            [
                "default route not via 10.0.1.1",
                "arp_ignore 1, arp_announce 2",
                "rp_filter 0 or 2",
                "203.0.113.10/32 on lo",
                "advmss 1440 on the default route",
                "decap from 10.0.1.1",
                "a server at 203.0.113.10:80/tcp",
            ]
        );
    }

    #[test]
    fn segments_leave_room_for_every_header() {
        let six: IpAddr = "2001:db8:5::10".parse().unwrap();
        let outer6 = "[2001:db8:b::11]:80".parse().unwrap();
        for (mode, service, backend, most) in [
            (Mode::DsrIpip, None, None, 1440),
            (Mode::DsrIpip, Some(six), None, 1420),
            (Mode::DsrIpip, Some(six), Some(outer6), 1400),
            (Mode::DsrGue, None, None, 1432),
            (Mode::DsrGue, Some(six), None, 1412),
            (Mode::DsrGue, None, Some(outer6), 1412),
        ] {
            let mut facts = facts(mode);
            facts.addresses = service.map_or(facts.addresses, |service| vec![service]);
            facts.backend = backend.unwrap_or(facts.backend);
            let title = format!("advmss {most} on the default route");
            assert!(titles(&facts).contains(&title), "{:?}", titles(&facts));
        }
    }

    #[test]
    fn a_recipe_travels_as_json() {
        for mode in Mode::ALL {
            let sent = recipe(&facts(*mode));
            let json = serde_json::to_string(&sent).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), sent);
        }
    }

    #[test]
    fn a_router_between_is_told_of_and_nothing_typed() {
        let mut facts = facts(Mode::Nat);
        facts.router = Some([10, 0, 9, 1].into());
        let recipe = recipe(&facts);
        assert!(recipe.needs[0].commands("eth0").is_empty());
        assert!(shell::script(&recipe).contains("10.0.9.1 and every router behind it"));
    }
}
