//! `lb-user decap` on real networks: a backend takes clients' packets out of tunnels, and its answers
//! go to the client directly.

use std::{collections::BTreeMap, fs, net::SocketAddr};

use anyhow::{Context, Result};
use aya::maps::{Array, MapData};
use lb_common::abi::decap::{Settings, VERSION};
use lb_tests::{
    agent::{Agent, has_program},
    client::{Conversation, Datagrams},
    sender::{Sender, Tunnel},
    server::Mirror,
    topology::{
        Arms,
        Family::{self, V4, V6},
        Network, Return, service,
    },
    wait,
};
use serde_json::Value;

/// Port of the service.
const PORT: u16 = 7000;

/// A network whose balancer is a [`Sender`], and a backend that serves both families.
struct Scene {
    agent: Agent,
    _mirror: Mirror,
    network: Network,
}

impl Scene {
    fn build() -> Result<Self> {
        let network = Network::build(Arms::Two, Return::Direct, 1)?;
        // What is wrapped must fit in what there is.
        network
            .client
            .netns
            .ip("route change default via 198.51.100.1 mtu 1400
                 route change default via 2001:db8:c::1 mtu 1400")?;
        let services = [V4, V6].map(|family| SocketAddr::new(service(family), PORT));
        let mirror = Mirror::start(&network.backends[0].netns, "b1", &services)?;
        Ok(Self {
            agent: Agent::prepare(&network)?,
            _mirror: mirror,
            network,
        })
    }

    /// Attaches on the backend.
    fn attach(&self, flags: &str) -> Result<String> {
        self.agent.ok(&self.attach_line(flags))
    }

    fn attach_line(&self, flags: &str) -> String {
        let netns = self.network.backends[0].netns.name();
        format!("decap attach eth0 --netns {netns} {flags}")
    }

    /// The one interface in `decap status -o json`.
    fn status(&self) -> Result<Value> {
        let text = self.agent.ok("decap status -o json")?;
        let status: Value = serde_json::from_str(&text)?;
        assert_eq!(status.as_array().map(Vec::len), Some(1), "{text}");
        Ok(status[0].clone())
    }

    /// Packets by reason.
    fn counted(&self) -> Result<BTreeMap<String, u64>> {
        let status = self.status()?;
        let reasons = status["reasons"].as_array().context("no reasons")?;
        reasons
            .iter()
            .map(|reason| {
                let name = reason["name"].as_str().context("no name")?.to_owned();
                Ok((name, reason["packets"].as_u64().context("no packets")?))
            })
            .collect()
    }

    /// A TCP connection, a long message in it, and a datagram: both ends see true addresses.
    fn talks(&self, family: Family) -> Result<()> {
        let service = SocketAddr::new(service(family), PORT);
        let client = &self.network.client;
        let mut conversation = Conversation::open(&client.netns, client.at(family, 0), service)?;
        let long = "0123456789abcdef".repeat(5_000);
        for said in ["who", &long] {
            let answer = conversation.ask(said)?;
            assert_eq!(answer.server, "b1");
            assert_eq!(answer.peer, conversation.from());
            assert_eq!(answer.peer.ip(), client.address(family));
            assert_eq!(answer.local, service);
        }
        let datagrams = Datagrams::open(&client.netns, client.at(family, 0), service)?;
        let answer = datagrams.ask("who")?;
        assert_eq!((answer.peer, answer.local), (datagrams.from(), service));
        Ok(())
    }
}

/// Every tunnel of one outer family, around both inner families.
fn every_tunnel(outer: Family, mode: &str) -> Result<()> {
    let scene = Scene::build()?;
    let from = Sender::source(outer);
    let said = scene.attach(&format!("--from {from} --xdp-mode {mode}"))?;
    let place = if mode == "skb" { "generic" } else { "driver" };
    assert!(
        said.contains(&format!("+ attached to eth0 in {place} mode")),
        "{said}"
    );
    assert!(said.contains(&from.to_string()), "{said}");
    for tunnel in Tunnel::ALL {
        for inner in [V4, V6] {
            let told = || format!("{inner:?} in {tunnel:?} over {outer:?}");
            let before = scene.counted()?;
            let sender = Sender::start(&scene.network, tunnel, outer)?;
            scene.talks(inner).with_context(told)?;
            sender.stop()?;
            let after = scene.counted()?;
            let taken = |counts: &BTreeMap<String, u64>| match tunnel {
                Tunnel::Ipip => counts["taken-ipip"],
                Tunnel::Gue { .. } => counts["taken-gue"],
            };
            // Two handshakes' worth, a datagram, and 80,000 bytes in 1,400 at a time.
            let count = taken(&after) - taken(&before);
            assert!(count >= 60, "{}: {count} taken out", told());
            for reason in [
                "malformed",
                "inner-malformed",
                "unknown-source",
                "congestion",
            ] {
                assert_eq!(after[reason], 0, "{reason} {}", told());
            }
        }
    }
    Ok(())
}

#[test]
fn clients_talk_through_every_tunnel_over_v4() -> Result<()> {
    every_tunnel(V4, "auto")
}

#[test]
fn clients_talk_through_every_tunnel_over_v6() -> Result<()> {
    every_tunnel(V6, "driver")
}

#[test]
fn clients_talk_through_every_tunnel_in_generic_mode() -> Result<()> {
    every_tunnel(V4, "skb")
}

#[test]
fn gue_has_the_port_that_it_is_given() -> Result<()> {
    let scene = Scene::build()?;
    scene.attach("--from 10.0.1.0/24 --gue-port 5555")?;
    let tunnel = Tunnel::Gue {
        port: 5555,
        checksum: true,
    };
    let _sender = Sender::start(&scene.network, tunnel, V4)?;
    scene.talks(V4)?;
    assert_eq!(scene.status()?["gue_port"], 5555);
    assert_eq!(
        scene.status()?["sources"],
        serde_json::json!(["10.0.1.0/24"])
    );
    Ok(())
}

/// Frames that need several buffers: native XDP on veth holds about 3,500 bytes in one.
#[test]
fn jumbo_frames_are_taken_out_in_the_driver() -> Result<()> {
    let scene = Scene::build()?;
    scene.network.enlarge(9000)?;
    let client = &scene.network.client.netns;
    let backend = &scene.network.backends[0].netns;
    client.ip("route change default via 198.51.100.1 mtu 8900")?;
    // Answers go through a router with an MTU of 1500.
    backend.ip("route change default via 10.0.1.254 mtu 1500 advmss 8860")?;
    scene.attach("--from 10.0.1.1 --xdp-mode driver")?;
    let sender = Sender::start(&scene.network, Tunnel::ALL[1], V4)?;
    scene.talks(V4)?;
    sender.stop()?;
    let status = scene.status()?;
    let mut reasons = status["reasons"].as_array().context("no reasons")?.iter();
    let taken = reasons.find(|reason| reason["name"] == "taken-gue");
    let taken = taken.context("no such reason")?;
    let (packets, bytes) = (taken["packets"].as_u64(), taken["bytes"].as_u64());
    // 80,000 bytes in fewer packets than it takes at 3,500 bytes each.
    assert!(packets < Some(40), "{taken}");
    assert!(bytes > Some(80_000), "{taken}");
    Ok(())
}

#[test]
fn a_stranger_is_not_taken_out_until_it_is_named() -> Result<()> {
    let scene = Scene::build()?;
    // Everybody of the other family, and a neighbour.
    scene.attach("--from ::/0 --from 10.0.1.2")?;
    let sender = Sender::start(&scene.network, Tunnel::Ipip, V4)?;
    let client = &scene.network.client;
    let to = SocketAddr::new(service(V4), PORT);
    // What the backend's kernel says to a tunnel that it does not know does not reach the client.
    let datagrams = Datagrams::open(&client.netns, client.at(V4, 0), to)?;
    let error = datagrams.ask("who").expect_err("nobody may answer");
    let waited = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    assert_eq!(waited, Some(std::io::ErrorKind::WouldBlock), "{error:#}");
    let counted = scene.counted()?;
    assert_eq!(counted["unknown-source"], 1, "{counted:?}");
    assert_eq!(counted["taken-ipip"], 0, "{counted:?}");

    let first = scene.status()?["program"].clone();
    let said = scene.attach("--from 10.0.1.1")?;
    assert!(
        said.starts_with("~ replaced on eth0 in driver mode"),
        "{said}"
    );
    scene.talks(V4)?;
    let status = scene.status()?;
    assert_ne!(status["program"], first);
    assert_eq!(status["sources"], serde_json::json!(["10.0.1.1/32"]));
    // The counters go on.
    assert_eq!(scene.counted()?["unknown-source"], 1);
    sender.stop()
}

#[test]
fn packets_go_on_while_it_is_attached_again() -> Result<()> {
    let scene = Scene::build()?;
    scene.attach("--from 10.0.1.1")?;
    let sender = Sender::start(&scene.network, Tunnel::Ipip, V4)?;
    let client = &scene.network.client;
    let to = SocketAddr::new(service(V4), PORT);
    let datagrams = Datagrams::open(&client.netns, client.at(V4, 0), to)?;
    let mut asked = 0;
    std::thread::scope(|scope| -> Result<()> {
        let again = scope.spawn(|| -> Result<()> {
            for flags in [
                "--from 10.0.1.1",
                "--from 10.0.1.0/24",
                "--from 10.0.1.1 --from ::1",
            ] {
                scene.attach(flags)?;
            }
            Ok(())
        });
        while !again.is_finished() {
            // No second try: a lost one is an error.
            datagrams.ask(&format!("{asked}"))?;
            asked += 1;
        }
        again.join().expect("no panic")
    })?;
    assert!(asked >= 10, "only {asked} datagrams meanwhile");
    let counted = scene.counted()?;
    assert_eq!(counted["taken-ipip"], asked, "{counted:?}");
    assert_eq!(counted["unknown-source"], 0, "{counted:?}");
    sender.stop()
}

#[test]
fn nothing_is_left_after_detach() -> Result<()> {
    let scene = Scene::build()?;
    let backend = &scene.network.backends[0].netns;
    scene.attach("--from 10.0.1.1 --from 2001:db8:b::1")?;
    assert!(has_program(backend, "eth0")?);
    let folder = scene.agent.pins().join("decap/eth0");
    let mut pins: Vec<_> = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.file_name().into_string().expect("a name")))
        .collect::<Result<_>>()?;
    pins.sort_unstable();
    assert_eq!(pins, ["counters", "link", "settings", "sources"]);

    let line = scene.agent.refused("decap detach eth1")?;
    assert!(
        line.contains("decap is not attached to eth1; it is to eth0"),
        "{line}"
    );
    assert_eq!(scene.agent.ok("decap detach eth0")?, "detached from eth0\n");
    assert!(!has_program(backend, "eth0")?);
    assert!(!scene.agent.pins().exists());
    assert_eq!(scene.agent.ok("decap status -o json")?, "[]\n");
    assert_eq!(
        scene.agent.ok("decap detach")?,
        "decap is attached to no interface\n"
    );
    // The backend is as before: a tunnel is nobody's.
    let _sender = Sender::start(&scene.network, Tunnel::Ipip, V4)?;
    let client = &scene.network.client;
    let to = SocketAddr::new(service(V4), PORT);
    let datagrams = Datagrams::open(&client.netns, client.at(V4, 0), to)?;
    assert!(datagrams.ask("who").is_err());
    Ok(())
}

