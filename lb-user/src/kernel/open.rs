//! Opening: the pins are looked at, the program is loaded with them, and takes the place of the
//! one that runs.
//!
//! In this order, so that whatever fails leaves the old program running, and a kill at any moment
//! leaves something that can be opened again:
//!
//! 1. every pin is compared with what is wanted; nothing is changed if one does not fit;
//! 2. the program is loaded, with new maps (pinned as `NAME-swap`) where the size differs;
//! 3. their contents are copied, and the pins exchanged: now the old maps are the swaps;
//! 4. every link is given the new program, and so the new maps;
//! 5. flows that the old program has made or changed since they were copied are copied again;
//! 6. the swaps go.
//!
//! A kill between 3 and 6 leaves old flow tables as swaps: step 5 is done at the next opening.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{ArrayOfMaps, MapData, MapError, ProgramArray},
    programs::{ProgramError, Xdp},
};
use aya_obj::generated::bpf_map_type;
use lb_common::abi::{ABI_VERSION, Backend, Settings, Ticks};
use zerocopy::FromBytes as _;

use super::{
    Kernel, Options, PROGRAM, SIZED, Sizes, Taken, attach, batch, flows,
    pins::{self, Pins},
    shape::{self, Fit},
    syscall::{RawMap, Shape},
    tables::Maps,
};

/// The tables of flows: both sides write them, so they are caught up after an exchange.
const FLOW_TABLES: [&str; 2] = ["flows", "new_flows"];

/// The map of the programs of rare ways, which every program has one of its own: its entries are no
/// use to another version's. It is pinned because the kernel empties it when no process has it open.
const PROGRAMS: &str = "programs";

/// The programs of rare ways, in the order of their places in that map.
const RARE: [&str; 2] = ["answer", "later"];

/// The maps whose living contents must fit into the new size: what the agent has written.
const KEPT_WHOLE: [&str; 3] = ["services", "backends", "endpoints"];

pub(super) fn open(options: &Options, object: &[u8]) -> Result<(Kernel, Taken)> {
    check(&options.sizes)?;
    let wanted = shape::wanted(object, &options.sizes)?;
    let pins = Pins::create(&options.pins)?;
    if options.discard || !pins.is_complete() {
        attach::detach_all(&pins)?;
        pins.clear()?;
    }
    if pins.is_complete() {
        take_over(options, object, pins, &wanted)
    } else {
        let created = create(options, object, &pins, &wanted);
        if created.is_err() {
            // Nothing runs: what was made so far is of no use.
            pins.clear()?;
            pins.remove_folder()?;
        }
        let (ebpf, maps) = created?;
        let kernel = Kernel {
            pins,
            ebpf,
            maps,
            log_packets: options.log_packets,
        };
        Ok((kernel, Taken::Fresh))
    }
}

fn check(sizes: &Sizes) -> Result<()> {
    for name in SIZED {
        ensure!(
            sizes.of(name).is_some_and(|size| size > 0),
            "the size of the map {name} is 0: give it at least 1"
        );
    }
    Ok(())
}

/// Nothing is pinned.
fn create(
    options: &Options,
    object: &[u8],
    pins: &Pins,
    wanted: &BTreeMap<String, Shape>,
) -> Result<(Ebpf, Maps)> {
    let mut ebpf = load(options, object, pins, wanted, &[])?;
    let mut maps = Maps::take(&mut ebpf)?;
    let settings = Settings {
        abi_version: ABI_VERSION,
        ..Settings::default()
    };
    maps.settings
        .set(0, settings, 0)
        .context("cannot write the map settings")?;
    pin_program(&mut ebpf, pins)?;
    Ok((ebpf, maps))
}

/// A program and its maps are pinned.
fn take_over(
    options: &Options,
    object: &[u8],
    pins: Pins,
    wanted: &BTreeMap<String, Shape>,
) -> Result<(Kernel, Taken)> {
    let resized = compare(&pins, wanted)?;
    recover(&pins, wanted)?;
    for name in &resized {
        fits(&pins, name, wanted[name])?;
    }

    let mut exchanged = resized.clone();
    exchanged.push(PROGRAMS.to_owned());
    let prepared = prepare(options, object, &pins, wanted, &exchanged);
    if prepared.is_err() {
        for name in &exchanged {
            Pins::remove(&pins.swap(name))?;
        }
    }
    let (mut ebpf, maps, copied_at) = prepared?;
    for name in &exchanged {
        pins.exchange(name)?;
    }
    if let Err(error) = attach::replace_all(&pins, program(&mut ebpf)?) {
        for name in &exchanged {
            pins.exchange(name)?;
            Pins::remove(&pins.swap(name))?;
        }
        return Err(error);
    }
    pin_program(&mut ebpf, &pins)?;
    for name in &exchanged {
        catch_up(&pins, name, copied_at)?;
        Pins::remove(&pins.swap(name))?;
    }
    for name in pins.maps()? {
        if !wanted.contains_key(&name) {
            Pins::remove(&pins.map(&name))?;
        }
    }
    let kernel = Kernel {
        pins,
        ebpf,
        maps,
        log_packets: options.log_packets,
    };
    kernel.forget_gone_interfaces()?;
    Ok((kernel, Taken::TakenOver { resized }))
}

