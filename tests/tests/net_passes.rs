//! What is not for a service passes the attached load balancer as if it were not there.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::Result;
use lb_tests::{
    claims::under_load,
    client::{Conversation, Datagrams, ping},
    frames::{Ethernet, Wire, udp_fragments},
    netns::Netns,
    scene::{Mode, PORT, Scene},
    server::Mirror,
    topology::{
        Arms::{self, One, Two},
        Family::{self, V4, V6},
    },
};

/// Longer than three fragments.
const LONG: usize = 5_000;

/// TCP and UDP from `from` (an address of `netns`) to a mirror at `to`: the answers come from there
/// and nobody's address is rewritten. Port 0: each round has a port that nothing else takes, since
/// one that has just talked to the service is still the service's.
fn talk(netns: &Netns, from: SocketAddr, to: SocketAddr, rounds: usize) -> Result<()> {
    static NEXT: AtomicU16 = AtomicU16::new(2_000);
    for round in 0..rounds {
        let from = match from.port() {
            0 => SocketAddr::new(from.ip(), NEXT.fetch_add(1, Ordering::Relaxed)),
            _ => from,
        };
        let mut tcp = Conversation::open(netns, from, to)?;
        let udp = Datagrams::open(netns, from, to)?;
        for said in ["one", "two", &"x".repeat(1 + round % 1_000)] {
            let answer = tcp.ask(said)?;
            assert_eq!((answer.peer, answer.local), (tcp.from(), to));
            let answer = udp.ask(said)?;
            assert_eq!((answer.peer, answer.local), (udp.from(), to));
        }
    }
    Ok(())
}

/// With one arm the router would send to backends past the load balancer.
fn route_to_backends_through_the_balancer(scene: &Scene) -> Result<()> {
    if let Some(router) = &scene.network.router {
        for host in &scene.network.backends {
            let (to, via) = (
                host.address(scene.family()),
                scene.network.balancer.address(scene.family()),
            );
            router.netns.ip(&format!("route add {to} via {via}"))?;
        }
    }
    Ok(())
}

fn direct_conversations(arms: Arms, family: Family) -> Result<()> {
    let scene = Scene::build(Mode::Nat, arms, family, &[1, 1])?;
    route_to_backends_through_the_balancer(&scene)?;
    let (client, balancer) = (&scene.network.client, &scene.network.balancer);
    let any: SocketAddr = match family {
        V4 => "0.0.0.0:0".parse()?,
        V6 => "[::]:0".parse()?,
    };
    under_load(&scene, || {
        for index in 0..2 {
            let to = scene.backend(index);
            talk(&client.netns, scene.client(0), to, 50)?;
            talk(&balancer.netns, any, to, 50)?;
            // A port that has talked to the backend itself talks to the service next.
            // Below the ports that the load beside takes by itself.
            let first = if index == 0 { 20_000 } else { 21_000 };
            for port in first..first + 20 {
                let own = scene.client(port);
                talk(&client.netns, own, to, 1)?;
                Conversation::open(&client.netns, own, scene.service())?.ask("to the service")?;
                Datagrams::open(&client.netns, own, scene.service())?.ask("to the service")?;
            }
        }
        Ok(())
    })?;
    let reasons = scene.agent.reasons()?;
    for reason in [
        "direct-to-backend",
        "direct-from-backend",
        "to-load-balancer",
    ] {
        assert!(reasons.contains_key(reason), "{reason}: {reasons:?}");
    }
    Ok(())
}

#[test]
fn direct_conversations_are_not_rewritten_two_arms_v4() -> Result<()> {
    direct_conversations(Two, V4)
}

#[test]
fn direct_conversations_are_not_rewritten_two_arms_v6() -> Result<()> {
    direct_conversations(Two, V6)
}

#[test]
fn direct_conversations_are_not_rewritten_one_arm_v4() -> Result<()> {
    direct_conversations(One, V4)
}

#[test]
fn direct_conversations_are_not_rewritten_one_arm_v6() -> Result<()> {
    direct_conversations(One, V6)
}

