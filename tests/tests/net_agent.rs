//! The agent's own life: attach, crash, take over, detach, and what it does to the machine it is on.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use lb_tests::{
    agent::{Agent, has_program},
    claims::under_load,
    client::{Conversation, Datagrams},
    netns::Netns,
    scene::{Mode, PORT, Scene},
    topology::{
        Arms::{One, Two},
        Family::{V4, V6},
        Network, Return, service,
    },
    wait,
};

/// A few flows, of TCP and UDP, and the open connections.
fn some_flows(scene: &Scene) -> Result<Vec<Conversation>> {
    let mut standing = Vec::new();
    // Ports of its own for each: one that the kernel gave twice would be one flow.
    for port in 20_000..20_040 {
        let mut conversation = scene.conversation()?;
        conversation.ask("first")?;
        standing.push(conversation);
        let client = &scene.network.client.netns;
        Datagrams::open(client, scene.client(port), scene.service())?.ask("first")?;
    }
    Ok(standing)
}

#[test]
fn a_restarted_agent_shows_the_same_flows_and_counters() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 1])?;
    let mut standing = some_flows(&scene)?;
    let agent = &scene.agent;
    let (flows, web) = (agent.flows()?, agent.carried("web")?);
    assert_eq!(flows.len(), 80);
    assert_eq!(web.new_flows, 40);
    agent.crash()?;
    agent.attach("")?;
    assert_eq!(agent.flows()?, flows);
    assert_eq!(agent.carried("web")?, web);
    for conversation in &mut standing {
        conversation.ask("still there?")?;
    }
    assert_eq!(agent.carried("web")?.new_flows, 40);
    Ok(())
}

#[test]
fn nothing_is_lost_while_the_agent_is_away() -> Result<()> {
    let scene = Scene::build(Mode::Nat, One, V6, &[1, 1])?;
    let mut standing = some_flows(&scene)?;
    let (count, ()) = under_load(&scene, || {
        for _ in 0..3 {
            scene.agent.crash()?;
            for conversation in &mut standing {
                conversation.ask("nobody home?")?;
            }
            scene.agent.attach("")?;
        }
        Ok(())
    })?;
    assert!(count > 0);
    Ok(())
}

#[test]
fn flows_move_to_a_table_of_another_size() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 1])?;
    let mut standing = some_flows(&scene)?;
    let agent = &scene.agent;
    let (flows, web) = (agent.flows()?, agent.carried("web")?);
    let sized =
        agent
            .configuration()?
            .replacen("[[service]]", "[sizes]\nflows = 5003\n\n[[service]]", 1);
    agent.apply(&sized, "")?;
    agent.crash()?;
    agent.attach("")?;
    let pid = *agent.processes().first().context("no agent runs")?;
    assert!(has_map_of(pid.as_raw(), 5003)?, "no map has 5003 entries");
    assert_eq!(agent.flows()?, flows);
    assert_eq!(agent.carried("web")?, web);
    for conversation in &mut standing {
        conversation.ask("still there?")?;
    }
    assert_eq!(agent.carried("web")?.new_flows, 40);
    Ok(())
}

/// Whether process `pid` holds a BPF map with this many entries.
fn has_map_of(pid: i32, entries: u32) -> Result<bool> {
    let wanted = format!("max_entries:\t{entries}");
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        // A descriptor that has just been closed.
        let Ok(text) = fs::read_to_string(entry.path()) else {
            continue;
        };
        if text.lines().any(|line| line == wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn maps_of_another_layout_are_refused_and_packets_go_on() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let agent = &scene.agent;
    let mut standing = some_flows(&scene)?;
    agent.crash()?;
    // A pin under the name of another map: its keys and values have other sizes.
    let swap = || -> Result<()> {
        let [one, two, aside] = ["flows", "direct", "aside"].map(|name| agent.pins().join(name));
        fs::rename(&one, &aside)?;
        fs::rename(&two, &one)?;
        Ok(fs::rename(&aside, &two)?)
    };
    swap()?;
    let (count, told) = under_load(&scene, || agent.refused(&agent.attach_line("")))?;
    assert!(told.contains("flows") || told.contains("direct"), "{told}");
    assert!(count > 0);
    swap()?;
    agent.attach("")?;
    for conversation in &mut standing {
        conversation.ask("still there?")?;
    }
    Ok(())
}

#[test]
fn configuration_outlives_the_agent() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 2])?;
    let agent = &scene.agent;
    scene.change("set", 1, "--state draining")?;
    let before = agent.configuration()?;
    agent.stop()?;
    agent.attach("")?;
    assert_eq!(agent.configuration()?, before);
    assert_eq!(scene.conversation()?.ask("who")?.server, "b1");
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_instance_is_refused() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let first = scene.agent.processes();
    let told = scene.agent.refused(&format!(
        "run --netns {}",
        scene.network.balancer.netns.name()
    ))?;
    assert!(told.contains(scene.agent.instance()), "{told}");
    assert_eq!(scene.agent.processes(), first);
    scene.conversation()?.ask("who")?;
    Ok(())
}

