//! What the load balancer knows of its backends, for their recipes.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use lb_common::abi::Address;

use super::Agent;
use crate::{
    api::RecipeFilter,
    config::{Backend, Error, Service, Source},
    network::{InterfaceAddress, NextHop},
    recipe::{Facts, Recipe, recipe},
};

impl Agent {
    /// The recipes of a service's backends, or of one.
    pub(super) async fn recipes(&mut self, filter: &RecipeFilter) -> Result<Vec<Recipe>> {
        self.look().await?;
        let RecipeFilter { service, backend } = filter;
        let no_service = || Error::NoService {
            name: service.clone(),
            known: self
                .config
                .services
                .iter()
                .map(|s| s.name.clone())
                .collect(),
        };
        let service = self.config.service(service).ok_or_else(no_service)?;
        let is_asked = |known: &&Backend| {
            backend.as_ref().is_none_or(|text| {
                let address = known.address;
                let bare = text.trim_matches(['[', ']']);
                *text == address.to_string() || bare.parse() == Ok(address.ip())
            })
        };
        let asked: Vec<&Backend> = service.backends.iter().filter(is_asked).collect();
        if let (Some(address), true) = (backend, asked.is_empty()) {
            return Err(Error::NoBackend {
                service: service.name.clone(),
                address: address.clone(),
                known: service
                    .backends
                    .iter()
                    .map(|b| b.address.to_string())
                    .collect(),
            }
            .into());
        }
        let mut recipes = Vec::new();
        for backend in asked {
            recipes.push(recipe(&self.facts(service, backend).await?));
        }
        Ok(recipes)
    }

    async fn facts(&self, service: &Service, backend: &Backend) -> Result<Facts> {
        let address = backend.address.ip();
        let hop = self.network.resolve(address).await?;
        let hop = hop.with_context(|| format!("there is no route to backend {address}"))?;
        let own = |like: IpAddr| self.own_address(hop, like);
        let balancer = own(address).with_context(|| {
            format!(
                "the load balancer has no address on the network of {}: give it one",
                hop.address
            )
        })?;
        let way = self.way_of(address);
        let outer = match self.config.tunnel.source(address) {
            Source::Prefix(network, length) => IpNet::new(network, length).ok(),
            Source::Address(source) => Some(source.into()),
            Source::Route if way.source == Address::default() => None,
            Source::Route => Some(way.source.ip().into()),
        };
        let attached = self.links.iter().filter(|l| self.is_attached(&l.name));
        let link = self.links.iter().find(|link| link.index == hop.ifindex);
        let mtu = match way.mtu {
            0 => link.map_or(0, |link| link.mtu),
            mtu => u32::from(mtu),
        };
        Ok(Facts {
            service: service.name.clone(),
            mode: service.mode,
            addresses: service.addresses.clone(),
            port: service.port,
            protocol: service.protocol,
            backend: backend.address,
            balancer,
            router: (hop.address != address).then_some(hop.address),
            like_service: own(service.addresses[0]),
            mtu,
            least_mtu: attached.map(|link| link.mtu).min().unwrap_or(mtu),
            outer,
            gue_port: self.config.tunnel.gue_port,
        })
    }

    /// This host's address of the family of `like` on the network of `hop`, or else another one of
    /// that interface, but no service's.
    fn own_address(&self, hop: NextHop, like: IpAddr) -> Option<IpAddr> {
        let is_service = |address: IpAddr| {
            let mut services = self.config.services.iter();
            services.any(|service| service.addresses.contains(&address))
        };
        let is_local = |address| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let own: Vec<&InterfaceAddress> = self
            .host_addresses
            .iter()
            .filter(|a| a.ifindex == hop.ifindex && a.address.is_ipv4() == like.is_ipv4())
            .filter(|a| !is_local(a.address))
            .collect();
        let is_on = |a: &InterfaceAddress| {
            IpNet::new(a.address, a.prefix).is_ok_and(|net| net.contains(&hop.address))
        };
        let near = own.iter().find(|a| is_on(a));
        near.or_else(|| own.iter().find(|a| !is_service(a.address)))
            .map(|a| a.address)
    }
}
