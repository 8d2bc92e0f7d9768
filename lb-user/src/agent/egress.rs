//! The backends' way out: what the configuration's `[egress]` means on this host now, and whether
//! the kernel does it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};

use super::Agent;
use crate::{
    api::{Count, Egress},
    network::masquerade::{Carried, Counted, Rules, Source, Table, nameable},
};

impl Agent {
    /// Has the kernel masquerade what the configuration says, and nothing if it says nothing. A
    /// table that somebody has removed is put there again.
    pub(super) async fn masquerade(&mut self, notes: &mut Vec<String>) -> Result<()> {
        let table = Table::of(self.instance.name());
        if self.config.egress.is_empty() {
            if self.state.nftables {
                table.remove().await?;
                notes.push(format!("removed the nftables table {}", table.name()));
                self.state.nftables = false;
                self.remember_table()?;
            }
            self.masqueraded = None;
            return Ok(());
        }
        let rules = self.rules().await?;
        if self.masqueraded.as_ref() == Some(&rules) && table.carried().await?.is_some() {
            return Ok(());
        }
        let is_new = !self.state.nftables;
        if is_new {
            // Should the agent be killed in between, the table is known to be ours.
            self.state.nftables = true;
            self.remember_table()?;
        }
        if let Err(error) = table.put(&rules).await {
            if is_new {
                self.state.nftables = false;
                self.remember_table()?;
            }
            return Err(error);
        }
        let known = self.masqueraded.iter().flat_map(|rules| &rules.sources);
        let known: Vec<&Source> = known.collect();
        for source in rules.sources.iter().filter(|s| !known.contains(s)) {
            notes.push(match self.obstacle(source) {
                None => format!("masquerading {} out of {}", source.prefix, way(source)),
                Some(why) => format!("note: egress {}: {why}", source.prefix),
            });
        }
        self.masqueraded = Some(rules);
        Ok(())
    }

    /// What each prefix has carried, and how it leaves.
    pub(super) async fn egress(&self) -> Vec<Egress> {
        if self.config.egress.is_empty() {
            return Vec::new();
        }
        let carried = match Table::of(self.instance.name()).carried().await {
            Ok(Some(carried)) => Ok(carried),
            Ok(None) => Err("the nftables table is gone, it will be put there again".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        };
        let sources = self.masqueraded.iter().flat_map(|rules| &rules.sources);
        let sources: BTreeMap<_, _> = sources.map(|s| (s.prefix, s)).collect();
        let described = self.config.egress.iter().map(|egress| {
            let counted = carried.as_ref().ok().and_then(|c| c.get(&egress.prefix));
            let Carried { new, out, back } = counted.copied().unwrap_or_default();
            let source = sources.get(&egress.prefix).copied();
            let note = match &carried {
                Err(why) => Some(why.clone()),
                Ok(_) => source.and_then(|source| self.obstacle(source)),
            };
            let interfaces = source
                .into_iter()
                .flat_map(|source| source.interfaces.clone());
            Egress {
                prefix: egress.prefix.to_string(),
                interface: egress.interface.clone(),
                interfaces: interfaces.collect(),
                connections: new.packets,
                out: out.into(),
                back: back.into(),
                note,
            }
        });
        described.collect()
    }

    /// Why connections of a prefix are not masqueraded, if they are not.
    fn obstacle(&self, source: &Source) -> Option<String> {
        let is_there = |name: &str| self.links.iter().any(|link| link.name == name);
        if source.interfaces.is_empty() {
            let why = "no attached interface has a default route: name one with --interface";
            return Some(why.to_owned());
        }
        let absent = source.interfaces.iter().find(|name| !is_there(name))?;
        Some(format!("the interface {absent} is not there"))
    }

    /// What the table is to do now.
    async fn rules(&self) -> Result<Rules> {
        let mut sources = Vec::new();
        for egress in &self.config.egress {
            let interfaces = match &egress.interface {
                Some(name) => [name.clone()].into(),
                None => self.outward(egress.prefix.addr()).await?,
            };
            sources.push(Source {
                prefix: egress.prefix,
                interfaces,
            });
        }
        let services = &self.config.services;
        let serving = services.iter().flat_map(|service| {
            let backends = service.backends.iter();
            backends.map(|backend| (backend.address, service.protocol.abi()))
        });
        Ok(Rules {
            sources,
            services: services.iter().flat_map(|s| s.addresses.clone()).collect(),
            // Port 0 is any port: then a packet's port says nothing.
            backends: serving.filter(|(at, _)| at.port() != 0).collect(),
        })
    }

    /// The attached interfaces that a default route of the family goes out of.
    async fn outward(&self, like: IpAddr) -> Result<BTreeSet<String>> {
        let routes = self.network.default_routes(like).await?;
        let names = self
            .links
            .iter()
            .filter(|link| {
                routes.iter().any(|r| r.ifindex == link.index) && self.is_attached(&link.name)
            })
            .map(|link| link.name.clone());
        Ok(names.filter(|name| nameable(name)).collect())
    }

    /// Keeps whether there is a table, and nothing else that has changed meanwhile.
    fn remember_table(&self) -> Result<()> {
        let mut kept = self.folder.load()?.unwrap_or_else(|| self.state.clone());
        kept.nftables = self.state.nftables;
        self.folder
            .save(&kept)
            .context("cannot keep that there is an nftables table")
    }
}

/// The interfaces in words.
fn way(source: &Source) -> String {
    let names: Vec<&str> = source.interfaces.iter().map(|name| &**name).collect();
    names.join(" and ")
}

impl From<Counted> for Count {
    fn from(Counted { packets, bytes }: Counted) -> Self {
        Self { packets, bytes }
    }
}
