//! What `recipe` prints is enough: a machine with nothing but its addresses becomes a backend by the
//! printed commands alone, and `recipe --check` on it tells what is missing before and that nothing
//! is after.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Agent,
    client::{Conversation, Datagrams},
    scene::PORT,
    server::Mirror,
    topology::{
        Arms::{self, One, Two},
        Family::{self, V4, V6},
        Host, Network, Return, service,
    },
    wait,
};
use serde_json::Value;

/// How packets are forwarded, and over what to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Nat,
    DsrL2,
    Ipip(Family),
    Gue(Family),
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::DsrL2 => "dsr-l2",
            Self::Ipip(_) => "dsr-ipip",
            Self::Gue(_) => "dsr-gue",
        }
    }
}

/// A service for each protocol and one backend that has not been told anything.
struct Kitchen {
    agent: Agent,
    network: Network,
    family: Family,
    mode: Mode,
}

impl Kitchen {
    fn build(mode: Mode, arms: Arms, family: Family) -> Result<Self> {
        let way_back = match mode {
            Mode::Nat => Return::ThroughBalancer,
            Mode::DsrL2 | Mode::Ipip(_) | Mode::Gue(_) => Return::Direct,
        };
        let network = Network::build(arms, way_back, 1)?;
        make_bare(&network.backends[0], mode)?;
        let agent = Agent::attached(&network)?;
        let outer = match mode {
            Mode::Nat | Mode::DsrL2 => family,
            Mode::Ipip(outer) | Mode::Gue(outer) => outer,
        };
        let at = network.backends[0].at(outer, PORT);
        for (name, protocol) in [("web", "tcp"), ("dns", "udp")] {
            let place = SocketAddr::new(service(family), PORT);
            let mode = mode.name();
            agent.ok(&format!(
                "service add {place}/{protocol} --name {name} --mode {mode}"
            ))?;
            agent.ok(&format!("backend add {name} {at}"))?;
        }
        agent.resolved()?;
        Ok(Self {
            agent,
            network,
            family,
            mode,
        })
    }

    fn backend(&self) -> &Host {
        &self.network.backends[0]
    }

    /// Where the backend's server has to listen.
    fn served_at(&self) -> SocketAddr {
        match self.mode {
            Mode::Nat => self.backend().at(self.family, PORT),
            Mode::DsrL2 | Mode::Ipip(_) | Mode::Gue(_) => {
                SocketAddr::new(service(self.family), PORT)
            }
        }
    }

    /// Runs the commands on the backend as they were printed.
    fn cook(&self) -> Result<()> {
        let script = self.agent.ok("recipe web")?;
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), &script)?;
        let mut command = Command::new("sh");
        let programs = self.agent.installed_on(self.backend())?;
        let path = std::env::var("PATH").context("no PATH")?;
        command.arg("-e").arg(file.path());
        command.env("PATH", format!("{}:{path}", programs.path().display()));
        let done = self.backend().netns.finish(&mut command, wait::LONG)?;
        done.text().with_context(|| script).map(drop)
    }

    /// What the check on the backend says: the needs that are not met, and what they are mended by.
    fn missing(&self) -> Result<Vec<(String, String)>> {
        let recipe = self.agent.ok("recipe web -o json")?;
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), recipe)?;
        let line = format!("recipe --check {}", file.path().display());
        let told = self.agent.elsewhere(self.backend(), &line)?;
        let json = format!("{line} -o json");
        let json = self.agent.elsewhere(self.backend(), &json)?;
        let checked: Value = serde_json::from_slice(&json.stdout)?;
        let table = String::from_utf8(told.stdout)?;
        let mut missing = Vec::new();
        for need in checked.as_array().context("no list")? {
            let name = need["need"].as_str().context("no need")?;
            ensure!(table.contains(name), "{name} is not in:\n{table}");
            if need["met"] == false {
                let mend = need["mend"][0].as_str().unwrap_or_default();
                ensure!(table.contains(mend), "{mend} is not in:\n{table}");
                missing.push((name.to_owned(), mend.to_owned()));
            }
        }
        let code = i32::from(!missing.is_empty());
        for finished in [told.status, json.status] {
            ensure!(finished.code() == Some(code), "{finished} with {table}");
        }
        Ok(missing)
    }

    /// Both ends see true addresses, over TCP and UDP.
    fn serves(&self) -> Result<()> {
        let client = &self.network.client;
        let to = SocketAddr::new(service(self.family), PORT);
        let from = client.at(self.family, 24_001);
        let tcp = Conversation::open(&client.netns, from, to)?.ask("over TCP")?;
        let udp = Datagrams::open(&client.netns, from, to)?.ask("over UDP")?;
        for answer in [tcp, udp] {
            assert_eq!((answer.peer, answer.local), (from, self.served_at()));
        }
        Ok(())
    }
}

