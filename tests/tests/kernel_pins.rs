//! What is pinned outlives the agent: taken over, resized, refused, detached; and attaching.
//!
//! Every test has a bpffs and namespaces of its own, so none sees another's pins.

use std::{
    fs,
    net::Ipv4Addr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use aya_obj::generated::bpf_map_type;
use lb_common::abi::{
    ABI_VERSION, Address, Backend, BackendId, BackendState, Counter, Endpoint, EndpointKey, Flow,
    FlowKey, FlowState, Mode, Neighbour, Port, Reason, Role, Service, ServiceId, Settings,
};
use lb_tests::{netns::Netns, wait};
use lb_user::{
    kernel::{Kernel, Options, Sizes, Table, Taken, XdpMode, clock},
    network::{Link, Network, XdpPlace},
    plan::{Change, Tables},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A bpffs, a namespace `lb` with a veth `e1`, and the other end in `peer`.
struct Rig {
    bpffs: TempDir,
    lb: Netns,
    peer: Netns,
}

impl Rig {
    fn create() -> Result<Self> {
        let bpffs = TempDir::with_prefix("lbt-bpffs")?;
        mount(
            Some("bpf"),
            bpffs.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("cannot mount a bpffs")?;
        let rig = Self {
            bpffs,
            lb: Netns::create("pins-lb")?,
            peer: Netns::create("pins-peer")?,
        };
        rig.add_veth("e1", "10.8.0")?;
        Ok(rig)
    }

    fn add_veth(&self, name: &str, network: &str) -> Result<()> {
        let peer = self.peer.name();
        self.lb.ip(&format!(
            "link add {name} type veth peer name {name} netns {peer}\n\
             addr add {network}.1/24 dev {name}\nlink set {name} up"
        ))?;
        self.peer.ip(&format!(
            "addr add {network}.2/24 dev {name}\nlink set {name} up"
        ))
    }

    fn pins(&self) -> PathBuf {
        self.bpffs.path().join("lb-user/one")
    }

    fn options(&self) -> Options {
        Options {
            pins: self.pins(),
            sizes: Sizes {
                flows: 1 << 15,
                new_flows: 1 << 10,
                services: 16,
                backends: 32,
                endpoints: 64,
                ..Sizes::default()
            },
            discard: false,
            log_packets: false,
        }
    }

    fn open(&self) -> Result<(Kernel, Taken)> {
        Kernel::open(&self.options())
    }

    /// The interface as the kernel shows it now.
    fn link(&self, name: &str) -> Result<Link> {
        self.lb.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async { Network::open().await?.link(name).await })
        })
    }

    fn attach(
        &self,
        kernel: &mut Kernel,
        name: &str,
        mode: XdpMode,
    ) -> Result<lb_user::kernel::Attached> {
        let link = self.link(name)?;
        self.lb.run(|| kernel.attach(&link, mode))
    }

    /// The map pinned under `name`, past the agent.
    fn flows(&self, name: &str) -> Result<HashMap<MapData, FlowKey, Flow>> {
        let map = MapData::from_pin(self.pins().join(name))?;
        Ok(Map::LruHashMap(map).try_into()?)
    }

    /// What `ping` from the other end comes to.
    fn ping(&self, address: &str) -> Result<()> {
        self.peer
            .finish(
                Command::new("ping").args(["-c1", "-W5", address]),
                wait::LONG,
            )?
            .text()
            .map(drop)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.bpffs.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.bpffs.path().display());
        }
    }
}

fn flow_key(number: u32) -> FlowKey {
    FlowKey {
        client: Address::from(std::net::IpAddr::V4(Ipv4Addr::from_bits(
            0x0a00_0000 | number,
        ))),
        service: ServiceId(1),
        client_port: Port::from(40_000),
        service_port: Port::from(80),
    }
}

fn flow(backend: u32) -> Flow {
    Flow {
        backend: BackendId(backend),
        made: clock(),
        seen: clock(),
        state: FlowState::ESTABLISHED,
        ..Flow::default()
    }
}

