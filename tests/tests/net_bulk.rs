//! Long transfers: whole to the last byte, whatever happens to the load balancer meanwhile.

use std::{net::SocketAddr, sync::OnceLock, time::Duration};

use anyhow::{Context, Result};
use lb_tests::{
    client::{self, Download},
    scene::{Mode, Scene},
    server::{self, BigFile, Nginx},
    topology::{
        Arms::{One, Two},
        Family::{V4, V6},
        service,
    },
};

/// Length of the long transfers: 1 GiB.
const LENGTH: u64 = 1 << 30;

/// Rate that makes a transfer long enough for the changes beneath it, in curl's words.
const RATE: &str = "150M";

/// The longest that a transfer may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// One file for all tests of this program.
fn big_file() -> Result<&'static BigFile> {
    static FILE: OnceLock<Option<BigFile>> = OnceLock::new();
    FILE.get_or_init(|| {
        BigFile::random(LENGTH)
            .map_err(|error| eprintln!("{error:#}"))
            .ok()
    })
    .as_ref()
    .context("the big file could not be made")
}

/// A web service on port 80 with nginx on each backend that sends the big file.
struct Web {
    scene: Scene,
    servers: Vec<Nginx>,
    to: SocketAddr,
    mode: Mode,
}

impl Web {
    fn serve(scene: Scene, mode: Mode) -> Result<Self> {
        let to = SocketAddr::new(service(scene.family()), 80);
        scene.agent.ok(&format!(
            "service add {to}/tcp --name http --mode {}",
            mode.name()
        ))?;
        let mut web = Self {
            scene,
            servers: Vec::new(),
            to,
            mode,
        };
        for index in 0..web.scene.network.backends.len() {
            let host = &web.scene.network.backends[index];
            let asked = match mode {
                Mode::Nat => web.backend(index),
                Mode::DsrL2 => to,
            };
            let nginx = Nginx::start(&host.netns, &host.name, &[asked], Some(big_file()?.path()))?;
            web.servers.push(nginx);
            web.change("add", index, "")?;
        }
        web.scene.agent.resolved()?;
        Ok(web)
    }

    fn backend(&self, index: usize) -> SocketAddr {
        let host = &self.scene.network.backends[index];
        host.at(
            self.scene.family(),
            if self.mode == Mode::Nat { 8080 } else { 80 },
        )
    }

    fn change(&self, what: &str, index: usize, flags: &str) -> Result<()> {
        let backend = self.backend(index);
        self.scene
            .agent
            .ok(&format!("backend {what} http {backend} {flags}"))
            .map(drop)
    }

    /// Starts the download and finds out which backend sends: the one with the flow.
    fn download(&self) -> Result<(Download, usize)> {
        let download = Download::start(&self.scene.network.client.netns, self.to, RATE)?;
        let sender = lb_tests::wait::until("the download's flow", LIMIT, || {
            let flows = self.scene.agent.flows()?;
            let flow = flows.iter().find(|flow| flow.service == "http");
            Ok(flow.and_then(|flow| {
                (0..self.servers.len()).find(|&i| self.backend(i) == flow.backend)
            }))
        })?;
        Ok((download, sender))
    }
}

/// Backends other than the sending one are removed and added all the while.
fn whole_while_backends_change(web: &Web) -> Result<()> {
    let (mut download, sender) = web.download()?;
    let mut changes = 0;
    while download.runs() {
        for index in (0..web.servers.len()).filter(|&index| index != sender) {
            web.change("del", index, "")?;
            web.change("add", index, "--weight 2")?;
            changes += 2;
        }
    }
    assert_eq!(download.finish(LIMIT)?, big_file()?.sha256);
    // Each of the others went and came at least once, however slow the machine.
    assert!(changes >= 4, "only {changes} changes during the transfer");
    let sent: u64 = web.servers[sender]
        .accesses_once(1)?
        .iter()
        .map(|access| access.bytes)
        .sum();
    assert_eq!(sent, LENGTH);
    Ok(())
}

#[test]
fn a_transfer_is_whole_while_backends_come_and_go_nat_two_arms_v4() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 1, 1])?;
    whole_while_backends_change(&Web::serve(scene, Mode::Nat)?)
}

#[test]
fn a_transfer_is_whole_while_backends_come_and_go_nat_one_arm_v6() -> Result<()> {
    let scene = Scene::build(Mode::Nat, One, V6, &[1, 1, 1])?;
    whole_while_backends_change(&Web::serve(scene, Mode::Nat)?)
}

