//! Modes `dsr-ipip` and `dsr-gue` on real networks: packets reach backends in tunnels of either
//! family, `lb-user decap` takes them out, and backends answer past the load balancer.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_tests::{
    client::{self, Download, curl},
    frames::Wire,
    server::{self, BigFile, Nginx},
    topology::{
        Arms::{self, One, Two},
        Family::{self, V4, V6},
    },
    tunnels::{PORT, Tunnels, sources},
    wait,
};

/// Both ends see true addresses, over TCP, UDP and HTTP, and no answer passes the load balancer.
fn both_ends_see_true_addresses(
    mode: &'static str,
    arms: Arms,
    family: Family,
    outer: Family,
) -> Result<()> {
    let tunnels = Tunnels::build(mode, arms, family, &[outer, outer])?;
    let to = tunnels.service(PORT);
    for port in [20_001, 20_002, 20_003, 20_004] {
        let from = tunnels.client(port);
        let tcp = tunnels.conversation(port)?.ask("over TCP")?;
        let udp = tunnels.datagrams(port)?.ask("over UDP")?;
        for answer in [tcp, udp] {
            assert_eq!((answer.peer, answer.local), (from, to), "{}", answer.server);
        }
    }

    let http = tunnels.service(80);
    let mut servers = Vec::new();
    let mut addresses = Vec::new();
    for host in &tunnels.network.backends {
        servers.push(Nginx::start(&host.netns, &host.name, &[http], None)?);
        addresses.push(host.address(outer));
    }
    tunnels.add("http", 80, "tcp", &addresses)?;
    tunnels.agent.resolved()?;
    let mut answered = BTreeSet::new();
    for _ in 0..20 {
        let page = curl(&tunnels.network.client.netns, http)?;
        assert_eq!((page.status, page.to), (200, http));
        answered.insert(page.body);
    }
    assert_eq!(answered.len(), 2, "both backends serve: {answered:?}");
    for server in &servers {
        for access in server.accesses()? {
            assert_eq!(access.remote_addr, tunnels.client(0).ip());
        }
    }

    for name in ["web", "dns", "http"] {
        let carried = tunnels.agent.carried(name)?;
        assert!(carried.forward > 0, "{name} not through the data path");
        assert_eq!(carried.back, 0, "{name}: answers through the load balancer");
    }
    let status = tunnels.agent.json("status")?;
    let backend = &status["services"][0]["backends"][0];
    let source = &sources()[usize::from(outer == V6)];
    assert_eq!(backend["outer_source"], source.as_str(), "{backend}");
    assert_eq!(backend["mtu"], 1500, "{backend}");
    Ok(())
}

#[test]
fn ipip_4in4_two_arms() -> Result<()> {
    both_ends_see_true_addresses("dsr-ipip", Two, V4, V4)
}

#[test]
fn ipip_4in6_one_arm() -> Result<()> {
    both_ends_see_true_addresses("dsr-ipip", One, V4, V6)
}

#[test]
fn ipip_6in4_two_arms() -> Result<()> {
    both_ends_see_true_addresses("dsr-ipip", Two, V6, V4)
}

#[test]
fn ipip_6in6_one_arm() -> Result<()> {
    both_ends_see_true_addresses("dsr-ipip", One, V6, V6)
}

#[test]
fn gue_4in4_one_arm() -> Result<()> {
    both_ends_see_true_addresses("dsr-gue", One, V4, V4)
}

#[test]
fn gue_4in6_two_arms() -> Result<()> {
    both_ends_see_true_addresses("dsr-gue", Two, V4, V6)
}

#[test]
fn gue_6in4_one_arm() -> Result<()> {
    both_ends_see_true_addresses("dsr-gue", One, V6, V4)
}

#[test]
fn gue_6in6_two_arms() -> Result<()> {
    both_ends_see_true_addresses("dsr-gue", Two, V6, V6)
}
