//! Following the network: interfaces that come, go and change, next hops that move.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use ::log::{info, warn};
use anyhow::Result;

use super::Agent;
use crate::network::{Changed, NextHop};

/// How long a change waits for the next hops of new backends to answer.
const PATIENCE: Duration = Duration::from_millis(300);

/// How often it looks.
const GLANCE: Duration = Duration::from_millis(5);

/// A next hop that the program misses is asked for no more often.
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl Agent {
    /// Makes good what a change of the network has made different.
    pub(super) async fn follow(&mut self, changed: Changed) -> Result<()> {
        if changed.links || changed.addresses {
            self.look().await?;
            let mut notes = Vec::new();
            if changed.links {
                self.attach_again(&mut notes);
            }
            self.write_locals()?;
            let before = self.state.addresses.clone();
            self.fill(&mut notes).await?;
            if before != self.state.addresses {
                self.folder.save(&self.state)?;
            }
            if !notes.is_empty() {
                // What was put on interfaces is to be seen from now on.
                self.look().await?;
            }
            notes.iter().for_each(|note| info!("{note}"));
        }
        if changed.links || changed.addresses || changed.routes {
            self.find_hops().await?;
            let mut notes = Vec::new();
            if let Err(error) = self.masquerade(&mut notes).await {
                warn!("{error:#}");
            }
            notes.iter().for_each(|note| info!("{note}"));
        }
        self.write_ways().await
    }

    /// Attaches to interfaces that have come back.
    fn attach_again(&mut self, notes: &mut Vec<String>) {
        let config = self.config.clone();
        for interface in &config.interfaces {
            if let Err(error) = self.attach(interface, false, notes) {
                warn!("{}: {error:#}", interface.name);
            }
        }
        let has_attached = notes.iter().any(|note| note.starts_with("attached"));
        if has_attached && let Err(error) = self.prepare_host(&config, notes) {
            warn!("{error:#}");
        }
    }

    /// Looks up where backends are, and has those next hops, and every gateway of an attached
    /// interface, kept resolved.
    pub(super) async fn find_hops(&mut self) -> Result<()> {
        let backends: BTreeSet<IpAddr> = self
            .config
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(|b| b.address.ip()))
            .collect();
        self.routes.clear();
        for address in backends {
            let route = self.network.way(address).await?;
            self.routes.insert(address, route);
        }
        let attached: BTreeSet<u32> = self
            .attachments
            .values()
            .filter_map(|a| a.ifindex)
            .collect();
        let mut wanted = self.network.gateways(&attached).await?;
        wanted.extend(self.routes.values().flatten().map(|route| route.hop));
        for (hop, error) in self.network.keep_resolved(&wanted).await? {
            warn!("next hop {}: {error:#}", hop.address);
        }
        Ok(())
    }

    /// Has the next hops of the configuration's backends resolved, and waits a moment for those
    /// that have just been asked for.
    pub(super) async fn resolve_backends(&mut self, notes: &mut Vec<String>) -> Result<()> {
        self.find_hops().await?;
        let known: BTreeSet<IpAddr> = self
            .tables
            .backends
            .values()
            .filter(|b| crate::plan::is_there(b))
            .map(|b| b.address.ip())
            .collect();
        let new: Vec<(IpAddr, Option<NextHop>)> = self
            .routes
            .iter()
            .filter(|(address, _)| !known.contains(address))
            .map(|(&address, route)| (address, route.map(|route| route.hop)))
            .collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.seen = self.network.neighbours().await?;
            let unresolved: Vec<IpAddr> = new
                .iter()
                .filter(|(_, hop)| !self.frame(*hop).is_resolved())
                .map(|&(address, _)| address)
                .collect();
            // What has no route does not answer either.
            let is_hopeless = new
                .iter()
                .all(|(address, hop)| hop.is_none() || !unresolved.contains(address));
            if is_hopeless || Instant::now() >= deadline {
                notes.extend(unresolved.iter().map(|address| self.unresolved(*address)));
                return Ok(());
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    fn unresolved(&self, address: IpAddr) -> String {
        match self.hop_of(address) {
            None => format!("note: there is no route to backend {address}"),
            Some(hop) if hop.address == address => format!(
                "note: backend {address} does not answer {} yet",
                if address.is_ipv4() {
                    "ARP"
                } else {
                    "neighbour discovery"
                }
            ),
            Some(hop) => format!(
                "note: the gateway {} to backend {address} does not answer yet",
                hop.address
            ),
        }
    }

    /// Has the next hop towards `address` resolved now: the program misses it.
    pub(super) async fn ask(&mut self, address: IpAddr) -> Result<()> {
        let now = Instant::now();
        self.asked.retain(|_, at| now - *at < ASK_AGAIN);
        if self.asked.insert(address, now).is_some() {
            return Ok(());
        }
        match self.network.resolve(address).await? {
            Some(hop) => self.network.ask(hop).await,
            None => Ok(()),
        }
    }
}
