//! The program of one interface: loaded, its maps written and pinned, put in place or exchanged.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, LpmTrie, lpm_trie::Key},
    programs::{Xdp, links::FdLink},
};
use ipnet::IpNet;
use lb_common::abi::{
    Address, Port,
    decap::{Settings, VERSION},
};

use super::{
    Options, attached,
    pinned::{COUNTERS, LINK, SETTINGS, SOURCE_NETWORKS, fits, number, open_link, swap},
};
use crate::{
    kernel::{
        Attached, XdpMode,
        attach::refusal,
        open::{in_one_line, refused},
        pins::{self, Pins},
        syscall::update_link,
    },
    network::{Link, XdpPlace},
    objects,
};

/// The program's name in the object.
const PROGRAM: &str = "lb_decap";

/// What is written anew with every program.
const RENEWED: [&str; 2] = [SOURCE_NETWORKS, SETTINGS];

/// Nothing is pinned, and nothing attached.
pub(super) fn create(folder: &Path, link: &Link, options: &Options) -> Result<Attached> {
    pins::make_folder(folder)?;
    let mut ebpf = load(options, None)?;
    for name in [SOURCE_NETWORKS, SETTINGS, COUNTERS] {
        pin(&ebpf, name, &folder.join(name))?;
    }
    let program = program(&mut ebpf)?;
    let (place, fallback) = match options.mode {
        XdpMode::Driver => (attach_in(program, link, XdpPlace::Driver, folder)?, None),
        XdpMode::Skb => (attach_in(program, link, XdpPlace::Skb, folder)?, None),
        XdpMode::Auto => match attach_in(program, link, XdpPlace::Driver, folder) {
            Ok(place) => (place, None),
            Err(why) => (
                attach_in(program, link, XdpPlace::Skb, folder)?,
                Some(format!("{why:#}")),
            ),
        },
    };
    write_settings(&mut ebpf, options, Some(place))?;
    Ok(attached(link, place, fallback))
}

/// A program is attached, at `place`.
pub(super) fn replace(folder: &Path, options: &Options, place: XdpPlace) -> Result<()> {
    let keeps_counters = match fits(folder) {
        Ok(()) => true,
        Err(_) if options.discard => false,
        Err(error) => return Err(error),
    };
    for name in RENEWED {
        Pins::remove(&swap(folder, name))?;
    }
    Pins::remove(&swap(folder, COUNTERS))?;
    let mut ebpf = load(options, keeps_counters.then(|| folder.join(COUNTERS)))?;
    write_settings(&mut ebpf, options, Some(place))?;
    let mut renewed = RENEWED.to_vec();
    if !keeps_counters {
        renewed.push(COUNTERS);
    }
    for name in &renewed {
        pin(&ebpf, name, &swap(folder, name))?;
    }
    let (link, _) = open_link(folder)?.context("its link is not pinned any more")?;
    let new = program(&mut ebpf)?.fd()?.try_clone()?;
    if let Err(error) = update_link(link.as_fd(), new.as_fd()) {
        for name in &renewed {
            Pins::remove(&swap(folder, name))?;
        }
        return Err(error).context("the old one runs on");
    }
    for name in &renewed {
        let (from, to) = (swap(folder, name), folder.join(name));
        fs::rename(&from, &to).with_context(|| format!("cannot rename {}", from.display()))?;
    }
    Ok(())
}

/// Loads the program, its sources and settings written; with the counters that are pinned, or with
/// new ones.
fn load(options: &Options, counters: Option<PathBuf>) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::DISABLE);
    if let Some(counters) = counters {
        loader.map_pin_path(COUNTERS, counters);
    }
    let mut ebpf = loader.load(objects::DECAP).map_err(in_one_line)?;
    write_sources(&mut ebpf, &options.sources)?;
    write_settings(&mut ebpf, options, None)?;
    program(&mut ebpf)?.load().map_err(refused)?;
    Ok(ebpf)
}

fn attach_in(program: &mut Xdp, link: &Link, place: XdpPlace, folder: &Path) -> Result<XdpPlace> {
    let mode = match place {
        XdpPlace::Driver => aya::programs::XdpMode::Driver,
        XdpPlace::Skb => aya::programs::XdpMode::Skb,
        XdpPlace::Hardware => aya::programs::XdpMode::Hardware,
    };
    let id = program
        .attach_to_if_index(link.index, mode)
        .map_err(|error| refusal(link, place, error))?;
    let fd_link = FdLink::try_from(program.take_link(id)?)
        .map_err(|_| anyhow!("the kernel gives no link for interface {}", link.name))?;
    let pin = folder.join(LINK);
    fd_link
        .pin(&pin)
        .with_context(|| format!("cannot pin {}", pin.display()))?;
    Ok(place)
}

fn write_sources(ebpf: &mut Ebpf, sources: &[IpNet]) -> Result<()> {
    let map = ebpf.map_mut(SOURCE_NETWORKS).context("no map sources")?;
    let mut map: LpmTrie<_, Address, u32> = map.try_into()?;
    for source in sources {
        let (bits, version) = match source {
            IpNet::V4(_) => (96 + u32::from(source.prefix_len()), 4),
            IpNet::V6(_) => (u32::from(source.prefix_len()), 6),
        };
        let key = Key::new(bits, Address::from(source.network()));
        map.insert(&key, version, 0)
            .with_context(|| format!("cannot write {source} into the map sources"))?;
    }
    Ok(())
}

fn write_settings(ebpf: &mut Ebpf, options: &Options, place: Option<XdpPlace>) -> Result<()> {
    let map = ebpf.map_mut(SETTINGS).context("no map settings")?;
    let mut map: Array<_, Settings> = map.try_into()?;
    let settings = Settings {
        version: VERSION,
        gue_port: Port::from(options.gue_port),
        place: place.map_or(0, number),
        reserved: 0,
    };
    map.set(0, settings, 0)
        .context("cannot write the map settings")
}

fn pin(ebpf: &Ebpf, name: &str, path: &Path) -> Result<()> {
    let map = ebpf.map(name).with_context(|| format!("no map {name}"))?;
    map.pin(path)
        .with_context(|| format!("cannot pin {}", path.display()))
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    ebpf.program_mut(PROGRAM)
        .with_context(|| format!("the program {PROGRAM} is missing in the object"))?
        .try_into()
        .context("it is no XDP program")
}
