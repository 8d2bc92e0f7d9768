//! Lanes: for each path that is measured an own load balancer's namespace, between a namespace
//! that sends and one that receives.
//!
//! ```text
//!  source            load balancer (one namespace per lane)          sink
//!  gN ───── veth ───── in   program or kernel   out ───── veth ───── sN
//! ```
//!
//! Interfaces with XDP programs deliver to each other without a socket buffer. All of it runs on the
//! CPU of the thread that sends.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use lb_common::abi::{Mac, Neighbour};
use lb_tests::netns::Netns;

/// The namespaces at the ends of all lanes.
pub(crate) struct Ends {
    pub(crate) source: Netns,
    pub(crate) sink: Netns,
}

/// One lane.
pub(crate) struct Lane {
    pub(crate) balancer: Netns,
    /// Interface in the source's namespace.
    pub(crate) source: String,
    /// Interface in the sink's namespace.
    pub(crate) sink: String,
    /// Its index in the source's namespace.
    pub(crate) source_index: u32,
    /// From the load balancer back to the source.
    pub(crate) client: Neighbour,
    /// From the load balancer on to the sink.
    pub(crate) backend: Neighbour,
}

/// Interfaces of the load balancer.
pub(crate) const IN: &str = "in";
pub(crate) const OUT: &str = "out";

impl Ends {
    pub(crate) fn create() -> Result<Self> {
        let ends = Self {
            source: Netns::create("source")?,
            sink: Netns::create("sink")?,
        };
        silence(&ends.source)?;
        silence(&ends.sink)?;
        Ok(ends)
    }

    /// Lane number `number`.
    pub(crate) fn lane(&self, number: usize) -> Result<Lane> {
        let balancer = Netns::create(&format!("lane{number}"))?;
        silence(&balancer)?;
        let (source, sink) = (format!("g{number}"), format!("s{number}"));
        let name = balancer.name();
        self.source.ip(&format!(
            "link add {source} type veth peer name {IN} netns {name}\nlink set {source} up"
        ))?;
        self.sink.ip(&format!(
            "link add {sink} type veth peer name {OUT} netns {name}\nlink set {sink} up"
        ))?;
        balancer.ip(&format!("link set {IN} up\nlink set {OUT} up"))?;
        let client = neighbour(&balancer, IN, self.source.mac(&source)?)?;
        let backend = neighbour(&balancer, OUT, self.sink.mac(&sink)?)?;
        let source_index = index(&self.source, &source)?;
        Ok(Lane {
            balancer,
            source,
            sink,
            source_index,
            client,
            backend,
        })
    }
}

impl Lane {
    /// Makes the kernel of the load balancer's namespace forward to `backend`.
    pub(crate) fn route(&self, backend: Ipv4Addr) -> Result<()> {
        self.balancer.set_sysctls(&[
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/in/rp_filter", "0"),
            ("net/ipv4/ip_forward", "1"),
        ])?;
        let Mac([a, b, c, d, e, f]) = self.backend.destination;
        self.balancer.ip(&format!(
            "addr add 192.0.2.1/24 dev {IN}
             route add 198.18.0.0/15 dev {IN}
             route add {backend}/32 dev {OUT}
             neigh add {backend} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev {OUT} nud permanent"
        ))?;
        // What comes in without a socket buffer is taken only by an interface that polls.
        self.balancer.tool(&format!("ethtool -K {IN} gro on"))?;
        Ok(())
    }
}

/// No frame but those that are measured: IPv6 sends some by itself.
fn silence(netns: &Netns) -> Result<()> {
    netns.set_sysctls(&[
        ("net/ipv6/conf/all/disable_ipv6", "1"),
        ("net/ipv6/conf/default/disable_ipv6", "1"),
    ])
}

/// The neighbour with MAC address `destination` behind an interface.
fn neighbour(netns: &Netns, interface: &str, destination: [u8; 6]) -> Result<Neighbour> {
    Ok(Neighbour {
        ifindex: index(netns, interface)?,
        destination: Mac(destination),
        source: Mac(netns.mac(interface)?),
    })
}

fn index(netns: &Netns, interface: &str) -> Result<u32> {
    let index = netns.link(interface)?.ifindex();
    u32::try_from(index).with_context(|| format!("index {index} of {interface}"))
}