fn the_balancers_own(arms: Arms, family: Family) -> Result<()> {
    let scene = Scene::build(Mode::Nat, arms, family, &[1])?;
    let balancer = &scene.network.balancer;
    // The service's address is the balancer's, too: only the service's port is not.
    let own = balancer.at(family, 22);
    let shared = SocketAddr::new(scene.service().ip(), 22);
    let _mirror = Mirror::start(&balancer.netns, "balancer", &[own, shared])?;
    let client = &scene.network.client.netns;
    under_load(&scene, || {
        for to in [own, shared] {
            let mut session = Conversation::open(client, scene.client(0), to)?;
            for line in 0..500 {
                assert_eq!(session.ask(&format!("line {line}"))?.server, "balancer");
            }
            talk(client, scene.client(0), to, 20)?;
            ping(client, to.ip(), 10, 56)?;
            ping(client, to.ip(), 10, 4_000)?;
            // Fragments in both directions.
            let udp = Datagrams::open(client, scene.client(0), to)?;
            for _ in 0..10 {
                assert_eq!(udp.ask(&"f".repeat(LONG))?.local, to);
            }
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn the_balancers_own_traffic_passes_two_arms_v4() -> Result<()> {
    the_balancers_own(Two, V4)
}

#[test]
fn the_balancers_own_traffic_passes_one_arm_v6() -> Result<()> {
    the_balancers_own(One, V6)
}

fn routed_through(arms: Arms, family: Family) -> Result<()> {
    let scene = Scene::build(Mode::Nat, arms, family, &[1])?;
    route_to_backends_through_the_balancer(&scene)?;
    let host = &scene.network.backends[0];
    let other = host.at(family, 9_000);
    let _mirror = Mirror::start(&host.netns, "other", &[other])?;
    let client = &scene.network.client.netns;
    under_load(&scene, || {
        // A port that is no service's, and the one that is, asked directly.
        for to in [other, scene.backend(0)] {
            talk(client, scene.client(0), to, 20)?;
            let udp = Datagrams::open(client, scene.client(19_000), to)?;
            for _ in 0..10 {
                assert_eq!(udp.ask(&"f".repeat(LONG))?.local, to);
            }
        }
        ping(client, host.address(family), 10, 4_000)?;
        ping(&host.netns, scene.client(0).ip(), 10, 4_000)
    })?;
    Ok(())
}

#[test]
fn what_is_routed_through_the_balancer_passes_two_arms_v4() -> Result<()> {
    routed_through(Two, V4)
}

#[test]
fn what_is_routed_through_the_balancer_passes_two_arms_v6() -> Result<()> {
    routed_through(Two, V6)
}

#[test]
fn what_is_routed_through_the_balancer_passes_one_arm_v4() -> Result<()> {
    routed_through(One, V4)
}

#[test]
fn backends_open_connections_of_their_own_through_the_balancer() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let to = scene.client(9_000);
    let _mirror = Mirror::start(&scene.network.client.netns, "out", &[to])?;
    let host = &scene.network.backends[0];
    talk(&host.netns, host.at(V4, 0), to, 20)?;
    // From the service's port, too.
    let mut own = Conversation::open(&host.netns, host.at(V4, scene.backend(0).port() + 1), to)?;
    assert_eq!(own.ask("who")?.peer, own.from());
    Ok(())
}

#[test]
fn neighbours_are_found_through_the_attached_interface() -> Result<()> {
    for family in [V4, V6] {
        let scene = Scene::build(Mode::Nat, One, family, &[1])?;
        let (router, balancer) = (
            scene.network.router.as_ref().expect("one arm"),
            &scene.network.balancer,
        );
        for _ in 0..5 {
            router.netns.ip("neigh flush dev eth1")?;
            ping(&router.netns, balancer.address(family), 1, 56)?;
            ping(&router.netns, scene.service().ip(), 1, 56)?;
            balancer.netns.ip("neigh flush dev eth0")?;
            ping(&balancer.netns, router.address(family), 1, 56)?;
        }
    }
    Ok(())
}

/// Sends `frames` on the client's wire and has each arrive in the balancer's kernel as it is.
fn arrive_unchanged(scene: &Scene, reason: &str, frames: &[Vec<u8>]) -> Result<()> {
    let here = Wire::open(&scene.network.client.netns, "eth0")?;
    let there = Wire::open(&scene.network.balancer.netns, "eth0")?;
    let before = scene
        .agent
        .reasons()?
        .get(reason)
        .copied()
        .unwrap_or_default();
    for frame in frames {
        here.send(frame)?;
        let arrived = there.receive(Duration::from_secs(5), |seen| seen == frame)?;
        assert!(arrived.is_some(), "{reason}: lost or changed: {frame:02x?}");
    }
    let after = scene
        .agent
        .reasons()?
        .get(reason)
        .copied()
        .unwrap_or_default();
    let sent = frames.len() as u64;
    assert!(
        after - before >= sent,
        "{reason}: {before} -> {after}, {sent} sent"
    );
    Ok(())
}

#[test]
fn frames_that_are_not_ours_arrive_unchanged() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let from = scene.network.client.netns.mac("eth0")?;
    let to = scene.network.balancer.netns.mac("eth0")?;
    let addressed = Ethernet { to, from };
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend_from_slice(&from);
    arp.extend_from_slice(&[198, 51, 100, 7, 0, 0, 0, 0, 0, 0, 198, 51, 100, 1]);
    arrive_unchanged(
        &scene,
        "not-ip",
        &[
            addressed.frame(0x88b5, b"an ethertype for experiments"),
            addressed.frame(0x88b5, &[0x5a; 1_486]),
            addressed.frame(0x0806, &arp),
            // A length instead of an ethertype: IEEE 802.3 with LLC.
            addressed.frame(46, &[0x42; 46]),
        ],
    )?;
    let udp = udp_fragments(scene.client(5_000), scene.service(), 1, b"to a group")?.remove(0);
    arrive_unchanged(
        &scene,
        "multicast",
        &[
            Ethernet {
                to: [0xff; 6],
                from,
            }
            .frame(0x0800, &udp),
            Ethernet {
                to: [1, 0, 0x5e, 0, 0, 0x2a],
                from,
            }
            .frame(0x0800, &udp),
        ],
    )?;
    // A header that claims more than there is.
    arrive_unchanged(&scene, "malformed", &[addressed.frame(0x0800, &udp[..24])])
}

fn fragments_of(scene: &Scene, to: SocketAddr) -> Result<Vec<Vec<u8>>> {
    let header = Ethernet {
        to: scene.network.balancer.netns.mac("eth0")?,
        from: scene.network.client.netns.mac("eth0")?,
    };
    let ethertype = if scene.family() == V4 { 0x0800 } else { 0x86dd };
    let payload: Vec<u8> = (0..700u16).map(|n| (n % 251) as u8).collect();
    Ok(udp_fragments(scene.client(5_000), to, 7, &payload)?
        .iter()
        .map(|packet| header.frame(ethertype, packet))
        .collect())
}

fn fragments(family: Family) -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, family, &[1])?;
    // To a port beside the service's: everything passes.
    let beside = SocketAddr::new(scene.service().ip(), PORT + 1);
    let frames = fragments_of(&scene, beside)?;
    arrive_unchanged(&scene, "not-service", &frames[..1])?;
    arrive_unchanged(&scene, "later-fragment", &frames[1..])?;
    // To the service itself the first fragment goes on, and with it the others; until then those pass.
    let ours = fragments_of(&scene, scene.service())?;
    arrive_unchanged(&scene, "later-fragment", &ours[1..])?;
    let here = Wire::open(&scene.network.client.netns, "eth0")?;
    let backend = Wire::open(&scene.network.backends[0].netns, "eth0")?;
    let headers = 14 + if family == V4 { 20 } else { 48 };
    for frame in &ours {
        here.send(frame)?;
        let body = &frame[headers + 8..];
        let arrived = backend.receive(Duration::from_secs(5), |seen| seen.ends_with(body))?;
        assert!(arrived.is_some(), "lost: {frame:02x?}");
    }
    // The same datagram to another port makes it forgotten.
    arrive_unchanged(&scene, "not-service", &frames[..1])?;
    arrive_unchanged(&scene, "later-fragment", &ours[1..])
}

#[test]
fn fragments_pass_but_for_those_of_a_services_datagrams_v4() -> Result<()> {
    fragments(V4)
}

#[test]
fn fragments_pass_but_for_those_of_a_services_datagrams_v6() -> Result<()> {
    fragments(V6)
}
