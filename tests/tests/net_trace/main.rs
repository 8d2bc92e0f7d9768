//! What `lb-user trace` tells is what the program in the kernel does with the same packet: verdict,
//! reason, backend and every byte; and nothing in the maps changes for it.

mod oracle;

use std::net::SocketAddr;

use anyhow::{Context, Result};
use lb_common::{
    host::frame::Frame,
    wire::l4::{ACK, SYN},
};
use lb_tests::{
    agent::Agent,
    client::ping,
    scene::{Mode, PORT, Scene},
    topology::{
        Arms::Two,
        Family::{self, V4, V6},
    },
};
use serde_json::Value;

use oracle::{Maps, confirmed, hex, trace};

fn from_client(scene: &Scene, from: SocketAddr, flags: &str) -> String {
    format!("--src {from} --dst {} {flags}", scene.service())
}

/// A backend as a trace names it.
fn backend(told: &Value) -> Result<SocketAddr> {
    Ok(told["backend"].as_str().context("no backend")?.parse()?)
}

/// The backend that the kernel has given a client's flow.
fn given(agent: &Agent, client: SocketAddr) -> Result<SocketAddr> {
    let flows = agent.flows()?;
    let flow = flows.iter().find(|flow| flow.client == client);
    Ok(flow
        .with_context(|| format!("no flow of {client}"))?
        .backend)
}

fn step<'v>(told: &'v Value, name: &str) -> Vec<&'v str> {
    let steps = told["steps"].as_array().map_or(&[][..], Vec::as_slice);
    let named = steps.iter().filter(|step| step["step"] == name);
    named.filter_map(|step| step["text"].as_str()).collect()
}