fn add_flows(map: &mut HashMap<MapData, FlowKey, Flow>, count: u32) -> Result<()> {
    for number in 0..count {
        map.insert(flow_key(number), flow(number % 7 + 1), 0)?;
    }
    Ok(())
}

/// Checks that exactly the flows of [`add_flows`] are listed, each once.
fn expect_flows(kernel: &Kernel, table: Table, count: u32) -> Result<()> {
    let mut seen = std::collections::BTreeMap::new();
    kernel.flow_tables()?.each(|entry| {
        if entry.table == table {
            seen.insert(entry.key, entry.flow.backend.0);
        }
        ControlFlow::Continue(())
    })?;
    ensure!(
        seen.len() == count as usize,
        "{} of {count} flows",
        seen.len()
    );
    for number in 0..count {
        let backend = seen.get(&flow_key(number));
        ensure!(
            backend == Some(&(number % 7 + 1)),
            "flow {number}: {backend:?}"
        );
    }
    Ok(())
}

/// One service with two backends, as a plan would write it.
fn changes() -> Vec<Change> {
    let address = Address::v4([203, 0, 113, 10]);
    let service = Service {
        address,
        seed: 7,
        slots: 65_537,
        fallback: BackendId(1),
        port: Port::from(80),
        mode: Mode::NAT,
        protocol: 6,
        ..Service::default()
    };
    let backend = |n: u8| Backend {
        address: Address::v4([10, 8, 0, n]),
        port: Port::from(8080),
        state: BackendState::ENABLED,
        service: ServiceId(3),
        generation: 1,
        ..Backend::default()
    };
    let cells: Vec<BackendId> = (0..65_537).map(|cell| BackendId(1 + cell % 2)).collect();
    let endpoint = Endpoint {
        service: ServiceId(3),
        port: Port::from(80),
        role: Role::SERVICE,
        ..Endpoint::default()
    };
    let key = EndpointKey {
        address,
        port: Port::from(80),
        protocol: 6,
        nth: 0,
    };
    vec![
        Change::PutBackend(BackendId(1), backend(11)),
        Change::PutBackend(BackendId(2), backend(12)),
        Change::PutSlots(ServiceId(3), Arc::from(cells)),
        Change::PutService(ServiceId(3), service),
        Change::PutEndpoint(key, endpoint),
    ]
}

/// Carries out [`changes`] on the kernel and on tables, and checks that both then hold the same.
fn fill(kernel: &mut Kernel) -> Result<Tables> {
    let mut expected = Tables::default();
    for change in changes() {
        kernel.apply(&change)?;
        expected.apply(&change);
    }
    ensure!(
        kernel.read()? == expected,
        "the maps do not hold what was written"
    );
    Ok(expected)
}

fn refusal(result: Result<(Kernel, Taken)>) -> Result<String> {
    let Err(error) = result else {
        bail!("it was not refused");
    };
    let line = format!("{error:#}");
    ensure!(!line.contains('\n'), "more than one line: {line}");
    Ok(line)
}

