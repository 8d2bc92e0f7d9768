//! The backends' way out: their own connections leave under the load balancer's address, and the
//! service's traffic does not notice.
//!
//! ```text
//! client .7 ─── eth0 balancer eth1 ─── .11 b1
//!                    eth2 .2
//!                      └────────────── .1 outside   192.0.2.0/24, 2001:db8:a::/64
//! ```
//!
//! `outside` is the balancer's default route and knows no way to the backends. Its servers have
//! addresses of their own; the one of IPv6 is closer to the service's address than to any other of
//! the balancer's, which tempts source address selection (RFC 6724, rule 8).

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    claims,
    client::{self, Conversation, Datagrams, curl},
    netns::Netns,
    scene::{Mode, Scene},
    server::{Mirror, Nginx},
    topology::{
        Arms::{One, Two},
        Family::{self, V4, V6},
    },
    wait,
};
use serde_json::Value;

/// The balancer's address on the side of `outside`.
fn masquerade(family: Family) -> IpAddr {
    match family {
        V4 => IpAddr::from([192, 0, 2, 2]),
        V6 => "2001:db8:a::2".parse().expect("an address"),
    }
}

/// Where the servers outside listen.
fn server(family: Family, port: u16) -> SocketAddr {
    let address = match family {
        V4 => IpAddr::from([192, 0, 2, 200]),
        V6 => "2001:db8:5::99".parse().expect("an address"),
    };
    SocketAddr::new(address, port)
}

/// The backends' network.
fn prefix(family: Family) -> &'static str {
    match family {
        V4 => "10.0.1.0/24",
        V6 => "2001:db8:b::/64",
    }
}

struct Outside {
    scene: Scene,
    netns: Netns,
}

