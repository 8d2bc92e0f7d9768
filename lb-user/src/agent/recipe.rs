//! What the load balancer knows of its backends, for their recipes.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;

use super::Agent;
use crate::{
    api::RecipeFilter,
    config::{Backend, Error, Service},
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
        let attached = self
            .links
            .iter()
            .filter(|link| self.is_attached(&link.name));
        let mtu = self.links.iter().find(|link| link.index == hop.ifindex);
        let mtu = mtu.map_or(0, |link| link.mtu);
        Ok(Facts {
            service: service.name.clone(),
            mode: service.mode,
            addresses: service.addresses.clone(),
            port: service.port,
            protocol: service.protocol,
            backend: backend.address,
            balancer: self.own_address(hop)?,
            router: (hop.address != address).then_some(hop.address),
            mtu,
            least_mtu: attached.map(|link| link.mtu).min().unwrap_or(mtu),
        })
    }

    /// This host's address on the network of `hop`; where networks have no length (a `/32` with a
    /// router beside it), the interface's own.
    fn own_address(&self, hop: NextHop) -> Result<IpAddr> {
        let is_service = |address: IpAddr| {
            let mut services = self.config.services.iter();
            services.any(|service| service.addresses.contains(&address))
        };
        let own: Vec<&InterfaceAddress> = self
            .host_addresses
            .iter()
            .filter(|a| a.ifindex == hop.ifindex)
            .filter(|a| a.address.is_ipv4() == hop.address.is_ipv4())
            .collect();
        let is_on = |a: &InterfaceAddress| {
            IpNet::new(a.address, a.prefix).is_ok_and(|net| net.contains(&hop.address))
        };
        let mut near = own.iter().filter(|a| is_on(a));
        near.next()
            .or_else(|| own.iter().find(|a| !is_service(a.address)))
            .map(|a| a.address)
            .with_context(|| {
                format!(
                    "the load balancer has no address on the network of {}: give it one",
                    hop.address
                )
            })
    }
}
