//! Floods of forged packets while clients are connected: who is established stays so.
//!
//! Frames with ever new sources are sent as live frames ([`lb_tests::programs`]); the backends are
//! real, so that the SYNs are answered with SYN-ACKs, the bare ACKs with RSTs and the datagrams with
//! datagrams, and all answers are routed back as to any client. The sources are nobody's: no packet
//! ever follows an answer.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use lb_common::{abi::Mac, wire::ip};
use lb_tests::{
    agent::Flow,
    client::{Conversation, Datagrams},
    programs::{Client, Globals, Programs},
    scene::{Mode, SERVICES, Scene},
    template::{Opens, Template},
    topology::{
        Arms::Two,
        Family::{self, V4, V6},
    },
    wait,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Established flows: half of them TCP connections that stand, half UDP.
const ESTABLISHED: usize = 10_000;

/// The clients' ports, for TCP as for UDP.
const PORTS: std::ops::Range<u16> = 20_000..25_000;

/// Entries of the table of confirmed flows, and of that of new flows: a flood is a multiple of both.
const SIZE: u32 = 16_384;

/// Forged packets of each kind that must have gone through.
const FLOOD: u64 = 300_000;

/// Of these, how many must have been answered. A server that reads every datagram is slower than
/// the flood.
const ANSWERED: u64 = 10_000;

/// Frames between two looks at the counters.
const VOLLEY: u32 = 50_000;

/// Files that a test holds open: both ends of each connection, and some more.
const FILES: u64 = PORTS.end as u64 - PORTS.start as u64 + 6_000;

/// The tests of this file take turns: together they would hold too many files open.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn floods_leave_established_flows_their_entries_nat() -> Result<()> {
    floods(Mode::Nat, V4)
}

#[test]
fn floods_leave_established_flows_their_entries_dsr() -> Result<()> {
    floods(Mode::DsrL2, V6)
}

fn floods(mode: Mode, family: Family) -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    allow_files()?;
    let scene = Scene::build(mode, Two, family, &[1, 1])?;
    resize(&scene)?;
    route_forged_sources(&scene, mode)?;
    let mut standing = Vec::new();
    let before = establish(&scene, &mut standing)?;
    let servers = ask(&mut standing)?;

    let kinds = [
        ("SYNs", ip::TCP, Opens::Yes),
        ("bare ACKs", ip::TCP, Opens::No),
        ("datagrams", ip::UDP, Opens::No),
    ];
    let template = |protocol, opens| forged(&scene, protocol, opens);
    let mut generator = generator(&scene, &template(ip::TCP, Opens::Yes)?)?;
    for (kind, protocol, opens) in kinds {
        generator.send_instead(&template(protocol, opens)?)?;
        flood(&scene, mode, &mut generator, protocol)
            .with_context(|| format!("flood of {kind}"))?;
        unchanged(&before, &scene.agent.confirmed_flows()?)
            .with_context(|| format!("after a flood of {kind}"))?;
    }
    assert_eq!(ask(&mut standing)?, servers);
    Ok(())
}

/// Raises the limit of open files as far as the machine lets.
fn allow_files() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        hard >= FILES,
        "this test opens {FILES} files, and the machine allows {hard}: raise `ulimit -Hn`"
    );
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(FILES), hard)?;
    Ok(())
}

/// Gives the flow tables [`SIZE`] entries, and flows of UDP the time that the test may take.
fn resize(scene: &Scene) -> Result<()> {
    let agent = &scene.agent;
    agent.ok("service set dns --udp 300s")?;
    let sizes = format!("[sizes]\nflows = {SIZE}\nnew_flows = {SIZE}\n\n[[service]]");
    let sized = agent.configuration()?.replacen("[[service]]", &sizes, 1);
    agent.apply(&sized, "")?;
    agent.crash()?;
    agent.attach("")?;
    let summary = agent.json("flows --summary")?;
    for table in ["flows_size", "new_flows_size"] {
        ensure!(summary[table] == SIZE, "{table} is {}", summary[table]);
    }
    agent.resolved()
}

/// What backends send to forged sources comes to the client's machine, on the way that answers take.
fn route_forged_sources(scene: &Scene, mode: Mode) -> Result<()> {
    let (router, v4, v6) = match (mode, &scene.network.router) {
        (Mode::Nat, _) => (&scene.network.balancer, "198.51.100.7", "2001:db8:c::7"),
        (Mode::DsrL2, Some(router)) => (router, "192.0.2.7", "2001:db8:a::7"),
        (Mode::DsrL2, None) => unreachable!("direct return needs a router"),
    };
    router.netns.ip(&format!(
        "route add 198.18.0.0/15 via {v4}
         route add 2001:2::/48 via {v6}"
    ))
}