/// Loads the program and copies what is alive in the maps of another size. What runs is not touched.
fn prepare(
    options: &Options,
    object: &[u8],
    pins: &Pins,
    wanted: &BTreeMap<String, Shape>,
    resized: &[String],
) -> Result<(Ebpf, Maps, Ticks)> {
    let mut ebpf = load(options, object, pins, wanted, resized)?;
    let maps = Maps::take(&mut ebpf)?;
    let copied_at = flows::clock();
    for name in resized {
        copy(pins, name).with_context(|| format!("cannot copy the map {name}"))?;
    }
    Ok((ebpf, maps, copied_at))
}

/// Compares every pin with what is wanted and gives those of another size. Changes nothing.
fn compare(pins: &Pins, wanted: &BTreeMap<String, Shape>) -> Result<Vec<String>> {
    let mut resized = Vec::new();
    for (name, &shape) in wanted {
        // One that is missing is new in this version.
        let Some(found) = open_map(pins, name)? else {
            continue;
        };
        match shape::compare(name, found.shape(), shape)? {
            Fit::Same => {}
            Fit::OtherSize => resized.push(name.clone()),
        }
    }
    let settings =
        MapData::from_pin(pins.map("settings")).context("cannot open the map settings")?;
    let settings = aya::maps::Array::<_, Settings>::try_from(aya::maps::Map::Array(settings))?;
    let found = settings
        .get(&0, 0)
        .context("cannot read the map settings")?
        .abi_version;
    if found != ABI_VERSION {
        bail!(
            "the pinned maps have layout version {found}, this version of lb-user needs \
             {ABI_VERSION}; {}",
            shape::ADVICE
        );
    }
    slots_fit(pins)?;
    Ok(resized)
}

/// Checks that the lookup tables are arrays of what they are to be.
fn slots_fit(pins: &Pins) -> Result<()> {
    let Ok(slots) = MapData::from_pin(pins.map("slots")) else {
        return Ok(());
    };
    let entries = shape::of(&slots)?.entries;
    let slots: ArrayOfMaps<_, MapData> = aya::maps::Map::ArrayOfMaps(slots).try_into()?;
    for id in 0..entries {
        match slots.get(&id, 0) {
            Ok(inner) => {
                shape::compare(&format!("slots[{id}]"), shape::of(&inner)?, shape::table(0))?;
            }
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error).context("cannot read the map slots"),
        }
    }
    Ok(())
}

/// Finishes or forgets what an opening that was killed has left behind.
fn recover(pins: &Pins, wanted: &BTreeMap<String, Shape>) -> Result<()> {
    for name in pins.swaps()? {
        let is_of_this_layout = match (open_swap(pins, &name), wanted.get(&name)) {
            (Ok(Some(swap)), Some(&shape)) => shape::compare(&name, swap.shape(), shape).is_ok(),
            _ => false,
        };
        if is_of_this_layout {
            // Every flow that is in the swap and nowhere else, however old.
            catch_up(pins, &name, flows::beginning())?;
        }
        Pins::remove(&pins.swap(&name))?;
    }
    Ok(())
}

/// Checks that what is alive in the map fits into its new size.
fn fits(pins: &Pins, name: &str, wanted: Shape) -> Result<()> {
    if !KEPT_WHOLE.contains(&name) {
        return Ok(());
    }
    let Some(map) = open_map(pins, name)? else {
        return Ok(());
    };
    let is_alive = |value: &[u8]| match name {
        // What is left of a removed backend is not worth its place.
        "backends" => Backend::read_from_bytes(value).is_ok_and(|backend| backend.service.0 != 0),
        _ => value.iter().any(|&byte| byte != 0),
    };
    let alive =
        batch::occupied(&map, is_alive).with_context(|| format!("cannot read the map {name}"))?;
    ensure!(
        alive <= u64::from(wanted.entries),
        "the map {name} needs room for {alive} entries, its new size is {}: give it more, or remove \
         some first",
        wanted.entries
    );
    Ok(())
}

/// Loads the program with the pinned maps; those in `resized`, and those that are not there yet,
/// are made and pinned.
fn load(
    options: &Options,
    object: &[u8],
    pins: &Pins,
    wanted: &BTreeMap<String, Shape>,
    resized: &[String],
) -> Result<Ebpf> {
    let log_level = u8::from(options.log_packets);
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::DISABLE);
    loader.override_global("LOG_LEVEL", &log_level, true);
    loader.map_max_entries(super::EVENTS, options.sizes.event_bytes);
    for (name, shape) in wanted {
        let path = if resized.contains(name) {
            pins.swap(name)
        } else {
            pins.map(name)
        };
        loader.map_max_entries(name, shape.entries);
        loader.map_pin_path(name, path);
    }
    let mut ebpf = loader.load(object).map_err(in_one_line)?;
    program(&mut ebpf)?.load().map_err(refused)?;
    load_rare(&mut ebpf)?;
    Ok(ebpf)
}

