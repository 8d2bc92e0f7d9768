//! Modes `dsr-ipip` and `dsr-gue` on real networks: packets reach backends in tunnels of either
//! family, `lb-user decap` takes them out, and backends answer past the load balancer.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

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

/// The outer source and, for GUE, the outer source port of a tunnel packet.
fn outer_ends(frame: &[u8]) -> Option<(IpAddr, u16)> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    let etherparse::NetSlice::Ipv4(outer) = sliced.net? else {
        return None;
    };
    let header = outer.header();
    let is_whole = header.to_header().calc_header_checksum() == header.header_checksum();
    assert!(is_whole && header.dont_fragment() && header.ttl() == 64);
    let port = match sliced.transport {
        Some(etherparse::TransportSlice::Udp(udp)) => udp.source_port(),
        _ => 0,
    };
    Some((header.source_addr().into(), port))
}

/// A backend that is not on-link: the gateway gets its packets. Outer sources vary in a prefix.
fn behind_a_router(mode: &'static str) -> Result<()> {
    let tunnels = Tunnels::build(mode, Two, V4, &[V4])?;
    let network = &tunnels.network;
    let (far, backend) = ("10.0.9.11", &network.backends[0]);
    let router = network.router.as_ref().context("no router")?;
    backend.netns.ip(&format!("addr add {far}/32 dev lo"))?;
    let route = format!("route add {far}/32 via 10.0.1.11");
    router.netns.ip(&route)?;
    let route = "route add 10.0.9.0/24 via 10.0.1.254";
    network.balancer.netns.ip(route)?;
    tunnels.receive(backend, &["10.99.0.0/24".to_owned()])?;
    let near = backend.address(V4).to_string();
    let configuration = tunnels.agent.configuration()?.replace(&near, far);
    let tunnel = "[tunnel]\nsource_prefix4 = \"10.99.0.0/24\"\n\n[[service]]";
    let configuration = configuration.replacen("[[service]]", tunnel, 1);
    let told = tunnels.agent.apply(&configuration, "")?;
    assert!(
        told.contains("~ tunnel: source IPv4 10.99.0.0/24"),
        "{told}"
    );
    tunnels.agent.resolved()?;
    assert!(tunnels.agent.configuration()?.contains("source_prefix4"));

    let wire = Wire::open(&router.netns, "eth1")?;
    let mut ends = BTreeSet::new();
    for port in 20_000..20_024 {
        assert_eq!(tunnels.conversation(port)?.ask("far")?.server, "b1");
        assert_eq!(tunnels.datagrams(port)?.ask("far")?.server, "b1");
        let is_tunnel = |frame: &[u8]| frame.get(30..34) == Some(&[10, 0, 9, 11]);
        let frame = wire.receive(Duration::from_secs(5), is_tunnel)?;
        ends.extend(outer_ends(&frame.context("no packet through the router")?));
    }
    let addresses: BTreeSet<IpAddr> = ends.iter().map(|(address, _)| *address).collect();
    assert!(addresses.len() > 5, "sources hardly vary: {addresses:?}");
    let prefix = |address: &IpAddr| address.to_string().starts_with("10.99.0.");
    assert!(addresses.iter().all(prefix), "{addresses:?}");
    let ports: BTreeSet<u16> = ends.iter().map(|(_, port)| *port).collect();
    match mode {
        "dsr-gue" => assert!(ports.len() > 5 && ports.iter().all(|port| *port >= 49_152)),
        _ => assert_eq!(ports, [0].into()),
    }
    let status = tunnels.agent.json("status")?;
    let source = &status["services"][0]["backends"][0]["outer_source"];
    assert_eq!(source, "10.99.0.0/24");
    Ok(())
}

#[test]
fn ipip_to_a_backend_behind_a_router() -> Result<()> {
    behind_a_router("dsr-ipip")
}

#[test]
fn gue_to_a_backend_behind_a_router() -> Result<()> {
    behind_a_router("dsr-gue")
}

#[test]
fn the_outer_source_follows_the_balancers_addresses_and_the_mtu_its_interface() -> Result<()> {
    let tunnels = Tunnels::build("dsr-ipip", Two, V4, &[V4])?;
    let balancer = &tunnels.network.balancer.netns;
    let backend = &tunnels.network.backends[0];
    tunnels.receive(backend, &["10.0.1.0/24".to_owned()])?;
    let way = |source: &str, mtu: u64| {
        wait::until_true(&format!("{source} and {mtu}"), wait::LONG, || {
            let status = tunnels.agent.json("status")?;
            let backend = &status["services"][0]["backends"][0];
            Ok(backend["outer_source"] == source && backend["mtu"] == mtu)
        })
    };
    way("10.0.1.1", 1500)?;
    balancer.ip("addr del 10.0.1.1/24 dev eth1\naddr add 10.0.1.2/24 dev eth1")?;
    way("10.0.1.2", 1500)?;
    assert_eq!(tunnels.conversation(20_001)?.ask("again")?.server, "b1");
    balancer.ip("link set eth1 mtu 1400")?;
    way("10.0.1.2", 1400)?;
    balancer.ip("route add 10.0.1.11/32 dev eth1 mtu 1300 src 10.0.1.2")?;
    way("10.0.1.2", 1300)?;
    Ok(())
}

