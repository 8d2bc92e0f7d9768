//! The ways to backends: next hop, source of outer headers, longest packet. The network says them,
//! and they are written into the backends' records whenever it says something else.

use std::net::IpAddr;

use anyhow::Result;
use lb_common::abi::{Address, Neighbour};

use super::Agent;
use crate::{
    config::Source,
    network::{InterfaceAddress, NextHop, Route},
    plan::{Way, is_there},
};

/// When, in a change of the configuration, the settings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// Before the backends: outer sources vary in no bit in which either configuration's do not.
    Old,
    /// After them.
    New,
}

impl Agent {
    /// Where packets to `hop` are addressed, as far as it is known.
    pub(super) fn frame(&self, hop: Option<NextHop>) -> Neighbour {
        hop.map_or_else(Neighbour::default, |hop| {
            self.seen.frame_addresses(hop, &self.links)
        })
    }

    /// Where packets to a backend's address go next; nothing if no route leads there.
    pub(super) fn hop_of(&self, address: IpAddr) -> Option<NextHop> {
        Some(self.routes.get(&address).copied().flatten()?.hop)
    }

    /// The way to a backend's address, as far as it is known.
    pub(super) fn way_of(&self, address: IpAddr) -> Way {
        let Some(route) = self.routes.get(&address).copied().flatten() else {
            return Way::default();
        };
        let link = self.links.iter().find(|l| l.index == route.hop.ifindex);
        let mtu = link.map(|link| link.mtu).into_iter().chain(route.mtu).min();
        Way {
            neighbour: self.frame(Some(route.hop)),
            source: self
                .source_to(address, &route)
                .map_or_else(Address::default, Address::from),
            mtu: mtu.map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX)),
        }
    }

    /// The source of outer headers towards `address`: the configuration's, else the address of this
    /// host that the kernel would send from. Never a service's address, which is other hosts' too.
    fn source_to(&self, address: IpAddr, route: &Route) -> Option<IpAddr> {
        match self.config.tunnel.source(address) {
            Source::Address(source) | Source::Prefix(source, _) => return Some(source),
            Source::Route => {}
        }
        let is_service = |source: IpAddr| {
            let services = &self.config.services;
            services.iter().any(|s| s.addresses.contains(&source))
        };
        if let Some(source) = route.source
            && !is_service(source)
        {
            return Some(source);
        }
        let is_usable = |a: &&InterfaceAddress| {
            let is_near = match a.address {
                IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
            };
            a.address.is_ipv4() == address.is_ipv4() && !is_near && !is_service(a.address)
        };
        let usable = self.host_addresses.iter().filter(is_usable);
        // Of the interface that packets leave by, and of those the one of the widest network.
        usable
            .min_by_key(|a| (a.ifindex != route.hop.ifindex, a.prefix))
            .map(|a| a.address)
    }

    /// Writes every backend's way that has changed.
    pub(super) async fn write_ways(&mut self) -> Result<()> {
        self.seen = self.network.neighbours().await?;
        let mut changed = Vec::new();
        for (&id, backend) in &self.tables.backends {
            if !is_there(backend) {
                continue;
            }
            let way = self.way_of(backend.address.ip());
            if self.ways.get(&id) != Some(&way) {
                changed.push((id, way));
            }
        }
        for (id, way) in changed {
            self.kernel.set_way(id, way)?;
            self.ways.insert(id, way);
        }
        Ok(())
    }

    /// Writes what concerns all services.
    pub(super) fn write_settings(&mut self, half: Half) -> Result<()> {
        let mut settings = self.config.settings();
        if half == Half::Old {
            let old = self.kernel.settings()?.tunnel;
            let both = |a: [u8; 4], b: [u8; 4]| std::array::from_fn(|i| a[i] & b[i]);
            let tunnel = &mut settings.tunnel;
            tunnel.vary4 = both(tunnel.vary4, old.vary4);
            tunnel.vary6 = both(tunnel.vary6, old.vary6);
        }
        self.kernel.set_settings(settings)
    }
}
