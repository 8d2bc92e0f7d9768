//! The networks that tests run in, each made of namespaces of its own.
//!
//! ```text
//! two arms                                      one arm
//!
//! client .7 ─── .1 balancer .1 ─┬─ .11 backend  client .7 ─── .1 router .254 ─┬─ .1  balancer
//!   │              eth0  eth1   ├─ .12 backend                                ├─ .11 backend
//!   └── .1 router .254 ─────────┘   …                                         ├─ .12 backend
//!       (only with direct return)                                             └─ …
//! ```
//!
//! | network | IPv4 | IPv6 |
//! |---|---|---|
//! | clients | 198.51.100.0/24 | 2001:db8:c::/64 |
//! | backends (a bridge in a namespace of its own) | 10.0.1.0/24 | 2001:db8:b::/64 |
//! | client and router, two arms with direct return | 192.0.2.0/24 | 2001:db8:a::/64 |
//! | services | 203.0.113.0/24 | 2001:db8:5::/64 |
//!
//! With two arms the clients have the balancer as their gateway; with one arm the router looks for a
//! service's address by ARP/ND among its neighbours. The balancer's own kernel settings are those of
//! a fresh machine: no forwarding, until somebody asks for it.
//!
//! Two traps of veth are taken care of here: every end sends whole checksums (`tx off`; XDP would
//! forward half of one), and the peers of the balancer's interfaces have GRO on (else frames that
//! XDP sends to them are lost).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

use crate::netns::Netns;

/// IP version of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Number of interfaces the balancer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    /// Clients and backends behind the same interface.
    One,
    /// Clients behind `eth0`, backends behind `eth1`.
    Two,
}

/// The balancer's addresses on the backends' side, with two arms.
const INNER: &str = "addr add 10.0.1.1/24 dev eth1
                     addr add 2001:db8:b::1/64 dev eth1 nodad";

/// The gateway of the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// The balancer, as mode `nat` needs it.
    ThroughBalancer,
    /// The router: answers go past the balancer, and every backend owns [`service`] on its
    /// loopback, as mode `dsr-l2` needs it.
    Direct,
}

/// Address of the service that tests use.
#[must_use]
pub const fn service(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0x10)),
    }
}

/// One machine of the network.
#[derive(Debug)]
pub struct Host {
    /// What it is called: `client`, `balancer`, `router`, `b1`, `b2`, …
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Host {
    /// A machine without forwarding that takes IPv6 addresses at once (no duplicate detection) and
    /// does not mind packets that come in on another interface than they would go out on.
    fn create(name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Self> {
        let netns = Netns::create(name)?;
        netns.set_sysctls(&[
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "1"),
            ("net/ipv4/conf/default/send_redirects", "1"),
            ("net/ipv6/conf/all/forwarding", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
        ])?;
        let name = name.to_owned();
        Ok(Self {
            name,
            netns,
            v4,
            v6,
        })
    }

    /// The machine's own address; the one on the clients' side where it has several.
    #[must_use]
    pub const fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }

    /// The machine's own address with a port.
    #[must_use]
    pub const fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// Makes the machine a router that sends no redirects.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a setting.
    pub fn forward(&self) -> Result<()> {
        self.netns.set_sysctls(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ])?;
        for device in ["eth0", "eth1"] {
            let key = format!("net/ipv4/conf/{device}/send_redirects");
            if self.netns.sysctl(&key).is_ok() {
                self.netns.set_sysctls(&[(&key, "0")])?;
            }
        }
        Ok(())
    }

    /// Puts `address` on loopback in such a way that nobody hears of it by ARP or ND.
    ///
    /// # Errors
    ///
    /// When the address stands there already.
    pub fn own_silently(&self, address: IpAddr) -> Result<()> {
        self.netns.set_sysctls(&[
            ("net/ipv4/conf/all/arp_ignore", "1"),
            ("net/ipv4/conf/all/arp_announce", "2"),
        ])?;
        self.netns.ip(&match address {
            IpAddr::V4(address) => format!("addr add {address}/32 dev lo"),
            // ND answers only for addresses of the interface that was asked.
            IpAddr::V6(address) => format!("addr add {address}/128 dev lo nodad"),
        })
    }
}