/// A file down and bytes up, over TCP, and UDP beside them. Backends ask for segments that fit into
/// the tunnel, as their recipe says.
fn bulk(mode: &'static str, family: Family, outer: Family) -> Result<()> {
    let tunnels = Tunnels::build(mode, Two, family, &[outer])?;
    let host = &tunnels.network.backends[0];
    host.netns
        .ip("route replace default via 10.0.1.254 advmss 1300
         route del default via 2001:db8:b::fe
         route add default via 2001:db8:b::fe advmss 1300")?;
    let (web, talk) = (tunnels.service(80), tunnels.service(5201));
    let file = BigFile::random(20_000_000)?;
    let _nginx = Nginx::start(&host.netns, &host.name, &[web], Some(file.path()))?;
    let _iperf = server::iperf3(&host.netns, talk)?;
    let backend = [host.address(outer)];
    tunnels.add("http", 80, "tcp", &backend)?;
    tunnels.add("talk-tcp", 5201, "tcp", &backend)?;
    tunnels.add("talk-udp", 5201, "udp", &backend)?;
    tunnels.agent.resolved()?;

    let client = &tunnels.network.client.netns;
    let download = Download::start(client, web, "1G")?;
    assert_eq!(download.finish(wait::LONG)?, file.sha256);
    let report = client::iperf3(client, talk, &["--bytes", "300M"])?;
    let received = report["end"]["sum_received"]["bytes"].as_u64();
    // The server stops counting when the client has sent: a window full may be on its way.
    assert!(received >= Some(270_000_000), "{}", report["end"]);
    let udp = [
        "--udp",
        "--bitrate",
        "10M",
        "--length",
        "1200",
        "--time",
        "2",
    ];
    let report = client::iperf3(client, talk, &udp)?;
    let lost = report["end"]["sum"]["lost_percent"].as_f64();
    assert!(lost.is_some_and(|lost| lost < 5.0), "{}", report["end"]);
    for name in ["http", "talk-tcp", "talk-udp"] {
        assert_eq!(tunnels.agent.carried(name)?.back, 0, "{name}");
    }
    Ok(())
}

#[test]
fn bulk_through_ipip_v4() -> Result<()> {
    bulk("dsr-ipip", V4, V4)
}

#[test]
fn bulk_through_ipip_v6() -> Result<()> {
    bulk("dsr-ipip", V6, V6)
}

#[test]
fn bulk_through_gue_4in6() -> Result<()> {
    bulk("dsr-gue", V4, V6)
}

#[test]
fn bulk_through_gue_6in4() -> Result<()> {
    bulk("dsr-gue", V6, V4)
}

/// Every interface carries 1500 bytes and nobody is told to send less, so the client's segments are
/// too long once they are in the tunnel. It is told by ICMP, sends shorter ones, and all arrives.
fn a_transfer_that_starts_too_large_completes(
    mode: &'static str,
    family: Family,
    outer: Family,
    fits: u16,
) -> Result<()> {
    let tunnels = Tunnels::build(mode, Two, family, &[outer])?;
    let client = &tunnels.network.client.netns;
    let path = || client.tool(&format!("ip route get {}", tunnels.service(PORT).ip()));
    let told = || -> Result<u64> {
        let reasons = tunnels.agent.reasons()?;
        Ok(reasons.get("too-big").copied().unwrap_or_default())
    };

    assert!(!path()?.contains("mtu"), "{}", path()?);
    let forget = || -> Result<()> {
        client.tool("ip route flush cache")?;
        client.tool("ip -6 route flush cache").map(drop)
    };
    let line: String = (0..400_000).map(|n| format!("{n:x} ")).collect();
    let upload = |port: u16| -> Result<()> {
        let answer = tunnels.conversation(port)?.ask(line.trim())?;
        assert!(answer.said == line.trim(), "not what was said");
        Ok(())
    };
    upload(20_001)?;
    let first = told()?;
    assert!(first > 0, "{:?}", tunnels.agent.reasons()?);
    assert!(path()?.contains(&format!("mtu {fits}")), "{}", path()?);
    // Once it knows, it sends nothing that is too long.
    upload(20_002)?;
    assert_eq!(told()?, first);

    // Another agent takes the program's place, and the client forgets.
    tunnels.agent.crash()?;
    forget()?;
    upload(20_003)?;
    tunnels.agent.attach("")?;
    let again = told()?;
    assert!(again > first, "not told while no agent runs");
    forget()?;
    upload(20_004)?;
    assert!(told()? > again, "not told after the agent's restart");
    Ok(())
}

#[test]
fn path_mtu_ipip_v4() -> Result<()> {
    a_transfer_that_starts_too_large_completes("dsr-ipip", V4, V4, 1480)
}

#[test]
fn path_mtu_ipip_v6() -> Result<()> {
    a_transfer_that_starts_too_large_completes("dsr-ipip", V6, V6, 1460)
}

#[test]
fn path_mtu_gue_4in6() -> Result<()> {
    a_transfer_that_starts_too_large_completes("dsr-gue", V4, V6, 1452)
}

#[test]
fn path_mtu_gue_6in4() -> Result<()> {
    a_transfer_that_starts_too_large_completes("dsr-gue", V6, V4, 1472)
}
