//! Pins: made, taken over, resized, refused, mended and removed.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use aya_obj::generated::bpf_map_type;
use lb_common::abi::{ABI_VERSION, BackendId, Counter, Flow, FlowKey, Neighbour, Reason, Settings};
use lb_user::{
    kernel::{Kernel, Options, Table, Taken, XdpMode, clock},
    network::XdpPlace,
    plan::Way,
};
use tempfile::TempDir;

use crate::rig::{Rig, add_flows, expect_flows, fill, flow, flow_key, refusal};

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
    kernel.set_way(
        BackendId(1),
        Way {
            neighbour: Neighbour {
                ifindex: 9,
                ..Neighbour::default()
            },
            ..Way::default()
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