fn nat(family: Family) -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, family, &[1, 1])?;
    let (agent, network) = (&scene.agent, &scene.network);
    // The kernel's tables know the client, and answers without a flow can go to it.
    ping(
        &network.client.netns,
        network.balancer.address(family),
        1,
        56,
    )?;

    // A new flow, the same packet again, the answers, and a packet of the confirmed flow.
    let client = scene.client(20_001);
    let new = trace(&scene, &from_client(&scene, client, ""), "to-backend")?;
    let chosen = backend(&new)?;
    assert_eq!(given(agent, client)?, chosen);
    assert_eq!(
        (&new["service"], &new["mode"]),
        (&"web".into(), &"nat".into())
    );
    assert_eq!(new["flow"], Value::Null);
    assert_eq!(new["slot"]["backend"], chosen.to_string());
    assert_eq!(new["next_hop"]["from"], "backend");
    assert_eq!(new["out"], "eth1");
    let runner_up: SocketAddr = new["runner_up"].as_str().context("none")?.parse()?;
    assert_ne!(runner_up, chosen);
    let changed = |field: &str| {
        let changes = new["changes"].as_array().map_or(&[][..], Vec::as_slice);
        let change = changes.iter().find(|change| change["field"] == field);
        change.map(|change| change["after"].clone())
    };
    assert_eq!(
        changed("destination address"),
        Some(chosen.ip().to_string().into())
    );
    assert_eq!(
        changed("destination port"),
        Some(chosen.port().to_string().into())
    );
    assert_eq!(changed("source address"), None);

    let known = trace(
        &scene,
        &from_client(&scene, client, "--flags A"),
        "to-backend",
    )?;
    assert_eq!(known["flow"]["table"], "new_flows");
    assert_eq!(backend(&known)?, chosen);
    assert_eq!(known["slot"], new["slot"]);
    let answer = |flags: &str| format!("--src {chosen} --dst {client} --flags {flags} --in eth1");
    for flags in ["SA", "PA"] {
        let told = trace(&scene, &answer(flags), "to-client")?;
        assert_eq!(backend(&told)?, chosen);
        assert_eq!(told["next_hop"]["from"], "flow");
    }
    let known = trace(
        &scene,
        &from_client(&scene, client, "--flags PA --size 1400"),
        "to-backend",
    )?;
    assert_eq!(known["flow"]["table"], "flows");
    assert_eq!(known["flow"]["state"], "established");
    let udp = trace(
        &scene,
        &from_client(&scene, client, "--proto udp"),
        "to-backend",
    )?;
    assert_eq!(udp["service"], "dns");

    // Not the services'.
    let other = SocketAddr::new(scene.service().ip(), PORT + 100);
    trace(
        &scene,
        &format!("--src {client} --dst {other}"),
        "not-service",
    )?;
    let direct = scene.client(20_002);
    let asked = format!("--src {direct} --dst {}", scene.backend(0));
    trace(&scene, &asked, "direct-to-backend")?;
    trace(
        &scene,
        &format!(
            "--src {} --dst {direct} --flags SA --in eth1",
            scene.backend(0)
        ),
        "direct-from-backend",
    )?;
    let from_backend = |to: SocketAddr, flags: &str| {
        format!("--src {} --dst {to} --in eth1 {flags}", scene.backend(1))
    };
    let own = network.balancer.at(family, 30_000);
    trace(&scene, &from_backend(own, "--flags A"), "to-load-balancer")?;
    let stranger = scene.client(20_003);
    trace(
        &scene,
        &from_backend(stranger, "--flags S"),
        "opened-by-backend",
    )?;

    // An answer that no flow entry knows goes by the kernel's tables, if it fits.
    let routed = trace(
        &scene,
        &from_backend(stranger, "--flags A"),
        "to-client-routed",
    )?;
    assert_eq!(routed["next_hop"]["from"], "routing-table");
    assert_eq!(routed["next_hop"]["interface"], "eth0");
    let long = from_backend(stranger, "--flags A --size 1501");
    trace(&scene, &long, "client-unresolved")?;

    // Drops.
    let ttl = from_client(&scene, client, "--ttl 1 --flags A");
    trace(&scene, &ttl, "ttl-exceeded")?;
    trace(&scene, &from_client(&scene, own, ""), "martian-source")?;
    let nowhere: SocketAddr = match family {
        V4 => "192.0.2.99:20000".parse()?,
        V6 => "[2001:db8:ffff::1]:20000".parse()?,
    };
    let told = trace(
        &scene,
        &from_backend(nowhere, "--flags A"),
        "client-unresolved",
    )?;
    assert_eq!(step(&told, "event").len(), 1, "{told:#}");
    let first = scene.client(20_004);
    for (index, state) in [(0, "draining"), (1, "disabled")] {
        agent.ok(&format!(
            "backend set web {} --state {state}",
            scene.backend(index)
        ))?;
    }
    let none = trace(&scene, &from_client(&scene, first, ""), "no-backend")?;
    assert_eq!(none["backend"], Value::Null);
    // A known connection stays, and a new one between the same ports does not.
    trace(
        &scene,
        &from_client(&scene, client, "--flags A"),
        "to-backend",
    )?;
    let again = trace(
        &scene,
        &from_client(&scene, client, "--flags S"),
        "no-backend",
    )?;
    assert!(
        step(&again, "flow")
            .iter()
            .any(|text| text.contains("is forgotten")),
        "{again:#}"
    );
    Ok(())
}

#[test]
fn a_trace_is_what_the_kernel_does_nat_v4() -> Result<()> {
    nat(V4)
}

#[test]
fn a_trace_is_what_the_kernel_does_nat_v6() -> Result<()> {
    nat(V6)
}

fn dsr(family: Family) -> Result<()> {
    let scene = Scene::build(Mode::DsrL2, Two, family, &[1, 1])?;
    let client = scene.client(20_001);
    let new = trace(&scene, &from_client(&scene, client, ""), "to-backend")?;
    assert_eq!(given(&scene.agent, client)?, backend(&new)?);
    let fields: Vec<&Value> = new["changes"]
        .as_array()
        .context("no changes")?
        .iter()
        .map(|change| &change["field"])
        .collect();
    assert_eq!(fields, ["destination MAC", "source MAC"]);
    let known = trace(
        &scene,
        &from_client(&scene, client, "--flags A"),
        "to-backend",
    )?;
    assert_eq!(known["flow"]["state"], "half-open");

    // Round-robin turns the wheel of the CPU that runs the packet.
    let agent = &scene.agent;
    agent.ok("service set dns --algorithm round-robin")?;
    let mut turns = Vec::new();
    for port in 21_000..21_006 {
        let udp = from_client(&scene, scene.client(port), "--proto udp");
        turns.push(backend(&trace(&scene, &udp, "to-backend")?)?);
    }
    assert_eq!(turns[..2], turns[2..4]);
    assert_ne!(turns[0], turns[1]);

    // Nobody is at this address.
    for index in 0..2 {
        agent.ok(&format!("backend del web {}", scene.backend(index)))?;
    }
    let nobody = match family {
        V4 => "10.0.1.99",
        V6 => "2001:db8:b::99",
    };
    agent.ok(&format!(
        "backend add web {}",
        SocketAddr::new(nobody.parse()?, PORT)
    ))?;
    let told = trace(
        &scene,
        &from_client(&scene, scene.client(20_002), ""),
        "backend-unresolved",
    )?;
    assert_eq!(told["runner_up"], Value::Null);
    Ok(())
}

