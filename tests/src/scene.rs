//! A network with the load balancer attached, two services and mirrors behind them: what most network
//! tests begin with.

use std::net::SocketAddr;

use anyhow::Result;

use crate::{
    agent::Agent,
    client::{Conversation, Datagrams},
    server::Mirror,
    topology::{Arms, Family, Network, Return, service},
};

/// How packets are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Destination rewritten, answers come back through the balancer.
    Nat,
    /// Only MAC addresses rewritten, answers go past the balancer.
    DsrL2,
}

impl Mode {
    /// As on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::DsrL2 => "dsr-l2",
        }
    }

    /// The way that answers take.
    #[must_use]
    pub const fn way_back(self) -> Return {
        match self {
            Self::Nat => Return::ThroughBalancer,
            Self::DsrL2 => Return::Direct,
        }
    }
}

/// Port of the services in a [`Scene`].
pub const PORT: u16 = 7000;

/// Port of the backends in mode `nat`: another one, so that it has to be rewritten.
const NAT_PORT: u16 = 7001;

/// Names of the two services: one for each protocol, with the same backends.
pub const SERVICES: [(&str, &str); 2] = [("web", "tcp"), ("dns", "udp")];

/// The network, with its parts in the order of removal.
#[derive(Debug)]
pub struct Scene {
    /// The program under test.
    pub agent: Agent,
    mirrors: Vec<Mirror>,
    /// The machines.
    pub network: Network,
    family: Family,
    mode: Mode,
}

impl Scene {
    /// A network with one machine and one mirror for each of `weights`, and services `web` (TCP)
    /// and `dns` (UDP) on port [`PORT`] that have them as backends `b1`, `b2`, … of these weights.
    /// A backend of weight 0 is not added to the services.
    ///
    /// # Errors
    ///
    /// When something does not come up.
    pub fn build(mode: Mode, arms: Arms, family: Family, weights: &[u16]) -> Result<Self> {
        let network = Network::build(arms, mode.way_back(), u8::try_from(weights.len())?)?;
        let mut scene = Self {
            agent: Agent::attached(&network)?,
            mirrors: Vec::new(),
            network,
            family,
            mode,
        };
        for index in 0..weights.len() {
            let backend = &scene.network.backends[index];
            let mirror = Mirror::start(&backend.netns, &backend.name, &[scene.asked_at(index)])?;
            scene.mirrors.push(mirror);
        }
        for (name, protocol) in SERVICES {
            scene.agent.ok(&format!(
                "service add {}/{protocol} --name {name} --mode {}",
                scene.service(),
                mode.name()
            ))?;
            for (index, &weight) in weights
                .iter()
                .enumerate()
                .filter(|(_, weight)| **weight > 0)
            {
                let backend = scene.backend(index);
                scene
                    .agent
                    .ok(&format!("backend add {name} {backend} --weight {weight}"))?;
            }
        }
        scene.agent.resolved()?;
        Ok(scene)
    }

    /// IP version of the services.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Address and port of the services.
    #[must_use]
    pub const fn service(&self) -> SocketAddr {
        SocketAddr::new(service(self.family), PORT)
    }

    /// Backend `index`, counted from 0, as the command line names it.
    #[must_use]
    pub fn backend(&self, index: usize) -> SocketAddr {
        let port = match self.mode {
            Mode::Nat => NAT_PORT,
            Mode::DsrL2 => PORT,
        };
        self.network.backends[index].at(self.family, port)
    }

    /// Where backend `index`, counted from 0, listens for the service.
    #[must_use]
    pub fn asked_at(&self, index: usize) -> SocketAddr {
        match self.mode {
            Mode::Nat => self.backend(index),
            Mode::DsrL2 => self.service(),
        }
    }

    /// The client's address with a port; 0 for any.
    #[must_use]
    pub const fn client(&self, port: u16) -> SocketAddr {
        self.network.client.at(self.family, port)
    }

    /// Carries out the same `backend` command for both services: `what` is `add`, `del` or `set`,
    /// followed by the backend and `flags`.
    ///
    /// # Errors
    ///
    /// When the command fails.
    pub fn change(&self, what: &str, index: usize, flags: &str) -> Result<()> {
        for (name, _) in SERVICES {
            let backend = self.backend(index);
            self.agent
                .ok(&format!("backend {what} {name} {backend} {flags}"))?;
        }
        Ok(())
    }

    /// A new TCP connection from the client to the service.
    ///
    /// # Errors
    ///
    /// When it is not accepted.
    pub fn conversation(&self) -> Result<Conversation> {
        Conversation::open(&self.network.client.netns, self.client(0), self.service())
    }

    /// A new UDP socket of the client, connected to the service.
    ///
    /// # Errors
    ///
    /// When there is no route.
    pub fn datagrams(&self) -> Result<Datagrams> {
        Datagrams::open(&self.network.client.netns, self.client(0), self.service())
    }
}
