//! What is written to the maps, and listing a great many flows.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::abi::{Address, BackendId, BackendState, ServiceId};
use lb_user::{
    kernel::{Kernel, Table},
    plan::Change,
};

use crate::rig::{Rig, add_flows, fill, flow, flow_key};

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
    let (kernel, _) = Kernel::open(&options)?;
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
    let tables = kernel.flow_tables()?;
    ensure!(tables.delete(&first)? == 3);
    ensure!(tables.delete(&first)? == 0, "deleted twice");
    let mut left = 0;
    kernel.flow_tables()?.each(|entry| {
        assert!(!first.contains(&(entry.table, entry.key)));
        left += u32::from(entry.table == Table::Confirmed);
        ControlFlow::Continue(())
    })?;
    ensure!(left == COUNT - 3, "{left}");
    Ok(())
}