/// Opens connections and lets clients talk until all flows are confirmed; gives these.
fn establish(scene: &Scene, standing: &mut Vec<Conversation>) -> Result<Vec<Flow>> {
    let client = &scene.network.client.netns;
    for port in PORTS {
        standing.push(Conversation::open(
            client,
            scene.client(port),
            scene.service(),
        )?);
    }
    let expected: BTreeSet<_> = SERVICES
        .iter()
        .flat_map(|(name, _)| PORTS.map(|port| (*name, scene.client(port))))
        .collect();
    assert_eq!(expected.len(), ESTABLISHED);
    let flows = wait::until("flows to be confirmed", wait::LONG, || {
        ask(standing)?;
        for port in PORTS {
            Datagrams::open(client, scene.client(port), scene.service())?.ask("on")?;
        }
        let flows = scene.agent.confirmed_flows()?;
        Ok((flows.len() >= ESTABLISHED).then_some(flows))
    })?;
    let keys = flows
        .iter()
        .map(|flow| (flow.service.as_str(), flow.client));
    assert!(keys.eq(expected), "other flows than were opened");
    Ok(flows)
}

/// Asks over every connection; gives the servers that answered.
fn ask(standing: &mut [Conversation]) -> Result<Vec<String>> {
    standing
        .iter_mut()
        .map(|conversation| Ok(conversation.ask("still there?")?.server))
        .collect()
}

/// A packet to the service from a source that the generator makes a new one each time.
fn forged(scene: &Scene, protocol: u8, opens: Opens) -> Result<Template> {
    let network = &scene.network;
    let source = match scene.family() {
        V4 => IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0)),
        V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0)),
    };
    Ok(Template {
        destination_mac: Mac(network.balancer.netns.mac("eth0")?),
        source_mac: Mac(network.client.netns.mac("eth0")?),
        source: (source, 0),
        destination: (scene.service().ip(), scene.service().port()),
        protocol,
        opens,
    })
}

fn generator(scene: &Scene, template: &Template) -> Result<Programs> {
    let index = scene.network.client.netns.link("eth0")?.ifindex();
    let globals = Globals {
        flows: 0,
        client: Client::Source,
        interface: u32::try_from(index)?,
        table: 1,
    };
    Programs::load(&globals, template)
}

/// Sends forged packets until [`FLOOD`] of them have been given to a backend, each as a flow of its
/// own, and [`ANSWERED`] answers have come back.
fn flood(scene: &Scene, mode: Mode, generator: &mut Programs, protocol: u8) -> Result<()> {
    let (name, _) = SERVICES[usize::from(protocol == ip::UDP)];
    let client = &scene.network.client.netns;
    let counts = || -> Result<(u64, u64)> {
        let carried = scene.agent.carried(name)?;
        let answers = match mode {
            Mode::Nat => carried.back,
            Mode::DsrL2 => client.received("eth1")?,
        };
        Ok((carried.new_flows, answers))
    };
    let (flows_before, answers_before) = counts()?;
    let mut sent = 0;
    wait::until("the flood to have gone through", wait::LONG, || {
        client.run(|| generator.run_generator(VOLLEY))?;
        sent += VOLLEY;
        let (flows, answers) = counts()?;
        let (flows, answers) = (flows - flows_before, answers - answers_before);
        Ok((flows >= FLOOD && answers >= ANSWERED).then(|| {
            println!("{name}: {sent} sent, {flows} new flows, {answers} answers");
        }))
    })
}

/// Fails with how many flows are gone, are with another backend, or are new.
fn unchanged(before: &[Flow], after: &[Flow]) -> Result<()> {
    let (before, after): (BTreeSet<_>, BTreeSet<_>) =
        (before.iter().collect(), after.iter().collect());
    let gone: Vec<_> = before.difference(&after).collect();
    let strange: Vec<_> = after.difference(&before).collect();
    ensure!(
        gone.is_empty() && strange.is_empty(),
        "{} of {} flows are gone, such as {:?}; {} others are there, such as {:?}",
        gone.len(),
        before.len(),
        gone.first(),
        strange.len(),
        strange.first()
    );
    Ok(())
}