#[test]
fn everything_is_taken_over_and_the_program_replaced() -> Result<()> {
    let rig = Rig::create()?;
    let (mut kernel, taken) = rig.open()?;
    ensure!(taken == Taken::Fresh);
    let attached = rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    ensure!(
        attached.place == XdpPlace::Driver && attached.fallback.is_none(),
        "{attached:?}"
    );
    let expected = fill(&mut kernel)?;
    add_flows(&mut rig.flows("flows")?, 10_000)?;
    rig.ping("10.8.0.1")?;
    let counted = kernel.interface_counters()?;
    let first = rig.link("e1")?.xdp.context("no program")?;
    ensure!(first.program == kernel.program_id()?);

    // As after a kill -9: nothing is closed in order.
    std::mem::forget(kernel);
    let (kernel, taken) = rig.open()?;
    ensure!(taken == Taken::TakenOver { resized: vec![] }, "{taken:?}");
    let second = rig.link("e1")?.xdp.context("the program is gone")?;
    ensure!(second.program == kernel.program_id()? && second.program != first.program);
    ensure!(second.place == XdpPlace::Driver);
    ensure!(kernel.read()? == expected);
    expect_flows(&kernel, Table::Confirmed, 10_000)?;

    rig.ping("10.8.0.1")?;
    let index = rig.link("e1")?.index;
    let pings = |counters: &std::collections::BTreeMap<u32, lb_common::abi::InterfaceCounters>| {
        counters.get(&index).map_or(Counter::default(), |counters| {
            counters.reasons[Reason::OtherProtocol as usize]
        })
    };
    let now = kernel.interface_counters()?;
    ensure!(pings(&counted).packets >= 1, "not counted at all");
    ensure!(pings(&now).packets > pings(&counted).packets, "{now:?}");
    Ok(())
}

#[test]
fn another_size_keeps_what_is_alive() -> Result<()> {
    let rig = Rig::create()?;
    let (mut kernel, _) = rig.open()?;
    rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    let expected = fill(&mut kernel)?;
    kernel.set_neighbour(
        BackendId(1),
        Neighbour {
            ifindex: 9,
            ..Neighbour::default()
        },
    )?;
    add_flows(&mut rig.flows("flows")?, 10_000)?;
    drop(kernel);

    let mut options = rig.options();
    for (flows, services) in [(1 << 17, 64), (20_000, 8)] {
        options.sizes.flows = flows;
        options.sizes.services = services;
        let (kernel, taken) = Kernel::open(&options)?;
        let Taken::TakenOver { resized } = taken else {
            bail!("{taken:?}");
        };
        for name in ["flows", "services", "slots", "svc_counters", "rotations"] {
            ensure!(
                resized.iter().any(|r| r == name),
                "{name} is not in {resized:?}"
            );
        }
        ensure!(!resized.iter().any(|r| r == "backends"), "{resized:?}");
        expect_flows(&kernel, Table::Confirmed, 10_000)?;
        ensure!(rig.flows("flows")?.iter().count() == 10_000);
        let mut tables = kernel.read()?;
        let neighbour = &mut tables
            .backends
            .get_mut(&BackendId(1))
            .context("gone")?
            .neighbour;
        ensure!(std::mem::take(neighbour).ifindex == 9);
        ensure!(tables == expected);
        let xdp = rig.link("e1")?.xdp.context("the program is gone")?;
        ensure!(xdp.program == kernel.program_id()?);
        let left: Vec<_> = fs::read_dir(rig.pins())?
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap_or_default())
            .filter(|name| name.contains("swap"))
            .collect();
        ensure!(left.is_empty(), "{left:?}");
    }

    // Too small for service 3: nothing changes.
    let running = rig.link("e1")?.xdp;
    options.sizes.services = 3;
    let line = refusal(Kernel::open(&options))?;
    ensure!(line.contains("map services needs room for 4"), "{line}");
    ensure!(rig.link("e1")?.xdp == running);
    Ok(())
}

#[test]
fn another_layout_is_refused_while_the_old_program_runs_on() -> Result<()> {
    let rig = Rig::create()?;
    let (mut kernel, _) = rig.open()?;
    rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    drop(kernel);
    let running = rig.link("e1")?.xdp.context("no program")?;

    let pin = rig.pins().join("flows");
    fs::remove_file(&pin)?;
    let wider = aya_obj::Map::new_from_params(
        bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32,
        24,
        64,
        1 << 15,
        0,
    );
    MapData::create(wider, "flows", None)?.pin(&pin)?;

    let line = refusal(rig.open())?;
    ensure!(
        line.contains("map flows") && line.contains("24 -> 64") && line.contains("24 -> 60"),
        "{line}"
    );
    ensure!(line.contains("--discard"), "{line}");
    ensure!(
        rig.link("e1")?.xdp == Some(running),
        "the old program was touched"
    );
    rig.ping("10.8.0.1")?;

    let options = Options {
        discard: true,
        ..rig.options()
    };
    let (mut kernel, taken) = Kernel::open(&options)?;
    ensure!(taken == Taken::Fresh);
    ensure!(rig.link("e1")?.xdp.is_none());
    rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    Ok(())
}

