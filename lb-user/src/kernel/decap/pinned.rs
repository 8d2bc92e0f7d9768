//! What is pinned for one interface: opened, compared with this version's layout, read and removed.

use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, LpmTrie, Map, MapData, PerCpuArray};
use ipnet::IpNet;
use lb_common::abi::{
    Address,
    decap::{Counters, Settings, VERSION},
};

use crate::{
    kernel::{
        Sizes,
        pins::{self, Pins},
        shape,
        syscall::{LinkState, link_state},
    },
    network::XdpPlace,
    objects,
};

pub(super) const LINK: &str = "link";
pub(super) const SOURCE_NETWORKS: &str = "sources";
pub(super) const SETTINGS: &str = "settings";
pub(super) const COUNTERS: &str = "counters";

/// Whether the pinned maps are of this version's layout.
pub(super) fn fits(folder: &Path) -> Result<()> {
    let wanted = shape::wanted(objects::DECAP, &Sizes::default())?;
    settings(folder)?;
    for name in [SOURCE_NETWORKS, COUNTERS] {
        let found = shape::of(&open_map(folder, name)?)?;
        ensure!(
            wanted.get(name) == Some(&found),
            "the pinned map {name} has another layout than this version needs; {ADVICE}"
        );
    }
    Ok(())
}

/// What an operator can do about maps of another layout.
const ADVICE: &str = "the old program runs on; `lb-user decap attach --discard` gives up its \
                      counters, `lb-user decap detach` takes it off";

/// The settings, if they are of this version's layout.
pub(super) fn settings(folder: &Path) -> Result<Settings> {
    let map = open_map(folder, SETTINGS)?;
    let found = shape::of(&map)?;
    // The version stands first, whatever follows it.
    ensure!(
        found.value as usize == size_of::<Settings>(),
        "the pinned map settings has another layout than this version needs; {ADVICE}"
    );
    let map: Array<_, Settings> = Map::Array(map).try_into()?;
    let settings = map.get(&0, 0).context("cannot read the map settings")?;
    ensure!(
        settings.version == VERSION,
        "the pinned maps have layout version {}, this version of lb-user needs {VERSION}; {ADVICE}",
        settings.version
    );
    Ok(settings)
}

/// What came in, on all CPUs.
pub(super) fn counters(folder: &Path) -> Result<Counters> {
    let map = Map::PerCpuArray(open_map(folder, COUNTERS)?);
    let map: PerCpuArray<_, Counters> = map.try_into()?;
    let per_cpu = map.get(&0, 0).context("cannot read the map counters")?;
    let sum = Counters::default();
    Ok(per_cpu.iter().fold(sum, |sum, counters| sum.plus(counters)))
}

/// Where tunnels are taken from.
pub(super) fn sources(folder: &Path) -> Result<Vec<IpNet>> {
    let map: LpmTrie<_, Address, u32> =
        Map::LpmTrie(open_map(folder, SOURCE_NETWORKS)?).try_into()?;
    let mut sources = Vec::new();
    for entry in map.iter() {
        let (key, version) = entry.context("cannot read the map sources")?;
        let (bits, address) = (key.prefix_len(), key.data());
        let bits = if version == 4 {
            bits.saturating_sub(96)
        } else {
            bits
        };
        let address = match version {
            4 => IpAddr::from(address.v4_bytes()),
            _ => IpAddr::from(address.0),
        };
        sources.push(IpNet::new(address, u8::try_from(bits)?)?);
    }
    sources.sort_unstable();
    Ok(sources)
}

fn open_map(folder: &Path, name: &str) -> Result<MapData> {
    let path = folder.join(name);
    MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
}

/// What holds the program on the interface; none if nothing does.
pub(super) fn open_link(folder: &Path) -> Result<Option<(OwnedFd, LinkState)>> {
    let path = folder.join(LINK);
    let Some(link) = Pins::open(&path)? else {
        return Ok(None);
    };
    let state =
        link_state(link.as_fd()).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(Some((link, state)))
}

/// Removes an interface's pins: the link first, since without it the rest counts for nothing.
pub(super) fn clear(folder: &Path) -> Result<()> {
    Pins::remove(&folder.join(LINK))?;
    if !folder.exists() {
        return Ok(());
    }
    for name in pins::files(folder)? {
        Pins::remove(&folder.join(name))?;
    }
    fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// Where the other one is pinned while a map is being exchanged.
pub(super) fn swap(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{}", pins::SWAP))
}

/// A place as [`Settings::place`] holds it.
pub(super) const fn number(place: XdpPlace) -> u8 {
    match place {
        XdpPlace::Driver => 1,
        XdpPlace::Skb => 2,
        XdpPlace::Hardware => 3,
    }
}

/// A place as [`number`] gave it.
pub(super) fn place(kept: u8) -> Option<XdpPlace> {
    [XdpPlace::Driver, XdpPlace::Skb, XdpPlace::Hardware]
        .into_iter()
        .find(|&place| number(place) == kept)
}
