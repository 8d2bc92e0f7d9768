//! Flows: listing them while they change, and deleting them.

use std::{ops::ControlFlow, path::Path};

use anyhow::{Context, Result};
use lb_common::abi::{Flow, FlowKey, Ticks};
use nix::time::{ClockId, clock_gettime};
use zerocopy::FromBytes as _;

use super::{
    Kernel,
    batch::{Batch, Batches},
    pins::Pins,
    syscall::RawMap,
    tables::gone,
};

/// Which table a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The other side has answered (DSR: the client has gone on).
    Confirmed,
    /// Not yet.
    New,
}

impl Table {
    /// Its name, as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::New => "new",
        }
    }
}

/// One flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// Which table it is in.
    pub table: Table,
    /// Who talks to which service.
    pub key: FlowKey,
    /// What is remembered of it. May have expired: see [`Flow::is_expired`] with [`clock`].
    pub flow: Flow,
}

/// Both tables of flows, to be read on another thread than the agent's. Memory and time between
/// two entries are bounded, whatever the number of flows.
#[derive(Debug)]
pub struct FlowTables {
    confirmed: RawMap,
    new: RawMap,
    pins: Pins,
}

impl FlowTables {
    /// Calls `see` with every flow, the confirmed ones first, until it answers
    /// [`ControlFlow::Break`]. A flow that comes, goes or is
    /// confirmed meanwhile may be left out or seen twice.
    ///
    /// # Errors
    ///
    /// When a table cannot be read.
    pub fn each(&self, mut see: impl FnMut(FlowEntry) -> ControlFlow<()>) -> Result<()> {
        for (table, map) in [(Table::Confirmed, &self.confirmed), (Table::New, &self.new)] {
            let mut batches = Batches::new(map);
            while let Some(batch) = batches.next().context("cannot read the flows")? {
                for (key, flow) in entries(batch) {
                    if see(FlowEntry { table, key, flow }).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes flows: their next packet chooses a backend anew. Returns how many there were; those
    /// that have gone meanwhile do not matter.
    ///
    /// # Errors
    ///
    /// When a table cannot be written.
    pub fn delete(&self, flows: &[(Table, FlowKey)]) -> Result<u64> {
        let mut deleted = 0;
        for (table, name) in [(Table::Confirmed, "flows"), (Table::New, "new_flows")] {
            let map = aya::maps::MapData::from_pin(self.pins.map(name))?;
            let mut map: aya::maps::HashMap<_, FlowKey, Flow> =
                aya::maps::Map::LruHashMap(map).try_into()?;
            for (_, key) in flows.iter().filter(|(of, _)| *of == table) {
                match map.remove(key) {
                    Ok(()) => deleted += 1,
                    absent => gone(absent).context("cannot delete a flow")?,
                }
            }
        }
        Ok(deleted)
    }
}

impl Kernel {
    /// The tables of flows, to be read.
    ///
    /// # Errors
    ///
    /// When the process has too many files open.
    pub fn flow_tables(&self) -> Result<FlowTables> {
        let open = |name| -> Result<RawMap> {
            let path = self.pins.map(name);
            let fd = Pins::open(&path)?.with_context(|| format!("{} is gone", path.display()))?;
            RawMap::new(fd).context("cannot open a table of flows")
        };
        Ok(FlowTables {
            confirmed: open("flows")?,
            new: open("new_flows")?,
            pins: self.pins.clone(),
        })
    }
}

/// The time by the clock that flows are stamped with.
pub fn clock() -> Ticks {
    let Ok(time) = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE) else {
        return Ticks::default();
    };
    Ticks::from_nanos(std::time::Duration::from(time).as_nanos() as u64)
}

/// Earlier than any flow that is alive: half the clock's range ago.
pub(super) fn beginning() -> Ticks {
    Ticks(clock().0.wrapping_sub(u32::MAX / 2))
}

/// How far behind a flow's time may be, and a margin: a second.
const BEHIND: u32 = Ticks::PER_SECOND;

/// Takes into the table pinned at `to` what was written to `from` since `since`, unless `to` knows
/// better.
pub(super) fn catch_up(from: &RawMap, to: &Path, since: Ticks) -> Result<()> {
    let to = aya::maps::MapData::from_pin(to)?;
    let mut to: aya::maps::HashMap<_, FlowKey, Flow> = aya::maps::Map::LruHashMap(to).try_into()?;
    let now = clock();
    let span = since.age(now).0.saturating_add(BEHIND);
    let mut batches = Batches::new(from);
    while let Some(batch) = batches.next()? {
        for (key, flow) in entries(batch) {
            if flow.seen.age(now).0 > span {
                continue;
            }
            let known = to.get(&key, 0).ok();
            let is_news = known
                .is_none_or(|known| known != flow && known.seen.age(now) >= flow.seen.age(now));
            if is_news {
                to.insert(key, flow, 0)?;
            }
        }
    }
    Ok(())
}

/// The entries of a batch of one of the tables.
fn entries(batch: Batch<'_>) -> impl Iterator<Item = (FlowKey, Flow)> + '_ {
    let keys = batch.keys.chunks_exact(size_of::<FlowKey>());
    let flows = batch.values.chunks_exact(size_of::<Flow>());
    keys.zip(flows).filter_map(|(key, flow)| {
        Some((
            FlowKey::read_from_bytes(key).ok()?,
            Flow::read_from_bytes(flow).ok()?,
        ))
    })
}