#[test]
fn another_layout_version_is_refused() -> Result<()> {
    let rig = Rig::create()?;
    let (mut kernel, _) = rig.open()?;
    rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    drop(kernel);
    let running = rig.link("e1")?.xdp;

    let map = MapData::from_pin(rig.pins().join("settings"))?;
    let mut settings: aya::maps::Array<_, Settings> = Map::Array(map).try_into()?;
    ensure!(settings.get(&0, 0)?.abi_version == ABI_VERSION);
    let other = Settings {
        abi_version: ABI_VERSION + 1,
        ..Settings::default()
    };
    settings.set(0, other, 0)?;

    let line = refusal(rig.open())?;
    ensure!(
        line.contains(&format!("layout version {}", ABI_VERSION + 1)),
        "{line}"
    );
    ensure!(rig.link("e1")?.xdp == running);
    Ok(())
}

#[test]
fn what_a_killed_opening_left_is_mended() -> Result<()> {
    let rig = Rig::create()?;
    let (kernel, _) = rig.open()?;
    add_flows(&mut rig.flows("flows")?, 100)?;
    drop(kernel);

    // Killed after the pins of flows were exchanged, before the old table was read again.
    let old = aya_obj::Map::new_from_params(
        bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32,
        24,
        60,
        1 << 12,
        0,
    );
    let mut old: HashMap<_, FlowKey, Flow> =
        Map::LruHashMap(MapData::create(old, "flows", None)?).try_into()?;
    old.insert(flow_key(100), flow(100 % 7 + 1), 0)?;
    let stale = Flow {
        seen: lb_common::abi::Ticks(clock().0.wrapping_sub(10_000)),
        backend: BackendId(99),
        ..flow(1)
    };
    old.insert(flow_key(5), stale, 0)?;
    old.pin(rig.pins().join("flows-swap"))?;
    // And one whose kind is not of this version.
    let unknown =
        aya_obj::Map::new_from_params(bpf_map_type::BPF_MAP_TYPE_ARRAY as u32, 4, 4, 1, 0);
    MapData::create(unknown, "other", None)?.pin(rig.pins().join("other-swap"))?;

    let (kernel, taken) = rig.open()?;
    ensure!(taken == Taken::TakenOver { resized: vec![] }, "{taken:?}");
    expect_flows(&kernel, Table::Confirmed, 101)?;
    for name in ["flows-swap", "other-swap"] {
        ensure!(!rig.pins().join(name).exists(), "{name} is left");
    }
    drop(kernel);

    // Killed while it was being made, or removed: without the program's pin the rest is nothing.
    fs::remove_file(rig.pins().join("program"))?;
    fs::remove_file(rig.pins().join("services"))?;
    let (kernel, taken) = rig.open()?;
    ensure!(taken == Taken::Fresh);
    expect_flows(&kernel, Table::Confirmed, 0)?;
    Ok(())
}

#[test]
fn a_foreign_program_is_refused_by_id_and_name() -> Result<()> {
    let rig = Rig::create()?;
    let (mut theirs, _) = Kernel::open(&Options {
        pins: rig.bpffs.path().join("lb-user/other"),
        ..rig.options()
    })?;
    rig.attach(&mut theirs, "e1", XdpMode::Auto)?;
    let id = theirs.program_id()?;

    let (mut kernel, _) = rig.open()?;
    let Err(error) = rig.attach(&mut kernel, "e1", XdpMode::Auto) else {
        bail!("a foreign program was replaced");
    };
    let line = format!("{error:#}");
    ensure!(line.contains(&format!("XDP program {id} (lb)")), "{line}");
    ensure!(rig.link("e1")?.xdp.is_some_and(|xdp| xdp.program == id));
    ensure!(kernel.attached()?.is_empty() && kernel.interface_counters()?.is_empty());
    Ok(())
}

