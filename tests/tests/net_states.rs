//! Backends that are disabled, drained, removed and added while clients talk.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use lb_tests::{
    claims::{index_of, under_load},
    client::{Conversation, Datagrams, converse_many, ports},
    scene::{Mode, Scene},
    topology::{
        Arms::{One, Two},
        Family::{V4, V6},
    },
};

/// Connections that stand, and the server each of them has.
fn stand(scene: &Scene, count: u16) -> Result<Vec<(Conversation, String)>> {
    (0..count)
        .map(|_| {
            let mut conversation = scene.conversation()?;
            let server = conversation.ask("first")?.server;
            Ok((conversation, server))
        })
        .collect()
}

/// UDP flows, and the server each of them has.
fn flow(scene: &Scene, count: u16) -> Result<Vec<(Datagrams, String)>> {
    (0..count)
        .map(|_| {
            let datagrams = scene.datagrams()?;
            let server = datagrams.ask("first")?.server;
            Ok((datagrams, server))
        })
        .collect()
}

fn keep_their_servers(standing: &mut [(Conversation, String)]) -> Result<()> {
    for (conversation, server) in standing {
        let now = conversation.ask("still there?")?.server;
        ensure!(
            now == *server,
            "{:?} moved from {server} to {now}",
            conversation.from()
        );
    }
    Ok(())
}

/// No connection and no datagram opened from now on reaches backend `index`.
fn takes_nothing_new(scene: &Scene, index: usize, first_port: u16) -> Result<()> {
    let from = ports(scene.client(0).ip(), first_port, 400);
    let client = &scene.network.client.netns;
    for answer in converse_many(client, &from, scene.service())? {
        assert_ne!(index_of(&answer.server), index, "TCP from {}", answer.peer);
    }
    for &from in &from {
        let answer = Datagrams::open(client, from, scene.service())?.ask("who")?;
        assert_ne!(index_of(&answer.server), index, "UDP from {from}");
    }
    Ok(())
}

fn reaches(scene: &Scene, count: u16) -> Result<BTreeSet<usize>> {
    let from = ports(scene.client(0).ip(), 30_000, count);
    let answers = converse_many(&scene.network.client.netns, &from, scene.service())?;
    Ok(answers
        .iter()
        .map(|answer| index_of(&answer.server))
        .collect())
}

fn disabled(scene: &Scene) -> Result<()> {
    let mut standing = stand(scene, 60)?;
    let flows = flow(scene, 60)?;
    under_load(scene, || {
        scene.change("set", 0, "--state disabled")?;
        takes_nothing_new(scene, 0, 20_000)?;
        // Established connections stay; UDP moves with its next packet.
        keep_their_servers(&mut standing)?;
        for (datagrams, server) in &flows {
            let now = datagrams.ask("second")?.server;
            assert_ne!(index_of(&now), 0, "{} had {server}", datagrams.from());
            assert!(index_of(server) == 0 || now == *server, "{server} -> {now}");
        }
        scene.change("set", 0, "--state enabled")
    })?;
    assert_eq!(reaches(scene, 300)?, BTreeSet::from([0, 1, 2]));
    Ok(())
}

#[test]
fn a_disabled_backend_takes_no_new_flow_nat() -> Result<()> {
    disabled(&Scene::build(Mode::Nat, Two, V4, &[1, 1, 1])?)
}

#[test]
fn a_disabled_backend_takes_no_new_flow_dsr() -> Result<()> {
    disabled(&Scene::build(Mode::DsrL2, One, V6, &[1, 1, 1])?)
}