#[test]
fn an_interface_with_a_foreign_program_is_refused() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let other = Agent::prepare(&scene.network)?;
    let (_, told) = under_load(&scene, || other.refused(&other.attach_line("")))?;
    assert!(told.contains("eth0"), "{told}");
    nothing_is_left(&other)
}

/// No process, no pin: as if it had never been started.
fn nothing_is_left(agent: &Agent) -> Result<()> {
    wait::until_true("the agent to be gone", wait::LONG, || {
        Ok(agent.processes().is_empty())
    })?;
    assert!(!agent.pins().exists(), "pins are left");
    Ok(())
}

#[test]
fn attach_that_cannot_be_is_refused_and_changes_nothing() -> Result<()> {
    let network = Network::build(Two, Return::ThroughBalancer, 1)?;
    let agent = Agent::prepare(&network)?;
    let netns = &network.balancer.netns;
    let before = machine(netns)?;
    for (line, object) in [
        (format!("attach --netns {} eth9", netns.name()), "eth9"),
        (format!("attach --netns {} eth0 eth9", netns.name()), "eth9"),
        (format!("attach --netns {} eth0 eth0", netns.name()), "eth0"),
        (
            format!("attach --netns {} --xdp-mode fast eth0", netns.name()),
            "fast",
        ),
        (format!("attach --netns {} lo/..", netns.name()), "lo/.."),
        (format!("attach --netns {}-not eth0", netns.name()), "-not"),
        (format!("attach --netns {}", netns.name()), "INTERFACE"),
    ] {
        let told = agent.refused(&line)?;
        assert!(told.contains(object), "`{line}`: {told}");
        nothing_is_left(&agent)?;
    }
    let told = agent.refused_without_capabilities(&agent.attach_line(""))?;
    assert!(!told.is_empty());
    nothing_is_left(&agent)?;
    assert_eq!(machine(netns)?, before);
    Ok(())
}

#[test]
fn commands_without_an_agent_say_so() -> Result<()> {
    let network = Network::build(One, Return::ThroughBalancer, 1)?;
    let agent = Agent::prepare(&network)?;
    for line in [
        "status",
        "stats",
        "flows",
        "export",
        "service list",
        "service add 203.0.113.10:80/tcp",
    ] {
        let told = agent.refused(line)?;
        assert!(
            told.contains("attach") || told.contains("run"),
            "`{line}`: {told}"
        );
    }
    Ok(())
}

/// Addresses and settings of a machine, as text.
fn machine(netns: &Netns) -> Result<String> {
    let mut state = netns.tool("ip -o address show")?;
    for key in [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/send_redirects",
        "net/ipv4/conf/eth0/send_redirects",
        "net/ipv4/conf/eth0/forwarding",
        "net/ipv6/conf/eth0/accept_ra",
        "net/ipv6/conf/eth0/forwarding",
        "net/ipv4/conf/eth1/send_redirects",
        "net/ipv6/conf/eth1/accept_ra",
    ] {
        state += &format!("{key} = {}\n", netns.sysctl(key)?);
    }
    Ok(state)
}

#[test]
fn detach_leaves_the_machine_as_it_was() -> Result<()> {
    let network = Network::build(Two, Return::ThroughBalancer, 1)?;
    let netns = &network.balancer.netns;
    // A machine that takes its routes from advertisements needs more care.
    netns.set_sysctls(&[("net/ipv6/conf/eth0/accept_ra", "1")])?;
    let before = machine(netns)?;
    let agent = Agent::attached(&network)?;
    for family in [V4, V6] {
        let to = SocketAddr::new(service(family), PORT);
        let name = format!("{family:?}").to_lowercase();
        agent.ok(&format!("service add {to}/tcp --name {name}"))?;
        agent.ok(&format!(
            "backend add {name} {}",
            network.backends[0].at(family, 7001)
        ))?;
    }
    let during = machine(netns)?;
    assert!(during.contains("net/ipv4/ip_forward = 1"), "{during}");
    assert!(
        during.contains("net/ipv6/conf/eth0/accept_ra = 2"),
        "{during}"
    );
    assert!(
        during.contains("net/ipv4/conf/eth0/send_redirects = 0"),
        "{during}"
    );
    assert!(has_program(netns, "eth0")? && has_program(netns, "eth1")?);

    agent.ok("detach")?;
    nothing_is_left(&agent)?;
    assert!(!has_program(netns, "eth0")? && !has_program(netns, "eth1")?);
    assert_eq!(machine(netns)?, before);
    Ok(())
}

