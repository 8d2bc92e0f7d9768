//! Packets out of the ordinary reach the backends of a service on real networks: datagrams that their
//! sender cuts into fragments, and packets with options.

use std::time::Duration;

use anyhow::Result;
use lb_tests::{
    client::{Answer, Conversation, Datagrams},
    frames::Wire,
    scene::{Mode, Scene},
    topology::{
        Arms::{self, One, Two},
        Family::{self, V4, V6},
    },
    tunnels::Tunnels,
    wait,
};

/// Bytes of a datagram: three fragments on Ethernet.
const LONG: usize = 4_000;

/// Text of this length in which every piece differs from the others.
fn text(length: usize) -> String {
    let mut text = String::new();
    let mut number = 0;
    while text.len() < length {
        text += &format!("{number}.");
        number += 1;
    }
    text.truncate(length);
    text
}

/// Says long things; the mirror says them again, and both ends see the right addresses.
fn ask_at_length(
    udp: &Datagrams,
    expected: (std::net::SocketAddr, std::net::SocketAddr),
) -> Result<()> {
    for length in [LONG, LONG + 1, 20_000, 10] {
        let Answer { peer, local, .. } = udp.ask(&text(length))?;
        assert_eq!((peer, local), expected, "{length} bytes");
    }
    Ok(())
}

fn fragments(mode: Mode, arms: Arms, family: Family) -> Result<()> {
    let scene = Scene::build(mode, arms, family, &[1, 1])?;
    let client = &scene.network.client.netns;
    for port in 20_000..20_010 {
        let udp = Datagrams::open(client, scene.client(port), scene.service())?;
        let server = udp.ask("which")?.server;
        let index = usize::from(server != scene.network.backends[0].name);
        ask_at_length(&udp, (udp.from(), scene.asked_at(index)))?;
    }
    let carried = scene.agent.carried("dns")?;
    // Of each socket: 1, 3, 3, 14 and 1 packets, and as many answers.
    assert!(carried.forward >= 10 * 22, "{carried:?}");
    match mode {
        Mode::Nat => assert!(carried.back >= 10 * 22, "{carried:?}"),
        Mode::DsrL2 => assert_eq!(carried.back, 0),
    }
    let reasons = scene.agent.reasons()?;
    assert_eq!(reasons.get("later-fragment"), None, "{reasons:?}");
    Ok(())
}

#[test]
fn long_datagrams_go_both_ways_nat_two_arms_v4() -> Result<()> {
    fragments(Mode::Nat, Two, V4)
}

#[test]
fn long_datagrams_go_both_ways_nat_one_arm_v6() -> Result<()> {
    fragments(Mode::Nat, One, V6)
}

#[test]
fn long_datagrams_reach_a_backend_dsr_l2_v4() -> Result<()> {
    fragments(Mode::DsrL2, One, V4)
}

#[test]
fn long_datagrams_reach_a_backend_dsr_l2_v6() -> Result<()> {
    fragments(Mode::DsrL2, Two, V6)
}

/// The first long datagram is too long for the tunnel, fragment by fragment: the client is told, and
/// cuts the next ones smaller.
fn fragments_in_a_tunnel(mode: &'static str, family: Family) -> Result<()> {
    let tunnels = Tunnels::build(mode, Two, family, &[family])?;
    let udp = tunnels.datagrams(20_001)?;
    udp.ask("a short one")?;
    wait::until_true("a long datagram through the tunnel", wait::LONG, || {
        Ok(udp.ask(&text(LONG)).is_ok())
    })?;
    ask_at_length(&udp, (tunnels.client(20_001), tunnels.service(7_000)))?;
    let carried = tunnels.agent.carried("dns")?;
    assert!(carried.forward >= 22, "{carried:?}");
    Ok(())
}

#[test]
fn long_datagrams_reach_a_backend_in_a_tunnel_v4() -> Result<()> {
    fragments_in_a_tunnel("dsr-ipip", V4)
}

#[test]
fn long_datagrams_reach_a_backend_in_a_tunnel_v6() -> Result<()> {
    fragments_in_a_tunnel("dsr-gue", V6)
}

#[test]
fn a_connection_with_ipv4_options_goes_through_nat() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let backend = Wire::open(&scene.network.backends[0].netns, "eth0")?;
    let client = &scene.network.client.netns;
    let mut tcp = Conversation::open_with_options(client, scene.client(20_001), scene.service())?;
    // 20 bytes and 8 of options.
    let with_options = |frame: &[u8]| frame[12..15] == [0x08, 0x00, 0x47];
    let arrived = backend.receive(Duration::from_secs(5), with_options)?;
    assert!(arrived.is_some(), "the options were lost");
    for round in 0..100 {
        let answer = tcp.ask(&text(1 + round * 50))?;
        assert_eq!((answer.peer, answer.local), (tcp.from(), scene.backend(0)));
    }
    let carried = scene.agent.carried("web")?;
    assert!(carried.forward >= 100 && carried.back >= 100, "{carried:?}");
    Ok(())
}