#[test]
fn an_interface_that_is_made_anew_is_attached_to_again() -> Result<()> {
    let scene = Scene::build()?;
    scene.attach("--from 10.0.1.1")?;
    let backend = &scene.network.backends[0].netns;
    backend.ip("link del eth0\nlink add eth0 type veth peer name p0\nlink set eth0 up")?;
    wait::until_true("the interface to be gone", wait::LONG, || {
        Ok(scene.status()?["ifindex"].is_null())
    })?;
    let table = scene.agent.ok("decap status")?;
    assert!(table.contains("eth0 (gone:"), "{table}");
    let said = scene.attach("--from 10.0.1.1")?;
    assert!(said.starts_with("+ attached to eth0"), "{said}");
    assert!(has_program(backend, "eth0")?);
    Ok(())
}

#[test]
fn a_load_balancer_of_the_same_instance_does_not_disturb_it() -> Result<()> {
    let scene = Scene::build()?;
    scene.attach("--from 10.0.1.1")?;
    scene.agent.attach("")?;
    scene.agent.ok("detach")?;
    let backend = &scene.network.backends[0].netns;
    assert!(has_program(backend, "eth0")?);
    let _sender = Sender::start(&scene.network, Tunnel::Ipip, V4)?;
    scene.talks(V4)?;
    scene.agent.ok("decap detach")?;
    assert!(!scene.agent.pins().exists());
    Ok(())
}