#[test]
fn one_interface_can_be_detached() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let netns = &scene.network.balancer.netns;
    let told = scene.agent.refused("detach eth9")?;
    assert!(told.contains("eth9"), "{told}");
    scene.agent.ok("detach eth1")?;
    assert!(has_program(netns, "eth0")? && !has_program(netns, "eth1")?);
    scene.agent.attach("")?;
    assert!(has_program(netns, "eth1")?);
    scene.conversation()?.ask("who")?;
    Ok(())
}

#[test]
fn the_services_address_comes_and_goes_with_it() -> Result<()> {
    let network = Network::build(Two, Return::ThroughBalancer, 1)?;
    let netns = &network.balancer.netns;
    let agent = Agent::attached(&network)?;
    for family in [V4, V6] {
        let address = service(family);
        let shown = || netns.tool(&format!("ip -o address show to {address}"));
        agent.ok(&format!(
            "service add {}/tcp --name one",
            SocketAddr::new(address, 80)
        ))?;
        assert_ne!(shown()?, "");
        agent.ok(&format!(
            "service add {}/tcp --name two",
            SocketAddr::new(address, 81)
        ))?;
        agent.ok("service del one")?;
        assert_ne!(shown()?, "", "the other service needs it");
        agent.ok("service del two")?;
        assert_eq!(shown()?, "");

        agent.ok(&format!(
            "service add {}/tcp --name none --no-address",
            SocketAddr::new(address, 80)
        ))?;
        assert_eq!(shown()?, "");
        agent.ok("service del none")?;

        // One that was there before stays, also when the agent crashed in between.
        let length = if family == V4 { 32 } else { 128 };
        netns.ip(&format!("addr add {address}/{length} dev lo"))?;
        let before = shown()?;
        agent.ok(&format!(
            "service add {}/tcp --name three",
            SocketAddr::new(address, 80)
        ))?;
        agent.crash()?;
        agent.attach("")?;
        agent.ok("service del three")?;
        assert_eq!(shown()?, before);
        netns.ip(&format!("addr del {address}/{length} dev lo"))?;
    }
    Ok(())
}

#[test]
fn no_sysctl_leaves_settings_alone_and_says_what_to_type() -> Result<()> {
    let network = Network::build(Two, Return::ThroughBalancer, 1)?;
    let netns = &network.balancer.netns;
    let before = machine(netns)?;
    let agent = Agent::prepare(&network)?;
    let told = agent.refused(&agent.attach_line("--no-sysctl"))?;
    assert!(told.contains("sysctl -w net.ipv4.ip_forward=1"), "{told}");
    assert_eq!(machine(netns)?, before);
    nothing_is_left(&agent)?;

    network.balancer.forward()?;
    let before = machine(netns)?;
    agent.attach("--no-sysctl")?;
    assert_eq!(machine(netns)?, before);
    Ok(())
}

#[test]
fn generic_mode_forwards_as_driver_mode_does() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let netns = &scene.network.balancer.netns;
    assert!(
        !netns.tool("ip link show dev eth0")?.contains("xdpgeneric"),
        "driver mode first"
    );
    scene.agent.ok("detach eth0 eth1")?;
    scene.agent.attach("--xdp-mode skb")?;
    assert!(netns.tool("ip link show dev eth0")?.contains("xdpgeneric"));
    scene.conversation()?.ask("who")?;
    scene.datagrams()?.ask("who")?;
    assert!(scene.agent.carried("web")?.back > 0);
    Ok(())
}

#[test]
fn instances_live_side_by_side() -> Result<()> {
    let one = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let two = Scene::build(Mode::DsrL2, One, V4, &[1])?;
    assert_ne!(one.agent.instance(), two.agent.instance());
    one.conversation()?.ask("who")?;
    two.conversation()?.ask("who")?;
    one.agent.ok("detach")?;
    nothing_is_left(&one.agent)?;
    assert!(Path::new(&two.agent.pins()).exists());
    two.conversation()?.ask("who")?;
    Ok(())
}

#[test]
fn detach_cleans_up_where_the_namespace_is_gone() -> Result<()> {
    let network = Network::build(Two, Return::ThroughBalancer, 1)?;
    let agent = Agent::attached(&network)?;
    agent.crash()?;
    assert!(agent.pins().exists());
    drop(network);
    let told = agent.ok("detach")?;
    assert!(told.contains("is gone"), "{told}");
    nothing_is_left(&agent)
}
