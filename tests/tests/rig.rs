//! Proves the rig itself, with the kernel in the place of the load balancer: what the network tests
//! assert holds on these networks when the balancer is known to be right.

use std::time::Duration;

use anyhow::Result;
use lb_tests::{
    client::{self, Conversation, Datagrams, Download, converse_many, curl},
    frames::{Ethernet, Wire, udp_fragments},
    netns::Netns,
    server::{self, BigFile, Mirror, Nginx},
    topology::{Arms, Family, Network, Return, service},
    wait,
};
use std::net::SocketAddr;

const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// nftables in the balancer's kernel as a load balancer that keeps the client's address.
fn kernel_nat(network: &Network) -> Result<()> {
    network.balancer.forward()?;
    for family in BOTH {
        let length = if family == Family::V4 { 32 } else { 128 };
        let nodad = if family == Family::V4 { "" } else { "nodad" };
        network.balancer.netns.ip(&format!(
            "addr add {}/{length} dev eth0 {nodad}",
            service(family)
        ))?;
    }
    network.balancer.netns.nft(&format!(
        "table inet balancer {{
            chain in {{
                type nat hook prerouting priority dstnat;
                ip daddr {} tcp dport {{ 80, 7000 }} dnat to {};
                ip daddr {} udp dport {{ 80, 7000 }} dnat to {};
                ip6 daddr {} tcp dport {{ 80, 7000 }} dnat to {};
                ip6 daddr {} udp dport {{ 80, 7000 }} dnat to {};
            }}
        }}",
        service(Family::V4),
        network.backends[0].address(Family::V4),
        service(Family::V4),
        network.backends[0].address(Family::V4),
        service(Family::V6),
        network.backends[0].address(Family::V6),
        service(Family::V6),
        network.backends[0].address(Family::V6),
    ))
}

/// Plain routing to a backend that owns the service's address: only the MAC address changes.
fn kernel_dsr(network: &Network) -> Result<()> {
    network.balancer.forward()?;
    for family in BOTH {
        network.balancer.netns.ip(&format!(
            "route add {} via {}",
            service(family),
            network.backends[0].address(family)
        ))?;
        // Nobody on the switch answers ARP and ND for the service, so the router is told the way.
        if let (Arms::One, Some(router)) = (network.arms(), &network.router) {
            router.netns.ip(&format!(
                "route add {} via {}",
                service(family),
                network.balancer.address(family)
            ))?;
        }
    }
    Ok(())
}

/// The client reaches `b1` through the service, and both see each other's right address.
fn both_ends_see_the_truth(network: &Network, family: Family, asked_at: SocketAddr) -> Result<()> {
    let backend = &network.backends[0];
    let client = &network.client.netns;
    let nginx = Nginx::start(
        &backend.netns,
        "b1",
        &[SocketAddr::new(asked_at.ip(), 80)],
        None,
    )?;
    let _mirror = Mirror::start(&backend.netns, "b1", &[asked_at])?;

    let page = curl(client, SocketAddr::new(service(family), 80))?;
    assert_eq!((page.status, page.body.as_str()), (200, "b1"));
    assert_eq!(page.from.ip(), network.client.address(family));
    let seen = nginx.accesses_once(1)?.remove(0);
    assert_eq!(
        SocketAddr::new(seen.remote_addr, seen.remote_port),
        page.from
    );
    assert_eq!(seen.server_addr, asked_at.ip());
    assert_eq!(
        (seen.request.as_str(), seen.status, seen.bytes),
        ("GET / HTTP/1.1", 200, 3)
    );

    let to = SocketAddr::new(service(family), 7000);
    let from = network.client.at(family, 23456);
    let answer = Conversation::open(client, from, to)?.ask("hello over TCP")?;
    assert_eq!(
        (answer.server.as_str(), answer.peer, answer.local),
        ("b1", from, asked_at)
    );
    let answer = Datagrams::open(client, from, to)?.ask("hello over UDP")?;
    assert_eq!(
        (answer.server.as_str(), answer.peer, answer.local),
        ("b1", from, asked_at)
    );
    Ok(())
}