#[test]
fn a_transfer_is_whole_while_backends_come_and_go_dsr_one_arm_v4() -> Result<()> {
    let scene = Scene::build(Mode::DsrL2, One, V4, &[1, 1, 1])?;
    whole_while_backends_change(&Web::serve(scene, Mode::DsrL2)?)
}

#[test]
fn a_transfer_is_whole_when_the_agent_crashes() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 1])?;
    let web = Web::serve(scene, Mode::Nat)?;
    let (mut download, sender) = web.download()?;
    let agent = &web.scene.agent;
    let mut crashes = 0;
    for _ in 0..3 {
        let before = agent.flows()?;
        agent.crash()?;
        // New connections, too, while nobody watches.
        web.scene.conversation()?.ask("nobody home")?;
        agent.attach("")?;
        let after = agent.flows()?;
        let http = |flows: &[lb_tests::agent::Flow]| {
            flows
                .iter()
                .filter(|flow| flow.service == "http")
                .cloned()
                .collect::<Vec<_>>()
        };
        if !download.runs() {
            break;
        }
        assert_eq!(http(&before), http(&after));
        crashes += 1;
    }
    // How many fit into the transfer is the machine's business.
    assert!(crashes > 0, "over before the agent was back");
    assert_eq!(download.finish(LIMIT)?, big_file()?.sha256);
    assert_eq!(web.servers[sender].accesses_once(1)?[0].bytes, LENGTH);
    Ok(())
}

#[test]
fn a_transfer_is_whole_while_its_own_backend_drains() -> Result<()> {
    let scene = Scene::build(Mode::Nat, One, V4, &[1, 1])?;
    let web = Web::serve(scene, Mode::Nat)?;
    let (mut download, sender) = web.download()?;
    web.change("set", sender, "--state draining")?;
    for _ in 0..50 {
        let page = client::curl(&web.scene.network.client.netns, web.to)?;
        assert_ne!(page.body, web.servers[sender].name());
    }
    assert!(download.runs(), "over before the draining was seen");
    assert_eq!(download.finish(LIMIT)?, big_file()?.sha256);
    Ok(())
}

/// iperf3 talks on two connections (and UDP beside them), which have to reach the same backend.
fn iperf3(mode: Mode, reverse: &[&str]) -> Result<()> {
    let scene = Scene::build(mode, Two, V4, &[1])?;
    let host = &scene.network.backends[0];
    let (at, asked) = match mode {
        Mode::Nat => (host.at(V4, 5202), host.at(V4, 5202)),
        Mode::DsrL2 => (host.at(V4, 5201), SocketAddr::new(service(V4), 5201)),
    };
    let _server = server::iperf3(&host.netns, asked)?;
    let to = SocketAddr::new(service(V4), 5201);
    for protocol in ["tcp", "udp"] {
        let name = format!("iperf-{protocol}");
        scene.agent.ok(&format!(
            "service add {to}/{protocol} --name {name} --mode {}",
            mode.name()
        ))?;
        scene.agent.ok(&format!("backend add {name} {at}"))?;
    }
    scene.agent.resolved()?;

    let tcp = [&["--bytes", "200M"], reverse].concat();
    let report = client::iperf3(&scene.network.client.netns, to, &tcp)?;
    let received = report["end"]["sum_received"]["bytes"].as_u64();
    assert!(
        received.is_some_and(|bytes| bytes > 190_000_000),
        "{}",
        report["end"]
    );

    let udp = [&["--udp", "--bitrate", "20M", "--time", "2"], reverse].concat();
    let report = client::iperf3(&scene.network.client.netns, to, &udp)?;
    let sum = &report["end"]["sum"];
    let (packets, lost) = (sum["packets"].as_u64(), sum["lost_packets"].as_u64());
    assert!(
        packets.is_some_and(|packets| packets > 3_000),
        "{}",
        report["end"]
    );
    // A veth queue that the shared cores do not empty in time loses datagrams, with or without a
    // load balancer; one that forwards wrongly loses a flow, which is all of them.
    assert!(lost.is_some_and(|lost| lost < 300), "{}", report["end"]);
    Ok(())
}

#[test]
fn iperf3_up_nat() -> Result<()> {
    iperf3(Mode::Nat, &[])
}

#[test]
fn iperf3_down_nat() -> Result<()> {
    iperf3(Mode::Nat, &["--reverse"])
}

#[test]
fn iperf3_up_dsr() -> Result<()> {
    iperf3(Mode::DsrL2, &[])
}