impl Outside {
    /// The scene with the world outside, attached on all sides.
    fn build(family: Family) -> Result<Self> {
        let scene = Scene::build(Mode::Nat, Two, family, &[1])?;
        let netns = Netns::create("outside")?;
        let balancer = &scene.network.balancer.netns;
        balancer.ip(&format!(
            "link add eth2 type veth peer name eth0 netns {}
             addr add 192.0.2.2/24 dev eth2
             addr add 2001:db8:a::2/64 dev eth2 nodad
             link set eth2 up",
            netns.name()
        ))?;
        netns.ip("addr add 192.0.2.1/24 dev eth0
             addr add 192.0.2.200/24 dev eth0
             addr add 2001:db8:a::1/64 dev eth0 nodad
             addr add 2001:db8:5::99/128 dev lo nodad
             link set eth0 up")?;
        balancer.ip("route add default via 192.0.2.1
             route add default via 2001:db8:a::1")?;
        balancer.tool("ethtool -K eth2 tx off")?;
        netns.tool("ethtool -K eth0 tx off gro on")?;
        scene.agent.ok("attach eth2")?;
        Ok(Self { scene, netns })
    }

    fn backend(&self) -> &Netns {
        &self.scene.network.backends[0].netns
    }

    /// The one prefix, as `egress list` and `stats` both tell it.
    fn carried(&self) -> Result<Value> {
        let listed = self.scene.agent.json("egress list")?;
        let stats = self.scene.agent.json("stats")?;
        let (listed, told) = (listed.as_array(), stats["egress"].as_array());
        let (listed, told) = (listed.context("no list")?, told.context("no egress")?);
        ensure!(listed.len() == 1 && told.len() == 1, "{listed:?}, {told:?}");
        Ok(listed[0].clone())
    }

    /// The tables of nftables on the balancer, without those that the program did not make.
    fn tables(&self) -> Result<Vec<String>> {
        let balancer = &self.scene.network.balancer.netns;
        let tables = balancer.tool("nft list tables")?;
        Ok(tables.lines().map(str::to_owned).collect())
    }
}

fn number(value: &Value, pointer: &str) -> u64 {
    let found = value.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

fn way_out(family: Family) -> Result<()> {
    let world = Outside::build(family)?;
    let (scene, agent) = (&world.scene, &world.scene.agent);
    let web = server(family, 80);
    let nginx = Nginx::start(&world.netns, "outside", &[web], None)?;
    let mirror = server(family, 7000);
    let _mirror = Mirror::start(&world.netns, "mirror", &[mirror])?;
    let balancer = &scene.network.balancer.netns;

    // Nothing comes back without it. `ping` asks once and says so.
    assert!(client::ping(world.backend(), web.ip(), 1, 56).is_err());
    let said = agent.ok(&format!("egress add {}", prefix(family)))?;
    assert!(
        said.contains(&format!("+ egress {}", prefix(family))),
        "{said}"
    );
    assert!(said.contains("out of eth2"), "{said}");

    let (count, ()) = claims::under_load(scene, || {
        for _ in 0..10 {
            let page = curl(world.backend(), web)?;
            assert_eq!((page.status, page.body.as_str()), (200, "outside"));
            claims::both_ends_see_true_addresses(scene)?;
        }
        for access in nginx.accesses_once(10)? {
            assert_eq!(access.remote_addr, masquerade(family));
        }
        let from = scene.network.backends[0].at(family, 0);
        let tcp = Conversation::open(world.backend(), from, mirror)?.ask("over TCP")?;
        let udp = Datagrams::open(world.backend(), from, mirror)?.ask("over UDP")?;
        for answer in [tcp, udp] {
            assert_eq!(answer.peer.ip(), masquerade(family), "{answer:?}");
        }
        client::ping(world.backend(), web.ip(), 3, 56)
    })?;
    assert!(count > 0);

    let carried = world.carried()?;
    assert_eq!(carried["prefix"], prefix(family));
    assert_eq!(carried["interfaces"][0], "eth2");
    assert_eq!(carried["note"], Value::Null, "{carried}");
    // Ten pages, two conversations, one sequence of pings, and nothing of the service's.
    assert_eq!(number(&carried, "/connections"), 13, "{carried}");
    assert!(number(&carried, "/out/packets") >= 13 * 2, "{carried}");
    assert!(number(&carried, "/back/packets") >= 13, "{carried}");
    assert!(number(&carried, "/out/bytes") > number(&carried, "/out/packets") * 20);

    // Conversations that the client opens with the backend itself stay as they are.
    let direct = scene.network.backends[0].at(family, 7009);
    let _direct = Mirror::start(world.backend(), "direct", &[direct])?;
    let client = &scene.network.client.netns;
    for port in [22_001, 22_002] {
        let from = scene.client(port);
        assert_eq!(
            Conversation::open(client, from, direct)?.ask("tcp")?.peer,
            from
        );
        assert_eq!(
            Datagrams::open(client, from, direct)?.ask("udp")?.peer,
            from
        );
    }
    // The balancer's own connections keep their source.
    let inner = match family {
        V4 => "10.0.1.1:0",
        V6 => "[2001:db8:b::1]:0",
    };
    world.netns.ip("route add 10.0.1.1/32 via 192.0.2.2
         route add 2001:db8:b::1/128 via 2001:db8:a::2")?;
    let own: SocketAddr = inner.parse()?;
    let answer = Conversation::open(balancer, own, mirror)?.ask("own")?;
    assert_eq!(answer.peer.ip(), own.ip());
    assert_eq!(number(&world.carried()?, "/connections"), 13);
    Ok(())
}

#[test]
fn a_backend_reaches_outside_while_its_service_answers_v4() -> Result<()> {
    way_out(V4)
}

#[test]
fn a_backend_reaches_outside_while_its_service_answers_v6() -> Result<()> {
    way_out(V6)
}

/// With one arm the way out is the interface that backends and clients are behind.
fn one_arm(family: Family) -> Result<()> {
    let scene = Scene::build(Mode::Nat, One, family, &[1, 1])?;
    let network = &scene.network;
    let backend = &network.backends[0];
    let web = network.client.at(family, 80);
    let nginx = Nginx::start(&network.client.netns, "outside", &[web], None)?;
    scene.agent.ok(&format!("egress add {}", prefix(family)))?;
    claims::under_load(&scene, || {
        for _ in 0..5 {
            assert_eq!(curl(&backend.netns, web)?.body, "outside");
            claims::both_ends_see_true_addresses(&scene)?;
        }
        Ok(())
    })?;
    for access in nginx.accesses_once(5)? {
        assert_eq!(access.remote_addr, network.balancer.address(family));
    }
    // What stays within the prefix keeps its source, also where the balancer is asked to route it.
    let other = &network.backends[1];
    let at = other.at(family, 7009);
    let _mirror = Mirror::start(&other.netns, "b2", &[at])?;
    let balancer = network.balancer.address(family);
    backend
        .netns
        .ip(&format!("route add {} via {balancer}", at.ip()))?;
    let from = backend.at(family, 0);
    let answer = Conversation::open(&backend.netns, from, at)?.ask("within")?;
    assert_eq!(answer.peer.ip(), from.ip());
    let listed = scene.agent.json("egress list")?;
    assert_eq!(number(&listed, "/0/connections"), 5, "{listed}");
    Ok(())
}

#[test]
fn one_arm_is_enough_v4() -> Result<()> {
    one_arm(V4)
}

#[test]
fn one_arm_is_enough_v6() -> Result<()> {
    one_arm(V6)
}

#[test]
fn the_table_is_one_goes_on_after_a_crash_and_goes_with_detach() -> Result<()> {
    let world = Outside::build(V4)?;
    let agent = &world.scene.agent;
    let web = server(V4, 80);
    let _nginx = Nginx::start(&world.netns, "outside", &[web], None)?;
    let balancer = &world.scene.network.balancer.netns;
    balancer.nft("table inet somebodys { }")?;
    agent.ok("egress add 10.0.1.0/24 --interface eth2")?;
    let ours = format!("table inet lb-user-{}", agent.instance());
    let both = vec!["table inet somebodys".to_owned(), ours.clone()];
    curl(world.backend(), web)?;
    let before = number(&world.carried()?, "/out/packets");
    assert!(before > 0);

    agent.crash()?;
    assert_eq!(world.tables()?, both);
    // The way out does not need the agent.
    curl(world.backend(), web)?;
    agent.attach("")?;
    agent.ok("attach eth2")?;
    assert_eq!(world.tables()?, both);
    let rules = balancer.tool(&format!("nft list {ours}"))?;
    assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");
    let after = number(&world.carried()?, "/out/packets");
    assert!(
        after > before,
        "counters began anew: {before}, then {after}"
    );
    curl(world.backend(), web)?;
    assert!(number(&world.carried()?, "/out/packets") > after);
    assert_eq!(number(&world.carried()?, "/connections"), 3);

    // What an administrator flushes comes back.
    balancer.tool("nft flush ruleset")?;
    wait::until_true("the table to come back", wait::LONG, || {
        Ok(world.tables()?.contains(&ours))
    })?;
    curl(world.backend(), web)?;

    // Another interface, another prefix, none.
    agent.ok("egress add 10.0.1.0/24 --interface eth0")?;
    assert!(client::ping(world.backend(), web.ip(), 1, 56).is_err());
    agent.ok("egress add 10.0.1.11")?;
    client::ping(world.backend(), web.ip(), 1, 56)?;
    agent.ok("egress del 10.0.1.11/32")?;
    agent.ok("egress del 10.0.1.0/24")?;
    assert_eq!(world.tables()?, Vec::<String>::new());
    assert_eq!(agent.json("egress list")?, Value::Array(Vec::new()));

    agent.ok("egress add 10.0.1.0/24")?;
    let said = agent.ok("detach")?;
    assert!(
        said.contains(&format!("removed the nftables {ours}")),
        "{said}"
    );
    assert_eq!(world.tables()?, Vec::<String>::new());

    // A table that a killed agent has left goes with it, too.
    agent.attach("")?;
    assert_eq!(world.tables()?, [ours]);
    agent.crash()?;
    agent.ok("detach")?;
    assert_eq!(world.tables()?, Vec::<String>::new());
    Ok(())
}

/// A connection of the client's to the backend itself, and the client's and the backend's end.
fn direct(scene: &Scene) -> Result<(TcpStream, TcpStream)> {
    let at = scene.network.backends[0].at(V4, 7009);
    let backend = &scene.network.backends[0].netns;
    let listener = backend.run(|| Ok(TcpListener::bind(at)?))?;
    let client = scene
        .network
        .client
        .netns
        .run(|| Ok(TcpStream::connect_timeout(&at, wait::LONG)?))?;
    let (server, peer) = listener.accept()?;
    ensure!(peer == client.local_addr()?, "{peer}");
    for end in [&client, &server] {
        end.set_read_timeout(Some(wait::LONG))?;
    }
    Ok((client, server))
}

#[test]
fn open_connections_are_left_alone_when_egress_begins() -> Result<()> {
    let world = Outside::build(V4)?;
    let (scene, agent) = (&world.scene, &world.scene.agent);
    let (mut client, mut server) = direct(scene)?;
    let mut service = scene.conversation()?;
    service.ask("before")?;
    agent.ok("egress add 10.0.1.0/24 --interface eth0")?;
    // Connection tracking begins with the table: the first packet it sees is the backend's.
    server.write_all(b"the backend speaks first")?;
    let mut said = [0; 24];
    client.read_exact(&mut said)?;
    assert_eq!(&said, b"the backend speaks first");
    client.write_all(b"and the client answers..")?;
    server.read_exact(&mut said)?;
    assert_eq!(&said, b"and the client answers..");
    service.ask("after")?;
    assert_eq!(number(&world.carried()?, "/connections"), 0);
    Ok(())
}

#[test]
fn what_cannot_be_meant_is_refused_in_a_line_and_changes_nothing() -> Result<()> {
    let world = Outside::build(V4)?;
    let agent = &world.scene.agent;
    let before = agent.configuration()?;
    for (line, says) in [
        ("egress add 0.0.0.0/0", "is every address"),
        ("egress add 10.0.1.5/24", "write 10.0.1.0/24"),
        ("egress add ten", "is no prefix"),
        (
            "egress add 10.0.1.0/24 --interface eth*",
            "nftables rules name",
        ),
        (
            "egress del 10.0.1.0/24",
            "there is no egress for 10.0.1.0/24",
        ),
    ] {
        let said = agent.refused(line)?;
        assert!(said.contains(says), "{line}: {said}");
    }
    assert_eq!(agent.configuration()?, before);
    assert_eq!(world.tables()?, Vec::<String>::new());

    // Without a default route there is a note, and masquerading begins when one comes.
    let balancer = &world.scene.network.balancer.netns;
    balancer.ip("route del default via 192.0.2.1")?;
    let said = agent.ok("egress add 10.0.1.0/24")?;
    assert!(
        said.contains("no attached interface has a default route"),
        "{said}"
    );
    assert!(world.carried()?["note"].is_string());
    balancer.ip("route add default via 192.0.2.1")?;
    wait::until_true("masquerading", wait::LONG, || {
        Ok(world.carried()?["interfaces"][0] == "eth2")
    })?;
    Ok(())
}