impl Drop for Kitchen {
    fn drop(&mut self) {
        // Pins outlive their interface.
        if let Err(error) = self.agent.elsewhere(self.backend(), "decap detach") {
            println!("{error:#}");
        }
    }
}

/// Takes away what the network has told the backend, but for the way of its own that a machine has;
/// packets that would not go out where they came in are dropped.
fn make_bare(backend: &Host, mode: Mode) -> Result<()> {
    backend.netns.set_sysctls(&[
        ("net/ipv4/conf/all/arp_ignore", "0"),
        ("net/ipv4/conf/all/arp_announce", "0"),
        ("net/ipv4/conf/all/rp_filter", "1"),
        ("net/ipv4/conf/eth0/rp_filter", "1"),
    ])?;
    backend.netns.ip(match mode {
        Mode::Nat => "route del default\nroute del default via 2001:db8:b::1",
        Mode::DsrL2 | Mode::Ipip(_) | Mode::Gue(_) => {
            "addr del 203.0.113.10/32 dev lo
             addr del 2001:db8:5::10/128 dev lo"
        }
    })
}

fn names(missing: &[(String, String)]) -> Vec<&str> {
    missing.iter().map(|(name, _)| &**name).collect()
}

fn becomes_a_backend(mode: Mode, arms: Arms, family: Family, needs: &[&str]) -> Result<()> {
    let kitchen = Kitchen::build(mode, arms, family)?;
    assert_eq!(names(&kitchen.missing()?), needs);
    kitchen.cook()?;
    let server = format!("a server at {}/tcp", kitchen.served_at());
    assert_eq!(names(&kitchen.missing()?), [&*server]);
    let at = kitchen.served_at();
    let _mirror = Mirror::start(&kitchen.backend().netns, "b1", &[at])?;
    assert_eq!(kitchen.missing()?, []);
    kitchen.serves()?;
    // Once more does no harm.
    kitchen.cook()?;
    kitchen.serves()
}

#[test]
fn a_bare_machine_becomes_a_nat_backend_v4() -> Result<()> {
    let needs = [
        "default route via 10.0.1.1",
        "a server at 10.0.1.11:7000/tcp",
    ];
    becomes_a_backend(Mode::Nat, Two, V4, &needs)
}

#[test]
fn a_bare_machine_becomes_a_nat_backend_v6() -> Result<()> {
    let needs = [
        "default route via 2001:db8:b::1",
        "a server at [2001:db8:b::11]:7000/tcp",
    ];
    becomes_a_backend(Mode::Nat, One, V6, &needs)
}

#[test]
fn a_bare_machine_becomes_a_dsr_backend_v4() -> Result<()> {
    let needs = [
        "arp_ignore 1, arp_announce 2",
        "rp_filter 0 or 2",
        "203.0.113.10/32 on lo",
        "a server at 203.0.113.10:7000/tcp",
    ];
    becomes_a_backend(Mode::DsrL2, One, V4, &needs)
}

#[test]
fn a_bare_machine_becomes_a_dsr_backend_v6() -> Result<()> {
    let needs = [
        "2001:db8:5::10/128 on lo",
        "a server at [2001:db8:5::10]:7000/tcp",
    ];
    becomes_a_backend(Mode::DsrL2, Two, V6, &needs)
}

#[test]
fn a_bare_machine_takes_ipip_v4() -> Result<()> {
    let needs = [
        "arp_ignore 1, arp_announce 2",
        "rp_filter 0 or 2",
        "203.0.113.10/32 on lo",
        "advmss 1440 on the default route",
        "decap from 10.0.1.1",
        "a server at 203.0.113.10:7000/tcp",
    ];
    becomes_a_backend(Mode::Ipip(V4), One, V4, &needs)
}

#[test]
fn a_bare_machine_takes_ipip_v6_in_v4() -> Result<()> {
    let needs = [
        "2001:db8:5::10/128 on lo",
        "advmss 1420 on the default route",
        "decap from 10.0.1.1",
        "a server at [2001:db8:5::10]:7000/tcp",
    ];
    becomes_a_backend(Mode::Ipip(V4), Two, V6, &needs)
}