#[test]
fn a_trace_is_what_the_kernel_does_dsr_v4() -> Result<()> {
    dsr(V4)
}

#[test]
fn a_trace_is_what_the_kernel_does_dsr_v6() -> Result<()> {
    dsr(V6)
}

/// A pcap file of whole frames, a millisecond apart.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    // Magic, version 2.4, zone, accuracy, snapshot length, link type Ethernet.
    for word in [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for (number, frame) in (0u32..).zip(frames) {
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        for word in [1_700_000_000, number * 1_000, length, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

/// Outer headers, and the ICMP error where they make the packet too long.
fn tunnels(family: Family) -> Result<()> {
    let scene = Scene::build(Mode::DsrL2, Two, family, &[1, 1])?;
    let agent = &scene.agent;
    for (port, mode, overhead) in [(7_100, "dsr-ipip", 0), (7_200, "dsr-gue", 8)] {
        let at = SocketAddr::new(scene.service().ip(), port);
        agent.ok(&format!("service add {at}/tcp --name {mode} --mode {mode}"))?;
        for host in &scene.network.backends {
            let backend = host.at(family, port);
            agent.ok(&format!("backend add {mode} {backend}"))?;
        }
        agent.resolved()?;
        let client = scene.client(20_001);
        let ask = |flags: &str| format!("--src {client} --dst {at} {flags}");
        let told = trace(&scene, &ask(""), "to-backend")?;
        assert_eq!(given(agent, client)?.ip(), backend(&told)?.ip());
        assert_eq!(told["mode"], mode);
        let changes = told["changes"].as_array().context("no changes")?;
        let outer = changes
            .iter()
            .find(|change| change["field"] == "outer destination address")
            .context("no outer header")?;
        assert_eq!(outer["after"], backend(&told)?.ip().to_string());
        let header = if family == V4 { 20 } else { 40 };
        let fits = 1_500 - header - overhead;
        let long = format!("--flags A --size {fits}");
        assert_eq!(
            trace(&scene, &ask(&long), "to-backend")?["verdict"],
            "redirect"
        );
        let without = match family {
            V4 => "too-big-without-df",
            V6 => "too-big",
        };
        for (df, reason) in [("", "too-big"), ("--no-df", without)] {
            let long = format!("--flags A --size {} {df}", fits + 1);
            trace(&scene, &ask(&long), reason)?;
        }
    }
    Ok(())
}

#[test]
fn a_trace_is_what_the_kernel_does_tunnels_v4() -> Result<()> {
    tunnels(V4)
}

#[test]
fn a_trace_is_what_the_kernel_does_tunnels_v6() -> Result<()> {
    tunnels(V6)
}

fn captured(family: Family) -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, family, &[1, 1])?;
    let to = scene.service();
    let syn = Frame::tcp(scene.client(20_001), to, SYN);
    let later = syn.clone().payload(&[7; 64]).fragment(64, true).bytes();
    let mut cut = syn.bytes();
    cut.truncate(40);
    let mut group = syn.bytes();
    group[0] |= 1;
    let packets = [
        (syn.bytes(), "to-backend"),
        (
            Frame::tcp(scene.client(20_001), to, ACK).bytes(),
            "to-backend",
        ),
        (Frame::udp(scene.client(20_001), to).bytes(), "to-backend"),
        (
            Frame::udp(scene.client(20_001), to)
                .without_checksum()
                .bytes(),
            "to-backend",
        ),
        (later.clone(), "later-fragment"),
        (syn.clone().fragment(0, true).bytes(), "to-backend"),
        (later, "to-backend"),
        (syn.clone().irregular().bytes(), "to-backend"),
        (syn.clone().tagged(&[7]).bytes(), "to-backend"),
        (syn.clone().tagged(&[7, 8]).bytes(), "to-backend"),
        (syn.clone().tagged(&[7, 8, 9]).bytes(), "not-ip"),
        (cut, "malformed"),
        (group, "multicast"),
        (
            Frame::echo(scene.client(0).ip(), to.ip()).bytes(),
            "other-protocol",
        ),
    ];
    let frames: Vec<Vec<u8>> = packets.iter().map(|(frame, _)| frame.clone()).collect();
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), pcap(&frames))?;
    let file = file.path().display();

    let pins = scene.agent.pins();
    let before = Maps::read(&pins)?;
    let told = scene
        .agent
        .ok(&format!("trace --pcap {file} --in eth0 -o json"))?;
    assert_eq!(Maps::read(&pins)?, before);
    let told: Vec<Value> = told
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    assert_eq!(told.len(), packets.len());
    // The second packet meets the entry that the first would have made.
    assert_eq!(told[1]["flow"]["table"], "new_flows");
    for (number, (told, (frame, reason))) in (1..).zip(told.into_iter().zip(packets)) {
        assert_eq!(
            (&told["number"], &told["reason"]),
            (&number.into(), &reason.into())
        );
        assert_eq!(told["frame"], hex(&frame));
        confirmed(&scene, told)?;
    }

    let brief = scene.agent.ok(&format!("trace --pcap {file} --brief"))?;
    assert_eq!(brief.lines().count(), frames.len(), "{brief}");
    let table = scene.agent.ok(&format!("trace --pcap {file}"))?;
    for sentence in [
        "packet 2 at 0.001000 s",
        "is web",
        "has an entry in",
        "rewritten",
    ] {
        assert!(table.contains(sentence), "{sentence}: {table}");
    }
    Ok(())
}