fn nat(arms: Arms) -> Result<()> {
    let network = Network::build(arms, Return::ThroughBalancer, 1)?;
    kernel_nat(&network)?;
    for family in BOTH {
        both_ends_see_the_truth(&network, family, network.backends[0].at(family, 7000))?;
    }
    Ok(())
}

fn dsr(arms: Arms) -> Result<()> {
    let network = Network::build(arms, Return::Direct, 2)?;
    kernel_dsr(&network)?;
    for family in BOTH {
        both_ends_see_the_truth(&network, family, SocketAddr::new(service(family), 7000))?;
    }
    Ok(())
}

#[test]
fn nat_by_the_kernel_with_two_arms() -> Result<()> {
    nat(Arms::Two)
}

#[test]
fn nat_by_the_kernel_with_one_arm() -> Result<()> {
    nat(Arms::One)
}

#[test]
fn direct_return_by_the_kernel_with_two_arms() -> Result<()> {
    dsr(Arms::Two)
}

#[test]
fn direct_return_by_the_kernel_with_one_arm() -> Result<()> {
    dsr(Arms::One)
}

#[test]
fn a_balancer_forwards_nothing_until_it_is_told_to() -> Result<()> {
    let network = Network::build(Arms::Two, Return::ThroughBalancer, 1)?;
    let (client, backend) = (&network.client.netns, &network.backends[0]);
    for family in BOTH {
        client::ping(client, network.balancer.address(family), 1, 56)?;
        assert!(client::ping(client, backend.address(family), 1, 56).is_err());
    }
    network.balancer.forward()?;
    for family in BOTH {
        client::ping(client, backend.address(family), 3, 4000)?;
    }
    Ok(())
}

#[test]
fn only_the_balancer_answers_for_an_address_that_a_backend_owns_silently() -> Result<()> {
    let network = Network::build(Arms::One, Return::Direct, 2)?;
    let router = network.router.as_ref().expect("one arm has a router");
    for family in BOTH {
        assert!(client::ping(&router.netns, service(family), 1, 56).is_err());
    }
    network
        .balancer
        .netns
        .ip("addr add 203.0.113.10/32 dev eth0")?;
    network
        .balancer
        .netns
        .ip("addr add 2001:db8:5::10/128 dev eth0 nodad")?;
    let mac = network
        .balancer
        .netns
        .mac("eth0")?
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    for family in BOTH {
        // A neighbour that failed a moment ago is asked for again.
        client::ping(&router.netns, service(family), 1, 56)?;
        let known = router
            .netns
            .tool(&format!("ip neigh show to {} dev eth1", service(family)))?;
        assert!(known.contains(&mac), "{known}");
    }
    Ok(())
}

#[test]
fn frames_arrive_as_they_were_sent() -> Result<()> {
    let network = Network::build(Arms::Two, Return::ThroughBalancer, 1)?;
    let here = Wire::open(&network.client.netns, "eth0")?;
    let there = Wire::open(&network.balancer.netns, "eth0")?;
    let addressed = Ethernet {
        to: there.mac(),
        from: here.mac(),
    };
    let group = Ethernet {
        to: [0x33, 0x33, 0, 0, 0, 0x2a],
        from: here.mac(),
    };
    let mut frames = vec![
        addressed.frame(0x88b5, b"an ethertype for experiments"),
        group.frame(0x88b6, b"to a group"),
        addressed.frame(0x88b5, &[0x5a; 1400]),
    ];
    for family in BOTH {
        let ethertype = if family == Family::V4 { 0x0800 } else { 0x86dd };
        let fragments = udp_fragments(
            network.client.at(family, 5000),
            network.balancer.at(family, 6000),
            77,
            &[0xa5; 700],
        )?;
        assert_eq!(fragments.len(), 3);
        frames.extend(
            fragments
                .iter()
                .map(|packet| addressed.frame(ethertype, packet)),
        );
    }
    for frame in &frames {
        here.send(frame)?;
        let arrived = there.receive(Duration::from_secs(5), |seen| seen == frame)?;
        assert_eq!(arrived.as_ref(), Some(frame));
    }
    let nothing = there.receive(Duration::from_millis(200), |seen| seen == frames[0])?;
    assert_eq!(nothing, None, "a frame arrived twice");
    Ok(())
}