#[test]
fn a_bare_machine_takes_gue_v4_in_v6() -> Result<()> {
    let needs = [
        "arp_ignore 1, arp_announce 2",
        "rp_filter 0 or 2",
        "203.0.113.10/32 on lo",
        "advmss 1412 on the default route",
        "decap from 2001:db8:b::1",
        "a server at 203.0.113.10:7000/tcp",
    ];
    becomes_a_backend(Mode::Gue(V6), Two, V4, &needs)
}

#[test]
fn a_bare_machine_takes_gue_v6() -> Result<()> {
    let needs = [
        "2001:db8:5::10/128 on lo",
        "advmss 1392 on the default route",
        "decap from 2001:db8:b::1",
        "a server at [2001:db8:5::10]:7000/tcp",
    ];
    becomes_a_backend(Mode::Gue(V6), One, V6, &needs)
}

#[test]
fn what_is_mended_is_what_the_check_says() -> Result<()> {
    let kitchen = Kitchen::build(Mode::DsrL2, One, V4)?;
    let netns = &kitchen.backend().netns;
    kitchen.cook()?;
    let _mirror = Mirror::start(netns, "b1", &[kitchen.served_at()])?;
    assert_eq!(kitchen.missing()?, []);

    // The address where everybody hears of it, and the balancer as the way out.
    netns.ip("addr del 203.0.113.10/32 dev lo
         addr add 203.0.113.10/24 dev eth0
         route replace default via 10.0.1.1")?;
    let missing = kitchen.missing()?;
    let expected = ["default route not via 10.0.1.1", "203.0.113.10/32 on lo"];
    assert_eq!(names(&missing), expected);
    assert_eq!(missing[1].1, "ip addr del 203.0.113.10/24 dev eth0");
    netns.ip("route replace default via 10.0.1.254")?;
    netns.tool(&missing[1].1)?;
    let (need, mend) = kitchen.missing()?.remove(0);
    assert_eq!(need, "203.0.113.10/32 on lo");
    netns.tool(&mend)?;
    assert_eq!(kitchen.missing()?, []);

    // The router still finds the balancer and not the backend.
    let router = kitchen.network.router.as_ref().context("no router")?;
    router.netns.ip("neigh flush dev eth1")?;
    kitchen.serves()?;
    let balancer = kitchen.network.balancer.netns.mac("eth0")?;
    let mac = balancer.map(|byte| format!("{byte:02x}")).join(":");
    let known = router
        .netns
        .tool("ip neigh show to 203.0.113.10 dev eth1")?;
    assert!(known.contains(&mac), "{known}");
    Ok(())
}

#[test]
fn a_narrow_way_to_the_clients_is_told_to_backends() -> Result<()> {
    let kitchen = Kitchen::build(Mode::Nat, Two, V4)?;
    kitchen
        .network
        .balancer
        .netns
        .ip("link set eth0 mtu 1400")?;
    let need = "default route via 10.0.1.1, MTU 1400";
    wait::until_true("the narrower interface", wait::LONG, || {
        Ok(names(&kitchen.missing()?).contains(&need))
    })?;
    // A route that only leads there is not enough.
    kitchen
        .backend()
        .netns
        .ip("route add default via 10.0.1.1")?;
    assert!(names(&kitchen.missing()?).contains(&need));
    kitchen.cook()?;
    assert!(!names(&kitchen.missing()?).contains(&need));
    Ok(())
}

#[test]
fn what_is_no_recipe_or_for_nobody_here_is_refused_in_a_line() -> Result<()> {
    let kitchen = Kitchen::build(Mode::Nat, Two, V4)?;
    let agent = &kitchen.agent;
    for (line, says) in [
        (
            "recipe nobody",
            "there is no service \"nobody\": there are web, dns",
        ),
        (
            "recipe web 10.0.9.9",
            "has no backend 10.0.9.9: it has 10.0.1.11:7000",
        ),
        ("recipe --check /dev/null", "/dev/null is no recipe"),
        ("recipe --check /nowhere", "cannot read /nowhere"),
        ("recipe", "<SERVICE>"),
    ] {
        let said = agent.refused(line)?;
        assert!(said.contains(says), "{line}: {said}");
    }
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), agent.ok("recipe web -o json")?)?;
    let line = format!("recipe --check {}", file.path().display());
    let said = agent.elsewhere(&kitchen.network.client, &line)?;
    assert_eq!(said.status.code(), Some(1));
    assert!(
        said.stderr
            .contains("none of the recipe's backends (10.0.1.11:7000)")
    );
    Ok(())
}