/// A whole network. Fields are in the order of removal: the hosts before the switch between them.
#[derive(Debug)]
pub struct Network {
    /// Where requests come from.
    pub client: Host,
    /// The router, where the topology has one.
    pub router: Option<Host>,
    /// The machine under test.
    pub balancer: Host,
    /// Backends `b1`, `b2`, …, with the same numbers as in their addresses.
    pub backends: Vec<Host>,
    arms: Arms,
    switch: Netns,
}

impl Network {
    /// Builds the network of the drawing, with `backends` backends (at most 9).
    ///
    /// # Errors
    ///
    /// Without root, or when a tool is missing or refuses.
    pub fn build(arms: Arms, way_back: Return, backends: u8) -> Result<Self> {
        ensure!(
            (1..=9).contains(&backends),
            "1 to 9 backends, not {backends}"
        );
        let switch = Netns::create("switch")?;
        switch.set_sysctls(&[("net/ipv6/conf/default/disable_ipv6", "1")])?;
        switch.ip("link add br0 type bridge stp_state 0 mcast_snooping 0\nlink set br0 up")?;
        let mut network = Self {
            client: Host::create(
                "client",
                Ipv4Addr::new(198, 51, 100, 7),
                Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7),
            )?,
            router: None,
            balancer: match arms {
                Arms::Two => Host::create(
                    "balancer",
                    Ipv4Addr::new(198, 51, 100, 1),
                    Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1),
                )?,
                Arms::One => Host::create(
                    "balancer",
                    Ipv4Addr::new(10, 0, 1, 1),
                    Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 1),
                )?,
            },
            backends: Vec::new(),
            arms,
            switch,
        };
        if arms == Arms::One || way_back == Return::Direct {
            let router = Host::create(
                "router",
                Ipv4Addr::new(10, 0, 1, 254),
                Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0xfe),
            )?;
            router.forward()?;
            network.router = Some(router);
        }
        match arms {
            Arms::Two => network.join_two_arms()?,
            Arms::One => network.join_one_arm()?,
        }
        for number in 1..=backends {
            network.add_backend(number, way_back)?;
        }
        Ok(network)
    }

    /// How many interfaces the balancer has.
    #[must_use]
    pub const fn arms(&self) -> Arms {
        self.arms
    }

    /// The interfaces to attach the load balancer to.
    #[must_use]
    pub const fn interfaces(&self) -> &'static [&'static str] {
        match self.arms {
            Arms::One => &["eth0"],
            Arms::Two => &["eth0", "eth1"],
        }
    }

    /// The balancer's interface on the backends' side.
    #[must_use]
    pub const fn inner(&self) -> &'static str {
        match self.arms {
            Arms::One => "eth0",
            Arms::Two => "eth1",
        }
    }

    /// Removes the balancer's `eth1` and makes it anew, with another MAC address and index.
    ///
    /// # Errors
    ///
    /// With one arm, or when a tool refuses.
    pub fn make_inner_anew(&self) -> Result<()> {
        ensure!(self.arms == Arms::Two, "one arm has no eth1");
        self.balancer.netns.ip("link del eth1")?;
        self.plug(&self.balancer.netns, "eth1", "balancer")?;
        self.balancer.netns.ip(INNER)
    }

    /// Gives the links between client, balancer and backends another MTU; the router keeps 1500.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn enlarge(&self, mtu: u16) -> Result<()> {
        let enlarge =
            |netns: &Netns, device: &str| netns.ip(&format!("link set {device} mtu {mtu}"));
        enlarge(&self.client.netns, "eth0")?;
        for device in self.interfaces() {
            enlarge(&self.balancer.netns, device)?;
        }
        enlarge(&self.switch, "balancer")?;
        for backend in &self.backends {
            enlarge(&backend.netns, "eth0")?;
            enlarge(&self.switch, &backend.name)?;
        }
        Ok(())
    }

    fn join_two_arms(&self) -> Result<()> {
        let (client, balancer) = (&self.client.netns, &self.balancer.netns);
        veth((client, "eth0"), (balancer, "eth0"))?;
        client.tool("ethtool -K eth0 gro on")?;
        self.plug(balancer, "eth1", "balancer")?;
        client.ip("addr add 198.51.100.7/24 dev eth0
             addr add 2001:db8:c::7/64 dev eth0 nodad
             route add default via 198.51.100.1
             route add default via 2001:db8:c::1")?;
        balancer.ip("addr add 198.51.100.1/24 dev eth0
             addr add 2001:db8:c::1/64 dev eth0 nodad")?;
        balancer.ip(INNER)?;
        let Some(router) = &self.router else {
            return Ok(());
        };
        veth((client, "eth1"), (&router.netns, "eth0"))?;
        self.plug(&router.netns, "eth1", "router")?;
        client.ip("addr add 192.0.2.7/24 dev eth1
             addr add 2001:db8:a::7/64 dev eth1 nodad")?;
        router.netns.ip("addr add 192.0.2.1/24 dev eth0
             addr add 2001:db8:a::1/64 dev eth0 nodad
             addr add 10.0.1.254/24 dev eth1
             addr add 2001:db8:b::fe/64 dev eth1 nodad
             route add 198.51.100.0/24 via 192.0.2.7
             route add 2001:db8:c::/64 via 2001:db8:a::7")
    }

    fn join_one_arm(&self) -> Result<()> {
        let Some(router) = &self.router else {
            unreachable!("one arm always has a router");
        };
        veth((&self.client.netns, "eth0"), (&router.netns, "eth0"))?;
        self.plug(&router.netns, "eth1", "router")?;
        self.plug(&self.balancer.netns, "eth0", "balancer")?;
        self.client.netns.ip("addr add 198.51.100.7/24 dev eth0
             addr add 2001:db8:c::7/64 dev eth0 nodad
             route add default via 198.51.100.1
             route add default via 2001:db8:c::1")?;
        router.netns.ip("addr add 198.51.100.1/24 dev eth0
             addr add 2001:db8:c::1/64 dev eth0 nodad
             addr add 10.0.1.254/24 dev eth1
             addr add 2001:db8:b::fe/64 dev eth1 nodad
             route add 203.0.113.0/24 dev eth1
             route add 2001:db8:5::/64 dev eth1")?;
        self.balancer.netns.ip("addr add 10.0.1.1/24 dev eth0
             addr add 2001:db8:b::1/64 dev eth0 nodad
             route add default via 10.0.1.254
             route add default via 2001:db8:b::fe")
    }

    fn add_backend(&mut self, number: u8, way_back: Return) -> Result<()> {
        let backend = Host::create(
            &format!("b{number}"),
            Ipv4Addr::new(10, 0, 1, 10 + number),
            // The same digits as in the IPv4 address: 2001:db8:b::11 is 10.0.1.11.
            Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x10 + u16::from(number)),
        )?;
        self.plug(&backend.netns, "eth0", &backend.name)?;
        // With GRO a veth takes its packets in one by one. Without it each CPU does for itself, and
        // before Linux 6.19 a server that meets a connection's last handshake packet and its first
        // data on two CPUs at once may find neither the handshake nor the connection, and reset
        // it (`inet_ehash_insert` takes the one out before it puts the other in).
        backend.netns.tool("ethtool -K eth0 gro on")?;
        let (gateway4, gateway6) = match way_back {
            Return::ThroughBalancer => ("10.0.1.1", "2001:db8:b::1"),
            Return::Direct => ("10.0.1.254", "2001:db8:b::fe"),
        };
        backend.netns.ip(&format!(
            "addr add {}/24 dev eth0
             addr add {}/64 dev eth0 nodad
             route add default via {gateway4}
             route add default via {gateway6}",
            backend.v4, backend.v6
        ))?;
        if way_back == Return::Direct {
            backend.own_silently(service(Family::V4))?;
            backend.own_silently(service(Family::V6))?;
        }
        self.backends.push(backend);
        Ok(())
    }

    /// Connects interface `device` of `host` with the switch.
    fn plug(&self, host: &Netns, device: &str, port: &str) -> Result<()> {
        veth((host, device), (&self.switch, port))?;
        self.switch.ip(&format!("link set {port} master br0"))?;
        self.switch.tool(&format!("ethtool -K {port} gro on"))?;
        Ok(())
    }
}

/// Makes a pair of interfaces between two namespaces, up, sending whole checksums.
fn veth(left: (&Netns, &str), right: (&Netns, &str)) -> Result<()> {
    let ((left, left_device), (right, right_device)) = (left, right);
    left.ip(&format!(
        "link add {left_device} type veth peer name {right_device} netns {}
         link set {left_device} up",
        right.name()
    ))?;
    right.ip(&format!("link set {right_device} up"))?;
    left.tool(&format!("ethtool -K {left_device} tx off"))?;
    right.tool(&format!("ethtool -K {right_device} tx off"))?;
    Ok(())
}