fn draining(scene: &Scene) -> Result<()> {
    let mut standing = stand(scene, 60)?;
    let flows = flow(scene, 60)?;
    under_load(scene, || {
        scene.change("set", 1, "--state draining")?;
        takes_nothing_new(scene, 1, 20_000)?;
        keep_their_servers(&mut standing)?;
        for (datagrams, server) in &flows {
            assert_eq!(
                datagrams.ask("second")?.server,
                *server,
                "{}",
                datagrams.from()
            );
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_draining_backend_keeps_its_flows_nat() -> Result<()> {
    draining(&Scene::build(Mode::Nat, One, V6, &[1, 1, 1])?)
}

#[test]
fn a_draining_backend_keeps_its_flows_dsr() -> Result<()> {
    draining(&Scene::build(Mode::DsrL2, Two, V4, &[1, 1, 1])?)
}

fn removed(scene: &Scene) -> Result<()> {
    let standing = stand(scene, 120)?;
    let mut remaining: Vec<_> = standing
        .into_iter()
        .filter(|(_, server)| index_of(server) != 2)
        .collect();
    assert!(remaining.len() > 30, "only {} of 120", remaining.len());
    // They talk all the while; a connection of the removed backend's own may break.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let talk = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                keep_their_servers(&mut remaining)?;
            }
            anyhow::Ok(())
        });
        let changes = (|| {
            for _ in 0..3 {
                scene.change("del", 2, "")?;
                takes_nothing_new(scene, 2, 20_000)?;
                scene.change("add", 2, "--weight 3")?;
                scene.agent.resolved()?;
            }
            anyhow::Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        talk.join().expect("the talk does not panic")?;
        changes
    })?;
    assert_eq!(reaches(scene, 300)?, BTreeSet::from([0, 1, 2]));
    Ok(())
}

#[test]
fn no_connection_breaks_when_another_backend_goes_nat() -> Result<()> {
    removed(&Scene::build(Mode::Nat, Two, V6, &[1, 1, 1])?)
}

#[test]
fn no_connection_breaks_when_another_backend_goes_dsr() -> Result<()> {
    removed(&Scene::build(Mode::DsrL2, Two, V4, &[1, 1, 1])?)
}

#[test]
fn connections_stay_when_weights_change() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 1, 1])?;
    let mut standing = stand(&scene, 90)?;
    under_load(&scene, || {
        for weight in [5, 0, 2] {
            scene.change("set", 0, &format!("--weight {weight}"))?;
            keep_their_servers(&mut standing)?;
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn without_a_backend_packets_are_dropped_and_counted() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    scene.change("set", 0, "--state disabled")?;
    assert!(scene.conversation().is_err());
    let reasons = scene.agent.reasons()?;
    assert!(reasons.contains_key("no-backend"), "{reasons:?}");
    scene.change("set", 0, "--state enabled")?;
    scene.conversation()?.ask("who")?;
    Ok(())
}

#[test]
fn flushed_flows_choose_anew_and_others_stay() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 1])?;
    let agent = &scene.agent;
    let mut standing = stand(&scene, 12)?;
    // A drained backend keeps its connections; without their entries they choose the other one,
    // which does not know them.
    scene.change("set", 0, "--state draining")?;
    keep_their_servers(&mut standing)?;
    let of = |index: usize| -> Result<u64> {
        let flows = agent.flows()?;
        Ok(flows
            .iter()
            .filter(|flow| flow.backend == scene.backend(index))
            .count() as u64)
    };
    let (drained, other) = (of(0)?, of(1)?);
    assert!(drained > 0 && other > 0, "{drained} and {other} flows");

    let line = agent.refused("flows --flush")?;
    assert!(
        line.contains("name a service, a backend or a client"),
        "{line}"
    );
    let line = agent.refused("flows --flush --client 192.0.2.1 --service nowhere")?;
    assert!(line.contains("nowhere"), "{line}");
    assert_eq!((of(0)?, of(1)?), (drained, other));

    let done = agent.json(&format!("flows --flush --backend {}", scene.backend(0)))?;
    assert_eq!(done["flows"].as_u64(), Some(drained), "{done}");
    assert_eq!((of(0)?, of(1)?), (0, other));
    for (conversation, server) in &mut standing {
        let again = conversation.ask("still there?");
        if index_of(server) == 0 {
            assert!(again.is_err(), "{again:?}");
        } else {
            assert_eq!(again?.server, *server);
        }
    }
    Ok(())
}