#[test]
fn where_the_driver_refuses_the_stack_takes_over_and_says_why() -> Result<()> {
    let rig = Rig::create()?;
    rig.lb.ip("link add br0 type bridge\nlink set br0 up")?;
    rig.add_veth("e2", "10.8.2")?;
    rig.peer.ip("link set e2 mtu 9000")?;
    rig.lb.ip("link set e2 mtu 9000")?;
    let (mut kernel, _) = rig.open()?;
    for (name, reason) in [("br0", "does not know XDP"), ("e2", "MTU (9000)")] {
        let Err(error) = rig.attach(&mut kernel, name, XdpMode::Driver) else {
            bail!("the driver of {name} took it");
        };
        ensure!(format!("{error:#}").contains(reason), "{error:#}");
        ensure!(kernel.attached()?.is_empty());

        let attached = rig.attach(&mut kernel, name, XdpMode::Auto)?;
        ensure!(attached.place == XdpPlace::Skb, "{attached:?}");
        let why = attached.fallback.context("no reason given")?;
        ensure!(why.contains(reason), "{why}");
        ensure!(rig.link(name)?.xdp.map(|xdp| xdp.place) == Some(XdpPlace::Skb));
        ensure!(kernel.detach(name)?);
    }

    // From one place to another, when asked for.
    rig.attach(&mut kernel, "e1", XdpMode::Skb)?;
    let same = rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    ensure!(same.place == XdpPlace::Skb, "{same:?}");
    rig.attach(&mut kernel, "e1", XdpMode::Driver)?;
    ensure!(rig.link("e1")?.xdp.map(|xdp| xdp.place) == Some(XdpPlace::Driver));
    Ok(())
}

#[test]
fn an_interface_that_is_re_created_or_renamed_is_followed() -> Result<()> {
    let rig = Rig::create()?;
    let (mut kernel, _) = rig.open()?;
    rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    let first = rig.link("e1")?.index;

    rig.lb.ip("link del e1")?;
    let gone = kernel.attached()?;
    ensure!(
        gone.len() == 1 && gone[0].name == "e1" && gone[0].ifindex == 0,
        "{gone:?}"
    );
    rig.add_veth("e1", "10.8.0")?;
    rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    let link = rig.link("e1")?;
    ensure!(link.index != first);
    ensure!(kernel.attached()?[0].ifindex == link.index);
    rig.ping("10.8.0.1")?;
    ensure!(kernel.interface_counters()?.contains_key(&link.index));

    // A dot in the name, which a bpffs does not take.
    rig.lb
        .ip("link set e1 down\nlink set e1 name e1.7\nlink set e1.7 up")?;
    rig.attach(&mut kernel, "e1.7", XdpMode::Auto)?;
    let attached = kernel.attached()?;
    ensure!(
        attached.len() == 1 && attached[0].name == "e1.7",
        "{attached:?}"
    );
    ensure!(attached[0].ifindex == link.index);

    // The old interface's counters go when the next agent looks.
    drop(kernel);
    let (mut kernel, _) = rig.open()?;
    let counted: Vec<u32> = kernel.interface_counters()?.into_keys().collect();
    ensure!(counted == [link.index], "{counted:?}");
    ensure!(kernel.detach("e1.7")? && !kernel.detach("e1.7")?);
    ensure!(rig.link("e1.7")?.xdp.is_none());
    ensure!(kernel.interface_counters()?.is_empty());
    Ok(())
}

#[test]
fn removing_the_pins_leaves_nothing() -> Result<()> {
    let rig = Rig::create()?;
    let (mut kernel, _) = rig.open()?;
    rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    kernel.remove_pins()?;
    ensure!(!rig.pins().exists());
    ensure!(rig.link("e1")?.xdp.is_none());
    Ok(())
}

