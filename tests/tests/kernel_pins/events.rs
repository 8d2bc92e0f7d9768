//! What the program tells: events through the ring, and its log where it is turned on.

use std::{
    net::IpAddr,
    process::Command,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_common::abi::{
    Address, Algorithm, Endpoint, EndpointKey, EventKind, Mode, Port, Reason, Role, Service,
    ServiceId, Settings, Ticks,
};
use lb_tests::{netns::Netns, wait};
use lb_user::{
    kernel::{Kernel, Options, Sizes, XdpMode},
    network::Network,
    plan::Change,
};

use crate::rig::Bpffs;

const SERVICE: &str = "203.0.113.10";

/// A service without any backend on `lb`'s interface `e1`; every packet to it is dropped.
fn attach_empty_service(bpffs: &Bpffs, lb: &Netns, log_packets: bool) -> Result<Kernel> {
    let (mut kernel, _) = Kernel::open(&Options {
        pins: bpffs.path().join("lb"),
        sizes: Sizes::default(),
        discard: false,
        log_packets,
    })?;
    let address: IpAddr = SERVICE.parse()?;
    let service = Service {
        address: address.into(),
        seed: 1,
        port: Port::from(80),
        mode: Mode::NAT,
        algorithm: Algorithm::MAGLEV,
        protocol: 6,
        ..Service::default()
    };
    let key = EndpointKey {
        address: address.into(),
        port: Port::from(80),
        protocol: 6,
        nth: 0,
    };
    let endpoint = Endpoint {
        service: ServiceId(1),
        port: Port::from(80),
        role: Role::SERVICE,
        ..Endpoint::default()
    };
    kernel.apply(&Change::PutService(ServiceId(1), service))?;
    kernel.apply(&Change::PutEndpoint(key, endpoint))?;
    let link = lb.run(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async { Network::open().await?.link("e1").await })
    })?;
    lb.run(|| kernel.attach(&link, XdpMode::Auto))?;
    Ok(kernel)
}

fn namespaces() -> Result<(Netns, Netns)> {
    let (lb, peer) = (Netns::create("ev-lb")?, Netns::create("ev-peer")?);
    lb.ip(&format!(
        "link add e1 type veth peer name e1 netns {}\naddr add 10.7.0.1/24 dev e1\nlink set e1 up",
        peer.name()
    ))?;
    peer.ip(&format!(
        "addr add 10.7.0.2/24 dev e1\nlink set e1 up\nroute add {SERVICE}/32 via 10.7.0.1"
    ))?;
    Ok((lb, peer))
}

/// A connection that nobody answers.
fn knock(peer: &Netns) -> Result<()> {
    let url = format!("http://{SERVICE}/");
    let tried = peer.finish(
        Command::new("curl").args(["--silent", "--connect-timeout", "1", &url]),
        wait::LONG,
    )?;
    ensure!(tried.text().is_err(), "a service without backends answered");
    Ok(())
}

#[tokio::test]
async fn a_dropped_packet_is_told_with_its_addresses_unless_turned_off() -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let (lb, peer) = namespaces()?;
    let mut kernel = attach_empty_service(&bpffs, &lb, false)?;
    let mut events = kernel.events()?;
    ensure!(kernel.events().is_err(), "the ring was given twice");
    ensure!(kernel.packet_log()?.is_none(), "the program logs unasked");

    let off = Settings {
        new_flow_spacing: Ticks(u32::MAX),
        drop_spacing: Ticks(u32::MAX),
        ..Settings::default()
    };
    kernel.set_settings(off)?;
    knock(&peer)?;
    let counted = kernel.interface_counters()?;
    let dropped: u64 = counted
        .values()
        .map(|c| c.reasons[Reason::NoBackend as usize].packets)
        .sum();
    ensure!(dropped >= 1, "the packet did not come to the service");
    let silence = tokio::time::timeout(Duration::from_millis(200), events.next()).await;
    ensure!(silence.is_err(), "told although turned off: {silence:?}");

    kernel.set_settings(Settings {
        drop_spacing: Ticks(0),
        ..off
    })?;
    knock(&peer)?;
    let event = tokio::time::timeout(wait::LONG, events.next())
        .await
        .context("no event")??;
    ensure!(event.kind == EventKind::DROP, "{event:?}");
    ensure!(event.reason() == Some(Reason::NoBackend), "{event:?}");
    ensure!(event.source == Address::v4([10, 7, 0, 2]), "{event:?}");
    ensure!(
        event.destination == Address::v4([203, 0, 113, 10]),
        "{event:?}"
    );
    ensure!(
        event.destination_port == Port::from(80) && event.protocol == 6,
        "{event:?}"
    );
    Ok(())
}

/// Keeps what is logged.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Lines {
    fn all(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().expect("nobody panics while it is held")
    }
}

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.all().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn the_program_logs_rare_packets_when_asked() -> Result<()> {
    log::set_logger(&LINES).map_err(|error| anyhow::anyhow!("{error}"))?;
    log::set_max_level(log::LevelFilter::Info);
    let bpffs = Bpffs::mount()?;
    let (lb, peer) = namespaces()?;
    let mut kernel = attach_empty_service(&bpffs, &lb, true)?;
    let reading = tokio::spawn(kernel.packet_log()?.context("no log")?);
    knock(&peer)?;
    let wanted = format!("reason {} on interface", Reason::NoBackend as u8);
    let deadline = std::time::Instant::now() + wait::LONG;
    while !LINES.all().iter().any(|line| line.contains(&wanted)) {
        ensure!(std::time::Instant::now() < deadline, "{:?}", LINES.all());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    reading.abort();
    Ok(())
}