#[test]
fn pins_of_another_layout_are_refused_until_they_are_given_up() -> Result<()> {
    let scene = Scene::build()?;
    scene.attach("--from 10.0.1.1")?;
    let program = scene.status()?["program"].clone();
    // As a version to come may have left them.
    let pin = scene.agent.pins().join("decap/eth0/settings");
    let map = aya::maps::Map::Array(MapData::from_pin(pin)?);
    let mut map: Array<_, Settings> = map.try_into()?;
    let settings = map.get(&0, 0)?;
    let other = Settings {
        version: VERSION + 1,
        ..settings
    };
    map.set(0, other, 0)?;
    for line in [&*scene.attach_line("--from 10.0.1.0/24"), "decap status"] {
        let told = scene.agent.refused(line)?;
        let words = format!("layout version {}", VERSION + 1);
        assert!(told.contains(&words), "{told}");
        assert!(told.contains("--discard"), "{told}");
    }
    // It runs on as it was.
    let sender = Sender::start(&scene.network, Tunnel::Ipip, V4)?;
    scene.talks(V4)?;
    map.set(0, settings, 0)?;
    assert_eq!(scene.status()?["program"], program);
    map.set(0, other, 0)?;
    let said = scene.attach("--from 10.0.1.1 --discard")?;
    assert!(said.starts_with("~ replaced on eth0"), "{said}");
    assert_eq!(scene.counted()?["taken-ipip"], 0);
    scene.talks(V4)?;
    assert!(scene.counted()?["taken-ipip"] > 0);
    sender.stop()
}