#[test]
fn what_is_no_bpffs_is_refused_with_the_line_to_type() -> Result<()> {
    let folder = TempDir::with_prefix("lbt-nofs")?;
    let rig = Rig::create()?;
    let line = refusal(Kernel::open(&Options {
        pins: folder.path().join("lb-user/one"),
        ..rig.options()
    }))?;
    ensure!(line.contains("mount -t bpf bpf /sys/fs/bpf"), "{line}");
    ensure!(!Path::new(folder.path()).join("lb-user").exists());
    Ok(())
}

#[test]
fn removed_records_leave_their_generation_and_counters_start_anew() -> Result<()> {
    let rig = Rig::create()?;
    let (mut kernel, _) = rig.open()?;
    fill(&mut kernel)?;
    let locals = |last: &[u8]| last.iter().map(|&n| Address::v4([10, 0, 0, n])).collect();
    kernel.set_locals(&locals(&[1, 2, 3]))?;
    kernel.set_locals(&locals(&[3, 4]))?;
    let map = MapData::from_pin(rig.pins().join("locals"))?;
    let map: HashMap<_, Address, u32> = Map::HashMap(map).try_into()?;
    let left = map
        .keys()
        .collect::<Result<std::collections::BTreeSet<_>, _>>()?;
    ensure!(left == locals(&[3, 4]), "{left:?}");

    kernel.apply(&Change::State {
        backend: BackendId(2),
        state: BackendState::DRAINING,
    })?;
    ensure!(kernel.read()?.backends[&BackendId(2)].state == BackendState::DRAINING);
    let mut before = kernel.read()?;
    for change in [
        Change::RemoveService(ServiceId(3)),
        Change::RemoveSlots(ServiceId(3)),
        Change::RemoveSlots(ServiceId(3)),
        Change::RemoveBackend(BackendId(2)),
    ] {
        kernel.apply(&change)?;
        before.apply(&change);
    }
    let left = kernel.read()?;
    ensure!(left == before && left.slots.is_empty());
    ensure!(left.backends[&BackendId(2)].generation == 1);

    // Beyond the map.
    ensure!(kernel.apply(&Change::RemoveBackend(BackendId(32))).is_err());
    Ok(())
}

#[test]
fn a_million_flows_are_listed_in_seconds_and_deleted_one_by_one() -> Result<()> {
    const COUNT: u32 = 1_000_000;
    let rig = Rig::create()?;
    let mut options = rig.options();
    options.sizes.flows = 1 << 21;
    let (mut kernel, _) = Kernel::open(&options)?;
    add_flows(&mut rig.flows("flows")?, COUNT)?;
    rig.flows("new_flows")?.insert(flow_key(1), flow(1), 0)?;

    let start = Instant::now();
    let (mut confirmed, mut new) = (0, 0);
    kernel.flow_tables()?.each(|entry| {
        match entry.table {
            Table::Confirmed => confirmed += 1,
            Table::New => new += 1,
        }
        ControlFlow::Continue(())
    })?;
    let took = start.elapsed();
    ensure!((confirmed, new) == (COUNT, 1), "{confirmed} and {new}");
    println!("{COUNT} flows listed in {took:?}");
    ensure!(took < Duration::from_secs(10), "{took:?}");

    let mut first = Vec::new();
    kernel.flow_tables()?.each(|entry| {
        first.push((entry.table, entry.key));
        if first.len() == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    ensure!(first.len() == 3);
    kernel.delete_flows(&first)?;
    kernel.delete_flows(&first)?;
    let mut left = 0;
    kernel.flow_tables()?.each(|entry| {
        assert!(!first.contains(&(entry.table, entry.key)));
        left += u32::from(entry.table == Table::Confirmed);
        ControlFlow::Continue(())
    })?;
    ensure!(left == COUNT - 3, "{left}");
    Ok(())
}