/// Loads the programs of rare ways and puts them where the main one finds them.
fn load_rare(ebpf: &mut Ebpf) -> Result<()> {
    for (place, name) in (0..).zip(RARE) {
        let program: &mut Xdp = ebpf
            .program_mut(name)
            .with_context(|| format!("the program {name} is missing in the object"))?
            .try_into()
            .context("it is no XDP program")?;
        program.load().map_err(refused)?;
        let fd = program.fd()?.try_clone()?;
        let map = ebpf
            .map_mut(PROGRAMS)
            .with_context(|| format!("the map {PROGRAMS} is missing in the object"))?;
        ProgramArray::try_from(map)?
            .set(place, &fd, 0)
            .with_context(|| format!("cannot write to the map {PROGRAMS}"))?;
    }
    Ok(())
}

/// Why the kernel does not take the program, in one line.
pub(super) fn refused(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, .. } => {
            anyhow!("the kernel refuses the program: {io_error}")
        }
        error => anyhow::Error::new(error).context("the kernel refuses the program"),
    }
}

/// Why maps cannot be made, in one line.
pub(super) fn in_one_line(error: aya::EbpfError) -> anyhow::Error {
    match error {
        aya::EbpfError::MapError(MapError::CreateError { name, io_error }) => {
            let advice = match io_error.raw_os_error() {
                Some(libc::ENOMEM | libc::E2BIG) => {
                    ": its size is more than this machine has room for"
                }
                _ => "",
            };
            anyhow!("the kernel refuses the map {name}: {io_error}{advice}")
        }
        error => anyhow::Error::new(error).context("cannot load the program"),
    }
}

/// Copies what is alive in a map into its swap.
fn copy(pins: &Pins, name: &str) -> Result<()> {
    if name == PROGRAMS {
        return Ok(());
    }
    let (Some(from), Some(to)) = (open_map(pins, name)?, open_swap(pins, name)?) else {
        bail!("a pin has vanished");
    };
    if from.shape().kind == bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32 {
        return copy_inner(pins, name);
    }
    batch::copy(&from, &to)?;
    Ok(())
}

/// Lets an array of maps have the inner maps of another one.
fn copy_inner(pins: &Pins, name: &str) -> Result<()> {
    let array = |path| -> Result<(u32, ArrayOfMaps<MapData, MapData>)> {
        let map = MapData::from_pin(path)?;
        let entries = shape::of(&map)?.entries;
        Ok((entries, aya::maps::Map::ArrayOfMaps(map).try_into()?))
    };
    let (from_entries, from) = array(pins.map(name))?;
    let (to_entries, mut to) = array(pins.swap(name))?;
    for id in 0..from_entries.min(to_entries) {
        match from.get(&id, 0) {
            Ok(inner) => to.set(id, &inner, 0)?,
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Takes in what has happened to the flows in the swap since `since`.
fn catch_up(pins: &Pins, name: &str, since: Ticks) -> Result<()> {
    if !FLOW_TABLES.contains(&name) {
        return Ok(());
    }
    let Some(swap) = open_swap(pins, name)? else {
        return Ok(());
    };
    flows::catch_up(&swap, &pins.map(name), since)
        .with_context(|| format!("cannot copy the latest entries of the map {name}"))
}

/// Pins the program in place of the one that is pinned, in one step.
fn pin_program(ebpf: &mut Ebpf, pins: &Pins) -> Result<()> {
    let swap = pins.swap(pins::PROGRAM);
    Pins::remove(&swap)?;
    program(ebpf)?
        .pin(&swap)
        .with_context(|| format!("cannot pin {}", swap.display()))?;
    pins.exchange(pins::PROGRAM)?;
    Pins::remove(&swap)
}

/// The program in what was loaded.
pub(super) fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    ebpf.program_mut(PROGRAM)
        .with_context(|| format!("the program {PROGRAM} is missing in the object"))?
        .try_into()
        .context("it is no XDP program")
}

fn open_map(pins: &Pins, name: &str) -> Result<Option<RawMap>> {
    raw(Pins::open(&pins.map(name))?)
}

fn open_swap(pins: &Pins, name: &str) -> Result<Option<RawMap>> {
    raw(Pins::open(&pins.swap(name))?)
}

fn raw(fd: Option<OwnedFd>) -> Result<Option<RawMap>> {
    fd.map(|fd| RawMap::new(fd).context("a pin is no map"))
        .transpose()
}