#[test]
fn a_capture_is_traced_as_the_kernel_does_it_v4() -> Result<()> {
    captured(V4)
}

#[test]
fn a_capture_is_traced_as_the_kernel_does_it_v6() -> Result<()> {
    captured(V6)
}

#[test]
fn what_cannot_be_traced_is_refused_in_one_line() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let agent = &scene.agent;
    let text = tempfile::NamedTempFile::new()?;
    std::fs::write(text.path(), "no capture")?;
    let mut cut = pcap(&[vec![0; 60]]);
    cut.truncate(70);
    let damaged = tempfile::NamedTempFile::new()?;
    std::fs::write(damaged.path(), cut)?;
    let ends = "--src 198.51.100.7:1 --dst 203.0.113.10:7000";
    let refused = [
        (
            "trace --src 198.51.100.7 --dst 203.0.113.10:7000".to_owned(),
            "give an address and port",
        ),
        ("trace --src 198.51.100.7:1".to_owned(), "--dst"),
        (
            "trace --src 198.51.100.7:1 --dst [2001:db8::1]:80".to_owned(),
            "of one family",
        ),
        (
            format!("trace {ends} --in eth9"),
            "there is no interface eth9",
        ),
        (format!("trace {ends} --flags X"), "letters of"),
        (
            format!("trace {ends} --proto udp --flags S"),
            "UDP has no flags",
        ),
        (format!("trace {ends} --proto icmp"), "icmp"),
        (format!("trace {ends} --size 39"), "too small"),
        (format!("trace {ends} --pcap x"), "cannot be used with"),
        ("trace --pcap /nowhere".to_owned(), "cannot read /nowhere"),
        (
            format!("trace --pcap {}", text.path().display()),
            "is no capture",
        ),
        (
            format!("trace --pcap {}", damaged.path().display()),
            "is a damaged capture",
        ),
    ];
    for (line, told) in refused {
        let said = agent.refused(&line)?;
        assert!(said.contains(told), "{line}: {said}");
    }
    agent.ok("service set dns --algorithm round-robin")?;
    let said = agent.refused(&format!("trace {ends} --proto udp --cpu 4096"))?;
    assert!(said.contains("there is no CPU 4096"), "{said}");
    let said = agent.refused_without_capabilities(&format!("trace {ends}"))?;
    assert!(said.contains("needs root"), "{said}");

    // Without the agent the maps are still there, and the program runs on.
    agent.stop()?;
    let told = confirmed(&scene, agent.json(&format!("trace {ends}"))?)?;
    assert_eq!(
        (&told["service"], &told["reason"]),
        (&"web".into(), &"to-backend".into())
    );
    agent.ok("detach")?;
    let said = agent.refused(&format!("trace {ends}"))?;
    assert!(said.contains("no agent runs"), "{said}");
    assert!(said.contains("lb-user attach"), "{said}");
    Ok(())
}
