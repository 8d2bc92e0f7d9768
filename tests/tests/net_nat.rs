//! Mode `nat` on real networks: destination rewritten, answers back through the load balancer.

use anyhow::Result;
use lb_tests::{
    claims,
    client::{Conversation, Datagrams, converse_many, ports},
    scene::{Mode, PORT, Scene},
    server::Mirror,
    topology::{
        Arms::{One, Two},
        Family::{V4, V6},
        service,
    },
};
use std::{collections::BTreeSet, net::SocketAddr};

claims::addresses_are_true!(Mode::Nat);

#[test]
fn shares_follow_weights_two_arms_v4() -> Result<()> {
    claims::shares_follow_weights(Mode::Nat, Two, V4, &[1, 2, 5])
}

#[test]
fn shares_follow_weights_one_arm_v6() -> Result<()> {
    claims::shares_follow_weights(Mode::Nat, One, V6, &[3, 1])
}

#[test]
fn the_same_ports_reach_the_same_backends_again() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 1, 1])?;
    let from = ports(scene.client(0).ip(), 20_000, 500);
    let client = &scene.network.client.netns;
    let once = converse_many(client, &from, scene.service())?;
    let again = converse_many(client, &from, scene.service())?;
    assert_eq!(once, again);
    Ok(())
}

#[test]
fn round_robin_takes_turns() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 1, 1])?;
    scene.agent.ok("service set web --algorithm round-robin")?;
    let mut counts = [0; 3];
    for _ in 0..300 {
        let answer = scene.conversation()?.ask("who")?;
        counts[claims::index_of(&answer.server)] += 1;
    }
    assert!(
        counts.iter().all(|count| (90..=110).contains(count)),
        "{counts:?}"
    );
    Ok(())
}

#[test]
fn source_hash_keeps_a_client_on_one_backend() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V6, &[1, 1, 1])?;
    scene.agent.ok("service set web --algorithm source-hash")?;
    let client = &scene.network.client.netns;
    let mut used = BTreeSet::new();
    for host in 0x20..0x40 {
        let address = format!("2001:db8:c::{host:x}");
        client.ip(&format!("addr add {address}/64 dev eth0 nodad"))?;
        let from = SocketAddr::new(address.parse()?, 0);
        let servers = (0..10)
            .map(|_| {
                Ok(Conversation::open(client, from, scene.service())?
                    .ask("who")?
                    .server)
            })
            .collect::<Result<BTreeSet<_>>>()?;
        assert_eq!(servers.len(), 1, "{address} was spread over {servers:?}");
        used.extend(servers);
    }
    assert_eq!(used.len(), 3, "32 clients use only {used:?}");
    Ok(())
}

#[test]
fn two_services_may_share_a_backends_address_and_port() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 1])?;
    let other = SocketAddr::new(service(V4), PORT + 100);
    for protocol in ["tcp", "udp"] {
        let name = format!("other-{protocol}");
        scene
            .agent
            .ok(&format!("service add {other}/{protocol} --name {name}"))?;
        for index in 0..2 {
            scene
                .agent
                .ok(&format!("backend add {name} {}", scene.backend(index)))?;
        }
    }
    let client = &scene.network.client.netns;
    for port in 41_000..41_050 {
        let (one, two) = (scene.client(port), scene.client(port + 1_000));
        let mut first = Conversation::open(client, one, scene.service())?;
        let mut second = Conversation::open(client, two, other)?;
        let (third, fourth) = (
            Datagrams::open(client, one, scene.service())?,
            Datagrams::open(client, two, other)?,
        );
        assert_eq!(first.ask("first")?.peer, one);
        assert_eq!(second.ask("second")?.peer, two);
        assert_eq!(third.ask("third")?.peer, one);
        assert_eq!(fourth.ask("fourth")?.peer, two);
    }
    Ok(())
}

#[test]
fn backends_may_listen_on_the_services_own_port() -> Result<()> {
    let scene = Scene::build(Mode::Nat, One, V4, &[0])?;
    let backend = scene.network.backends[0].at(V4, PORT);
    let _mirror = Mirror::start(&scene.network.backends[0].netns, "same-port", &[backend])?;
    scene
        .agent
        .ok(&format!("backend add web {}", backend.ip()))?;
    scene.agent.resolved()?;
    assert_eq!(scene.conversation()?.ask("who")?.local, backend);
    Ok(())
}