#[test]
fn fragments_made_by_hand_are_whole_for_the_kernel() -> Result<()> {
    let network = Network::build(Arms::Two, Return::ThroughBalancer, 1)?;
    let wire = Wire::open(&network.client.netns, "eth0")?;
    let balancer = &network.balancer;
    for family in BOTH {
        let (from, to) = (network.client.at(family, 5000), balancer.at(family, 6000));
        let socket = balancer.netns.run(|| Ok(std::net::UdpSocket::bind(to)?))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let header = Ethernet {
            to: balancer.netns.mac("eth0")?,
            from: wire.mac(),
        };
        let ethertype = if family == Family::V4 { 0x0800 } else { 0x86dd };
        for packet in udp_fragments(from, to, 99, &[0x42; 1000])? {
            wire.send(&header.frame(ethertype, &packet))?;
        }
        let mut buffer = [0; 2000];
        let (length, peer) = socket.recv_from(&mut buffer)?;
        assert_eq!((&buffer[..length], peer), (&[0x42; 1000][..], from));
    }
    Ok(())
}

#[test]
fn thousands_of_connections_keep_their_ports_apart() -> Result<()> {
    let network = Network::build(Arms::Two, Return::ThroughBalancer, 1)?;
    network.balancer.forward()?;
    let to = network.backends[0].at(Family::V4, 7000);
    let _mirror = Mirror::start(&network.backends[0].netns, "b1", &[to])?;
    let from = client::ports(network.client.address(Family::V4), 20_000, 2_000);
    let answers = converse_many(&network.client.netns, &from, to)?;
    assert!(answers.iter().map(|answer| answer.peer).eq(from));
    Ok(())
}

#[test]
fn a_download_is_checked_to_the_last_byte() -> Result<()> {
    let network = Network::build(Arms::Two, Return::ThroughBalancer, 1)?;
    network.balancer.forward()?;
    let to = network.backends[0].at(Family::V6, 80);
    let file = BigFile::random(20_000_000)?;
    let nginx = Nginx::start(&network.backends[0].netns, "b1", &[to], Some(file.path()))?;
    let download = Download::start(&network.client.netns, to, "100M")?;
    assert_eq!(download.finish(wait::LONG)?, file.sha256);
    assert_eq!(nginx.accesses_once(1)?[0].bytes, 20_000_000);

    let mut cut = Download::start(&network.client.netns, to, "1M")?;
    assert!(cut.runs());
    drop(nginx);
    assert!(cut.finish(wait::LONG).is_err());
    Ok(())
}

#[test]
fn iperf3_reports_what_was_received() -> Result<()> {
    let network = Network::build(Arms::One, Return::ThroughBalancer, 1)?;
    network.balancer.forward()?;
    let to = network.backends[0].at(Family::V4, 5201);
    let _server = server::iperf3(&network.backends[0].netns, to)?;
    let report = client::iperf3(&network.client.netns, to, &["--bytes", "50M"])?;
    // iperf3 stops counting when the sender has sent all, a few buffers early.
    let received = report["end"]["sum_received"]["bytes"].as_u64();
    assert!(
        received.is_some_and(|bytes| bytes >= 40_000_000),
        "{report}"
    );
    Ok(())
}

#[test]
fn a_namespace_goes_on_panic_and_with_what_runs_in_it() -> Result<()> {
    let mut left = None;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let netns = Netns::create("panic").expect("root");
        let sleeper = netns
            .spawn(std::process::Command::new("sleep").arg("1000"))
            .expect("sleep");
        left = Some((netns.name().to_owned(), sleeper.pid()));
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    let (name, pid) = left.expect("set before the panic");
    assert!(!std::path::Path::new("/run/netns").join(name).exists());
    assert!(!std::path::Path::new("/proc").join(pid.to_string()).exists());
    Ok(())
}
