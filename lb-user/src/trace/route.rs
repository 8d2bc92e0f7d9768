//! The kernel's routing and neighbour tables, asked as `bpf_fib_lookup` asks them for a packet that
//! is being forwarded.

use std::{cell::OnceCell, fs, net::IpAddr};

use anyhow::{Context as _, Result};
use lb_common::{
    abi::{Address, Mac, Neighbour},
    datapath::parse::{Family, Parsed},
};
use tokio::runtime::Runtime;

use crate::network::{Link, Neighbours, Network};

/// The network of the load balancer, as it was when it was first asked for.
#[derive(Debug)]
pub(super) struct Routes {
    runtime: Runtime,
    network: Network,
    links: Vec<Link>,
    neighbours: OnceCell<Neighbours>,
}

impl Routes {
    /// The network of the calling thread's namespace.
    pub(super) fn open(runtime: Runtime) -> Result<Self> {
        let (network, links) = runtime.block_on(async {
            let network = Network::open().await?;
            let links = network.links().await?;
            Ok::<_, anyhow::Error>((network, links))
        })?;
        Ok(Self {
            runtime,
            network,
            links,
            neighbours: OnceCell::new(),
        })
    }

    /// The interfaces.
    pub(super) fn links(&self) -> &[Link] {
        &self.links
    }

    /// The interface called `name`.
    pub(super) fn link(&self, name: &str) -> Result<Link> {
        self.runtime.block_on(self.network.link(name))
    }

    /// Where packets from `address` come from: the interface, and the sender's MAC address if the
    /// kernel knows it.
    pub(super) fn towards(&self, address: IpAddr) -> Result<Option<(u32, Option<Mac>)>> {
        let hop = self.runtime.block_on(self.network.resolve(address))?;
        let Some(hop) = hop else {
            return Ok(None);
        };
        let mac = self.neighbours()?.find(hop).and_then(|known| known.mac());
        Ok(Some((hop.ifindex, mac)))
    }

    /// The next hop of a packet that came in on `ifindex`; none if there is no route, its
    /// neighbour is not resolved, the packet is too long for it, or the interface does not
    /// forward.
    pub(super) fn next_hop(
        &self,
        ifindex: u32,
        parsed: &Parsed,
        source: &Address,
        destination: &Address,
    ) -> Result<Option<Neighbour>> {
        if !self.forwards(ifindex, parsed.family)? {
            return Ok(None);
        }
        let (from, to) = (source.ip(), destination.ip());
        let answer = self
            .runtime
            .block_on(self.network.forwarded(ifindex, parsed.tos, from, to))?;
        let Some((hop, mtu)) = answer else {
            return Ok(None);
        };
        let mtu = mtu.or_else(|| {
            let out = self.links.iter().find(|link| link.index == hop.ifindex);
            out.map(|link| link.mtu)
        });
        if mtu.is_some_and(|mtu| u32::from(parsed.length) > mtu) {
            return Ok(None);
        }
        let neighbour = self.neighbours()?.frame_addresses(hop, &self.links);
        Ok(Some(neighbour).filter(Neighbour::is_resolved))
    }

    fn neighbours(&self) -> Result<&Neighbours> {
        if let Some(known) = self.neighbours.get() {
            return Ok(known);
        }
        let read = self.runtime.block_on(self.network.neighbours())?;
        Ok(self.neighbours.get_or_init(|| read))
    }

    /// Whether packets that come in on an interface may be forwarded.
    fn forwards(&self, ifindex: u32, family: Family) -> Result<bool> {
        let Some(link) = self.links.iter().find(|link| link.index == ifindex) else {
            return Ok(false);
        };
        let family = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let path = format!("/proc/sys/net/{family}/conf/{}/forwarding", link.name);
        let value = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(value.trim() != "0")
    }
}