#[test]
fn what_cannot_be_is_refused_in_one_line() -> Result<()> {
    let scene = Scene::build()?;
    let agent = &scene.agent;
    let refused = |flags: &str, words: &str| -> Result<()> {
        let line = agent.refused(&scene.attach_line(flags))?;
        assert!(line.contains(words), "{flags}: {line}");
        Ok(())
    };
    refused("", "give at least one, as in --from 10.0.0.2")?;
    refused("--from 10.0.0.1/24", "write 10.0.0.0/24 or 10.0.0.1")?;
    refused("--from nonsense", "write an address or a network")?;
    refused("--from 10.0.0.1 --gue-port 0", "--gue-port")?;
    let line = agent.refused("decap attach eth0 --netns nowhere --from 10.0.0.1")?;
    assert!(
        line.contains("there is no network namespace nowhere"),
        "{line}"
    );
    let netns = scene.network.backends[0].netns.name();
    let line = agent.refused(&format!(
        "decap attach eth9 --netns {netns} --from 10.0.0.1"
    ))?;
    assert!(
        line.contains("there is no interface eth9 here; there are lo, eth0"),
        "{line}"
    );
    let line = agent.refused(&format!("decap attach lo --netns {netns} --from 10.0.0.1"))?;
    assert!(line.contains("lo is no Ethernet interface"), "{line}");
    let line = agent.refused_without_capabilities(&scene.attach_line("--from 10.0.0.1"))?;
    assert!(line.contains("lb-user needs root"), "{line}");
    assert!(!agent.pins().exists());

    // Somebody else's program: the load balancer's own.
    agent.attach("")?;
    let balancer = scene.network.balancer.netns.name();
    let line = agent.refused(&format!(
        "decap attach eth0 --netns {balancer} --from 10.0.0.1"
    ))?;
    assert!(line.contains("already carries XDP program"), "{line}");
    assert!(line.contains("(lb)"), "{line}");

    // The same name in another namespace.
    scene.attach("--from 10.0.0.1")?;
    let client = scene.network.client.netns.name();
    let line = agent.refused(&format!(
        "decap attach eth0 --netns {client} --from 10.0.0.1"
    ))?;
    assert!(line.contains("give --instance NAME"), "{line}");
    Ok(())
}
