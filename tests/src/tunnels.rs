//! Services in tunnel modes, and backends that take packets out of the tunnels with
//! `lb-user decap`.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::{
    agent::Agent,
    client::{Conversation, Datagrams},
    server::Mirror,
    topology::{Arms, Family, Host, Network, Return, service},
};

/// Port of the services.
pub const PORT: u16 = 7000;

/// The services, one for each protocol, with the same backends.
pub const SERVICES: [(&str, &str); 2] = [("web", "tcp"), ("dns", "udp")];

/// A network with tunnels, its parts in the order of removal.
#[derive(Debug)]
pub struct Tunnels {
    /// The program under test.
    pub agent: Agent,
    mirrors: Vec<Mirror>,
    /// The machines.
    pub network: Network,
    /// `dsr-ipip` or `dsr-gue`.
    pub mode: &'static str,
    family: Family,
}

impl Tunnels {
    /// A network with one backend for each of `outer`, reached over that family, and services `web`
    /// and `dns` on port [`PORT`] of `family`. The backends answer past the balancer.
    ///
    /// # Errors
    ///
    /// When something does not come up.
    pub fn build(mode: &'static str, arms: Arms, family: Family, outer: &[Family]) -> Result<Self> {
        let network = Network::build(arms, Return::Direct, u8::try_from(outer.len())?)?;
        let mut tunnels = Self {
            agent: Agent::attached(&network)?,
            mirrors: Vec::new(),
            network,
            mode,
            family,
        };
        for backend in &tunnels.network.backends {
            tunnels.receive(backend, &sources())?;
            let mirror = Mirror::start(&backend.netns, &backend.name, &[tunnels.service(PORT)])?;
            tunnels.mirrors.push(mirror);
        }
        let backends: Vec<IpAddr> = outer
            .iter()
            .zip(&tunnels.network.backends)
            .map(|(&family, host)| host.address(family))
            .collect();
        for (name, protocol) in SERVICES {
            tunnels.add(name, PORT, protocol, &backends)?;
        }
        tunnels.agent.resolved()?;
        Ok(tunnels)
    }

    /// Adds a service with backends.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn add(&self, name: &str, port: u16, protocol: &str, backends: &[IpAddr]) -> Result<()> {
        let (to, mode) = (self.service(port), self.mode);
        self.agent.ok(&format!(
            "service add {to}/{protocol} --name {name} --mode {mode}"
        ))?;
        for backend in backends {
            self.agent.ok(&format!("backend add {name} {backend}"))?;
        }
        Ok(())
    }

    /// Lets a backend take packets out of tunnels from these addresses and networks, and no others.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn receive(&self, backend: &Host, from: &[String]) -> Result<()> {
        let from: Vec<String> = from.iter().map(|from| format!("--from {from}")).collect();
        self.agent.ok_beside(
            &backend.name,
            &format!(
                "decap attach eth0 {} --netns {}",
                from.join(" "),
                backend.netns.name()
            ),
        )?;
        Ok(())
    }

    /// The services' address with a port.
    #[must_use]
    pub const fn service(&self, port: u16) -> SocketAddr {
        SocketAddr::new(service(self.family), port)
    }

    /// The client's address with a port; 0 for any.
    #[must_use]
    pub const fn client(&self, port: u16) -> SocketAddr {
        self.network.client.at(self.family, port)
    }

    /// A new TCP connection from the client to the service.
    ///
    /// # Errors
    ///
    /// When it is not accepted.
    pub fn conversation(&self, port: u16) -> Result<Conversation> {
        let client = &self.network.client.netns;
        Conversation::open(client, self.client(port), self.service(PORT))
    }

    /// A new UDP socket of the client, connected to the service.
    ///
    /// # Errors
    ///
    /// When there is no route.
    pub fn datagrams(&self, port: u16) -> Result<Datagrams> {
        let client = &self.network.client.netns;
        Datagrams::open(client, self.client(port), self.service(PORT))
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        for backend in &self.network.backends {
            if let Err(error) = self.agent.ok_beside(&backend.name, "decap detach") {
                println!("{error:#}");
            }
        }
    }
}

/// The balancer's addresses on the backends' side.
#[must_use]
pub fn sources() -> Vec<String> {
    vec!["10.0.1.1".to_owned(), "2001:db8:b::1".to_owned()]
}
