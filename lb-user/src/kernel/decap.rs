//! The program that takes packets out of tunnels, on a backend's interfaces.
//!
//! Needs no agent: everything it knows is pinned, and packets go on when the command has ended.
//! Every interface has a program and maps of its own:
//!
//! ```text
//! <pins>/decap/<interface>/link        what holds the program there; a `.` in the name is a `:` here
//! <pins>/decap/<interface>/sources     where tunnels are taken from
//! <pins>/decap/<interface>/settings    the layout's version, and what else was asked for
//! <pins>/decap/<interface>/counters    packets, by reason
//! ```
//!
//! Without `link` nothing is attached, and what else is there is the rest of a call that was killed.
//! Attaching again gives the link a new program with new sources and settings, and the counters of
//! the old one: each packet meets either the old program with the old sources or the new with the new.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key},
    programs::{Xdp, links::FdLink},
};
use ipnet::IpNet;
use lb_common::abi::{
    Address, Port,
    decap::{Counters, SOURCES, Settings, VERSION},
};

use super::{
    Attached, XdpMode,
    attach::{foreign, refusal},
    open::{in_one_line, refused},
    pins::{self, Pins, is_bpffs},
    requirements, shape,
    syscall::{LinkState, RawMap, detach_link, link_state, update_link},
};
use crate::{
    network::{Link, XdpPlace},
    objects,
};

/// The program's name in the object.
const PROGRAM: &str = "lb_decap";

const LINK: &str = "link";
const SOURCE_NETWORKS: &str = "sources";
const SETTINGS: &str = "settings";
const COUNTERS: &str = "counters";

/// What is written anew with every program.
const RENEWED: [&str; 2] = [SOURCE_NETWORKS, SETTINGS];

/// How tunnels are to be taken off.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where tunnels are taken from.
    pub sources: Vec<IpNet>,
    /// The UDP port of GUE.
    pub gue_port: u16,
    /// Where the program is to run.
    pub mode: XdpMode,
    /// Counters of another layout are thrown away.
    pub discard: bool,
}

/// What attaching has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Where the program runs.
    pub attached: Attached,
    /// Whether it took the place of one that was there.
    pub replaced: bool,
}

/// The program on one interface.
#[derive(Clone, Debug)]
pub struct State {
    /// Name that the interface had when the program was attached.
    pub name: String,
    /// Its index; 0 if the interface is gone, or somebody has taken the program off.
    pub ifindex: u32,
    /// Id of the program.
    pub program: u32,
    /// Where it runs.
    pub place: Option<XdpPlace>,
    /// The UDP port of GUE.
    pub gue_port: u16,
    /// Where tunnels are taken from.
    pub sources: Vec<IpNet>,
    /// What came in since the first attaching.
    pub counters: Counters,
}

/// The pins of the program on all interfaces of an instance.
#[derive(Debug)]
pub struct Decap {
    folder: PathBuf,
    /// Kept locked: one command at a time.
    _lock: Option<File>,
}

impl Decap {
    /// The pins below `pins`, the instance's folder, to be read.
    ///
    /// # Errors
    ///
    /// One line that says what is missing: rights or a bpffs.
    pub fn open(pins: &Path) -> Result<Self> {
        requirements::check()?;
        is_bpffs(pins)?;
        Ok(Self {
            folder: pins.join("decap"),
            _lock: None,
        })
    }

    /// As [`Self::open`], to be changed: waits for other commands that are about to.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn lock(pins: &Path) -> Result<Self> {
        let mut decap = Self::open(pins)?;
        // The folder of all instances: it is never removed.
        let all = pins.parent().unwrap_or(pins);
        pins::make_folder(all)?;
        let file = File::open(all).with_context(|| format!("cannot open {}", all.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", all.display()))?;
        decap._lock = Some(file);
        Ok(decap)
    }

    /// Puts the program on an interface, or a new one in the place of the one that is there.
    ///
    /// # Errors
    ///
    /// When the interface carries another XDP program, the pins are of another layout, or the kernel
    /// refuses. What is attached then runs on as it did, unless [`XdpMode`] asks for another place
    /// than where it runs: then it is taken off first.
    pub fn attach(&self, link: &Link, options: &Options) -> Result<Done> {
        ensure!(
            options.sources.len() <= SOURCES as usize,
            "{} sources are too many: there is room for {SOURCES}",
            options.sources.len()
        );
        ensure!(
            link.mac.is_some(),
            "{} is no Ethernet interface: attach to the one that packets from the load balancer \
             come in on",
            link.name
        );
        let folder = self.of(&link.name);
        let there = open_link(&folder)?;
        match (&there, link.xdp) {
            (Some((_, state)), Some(xdp))
                if state.ifindex == link.index && state.program == xdp.program =>
            {
                if is_where_wanted(options.mode, xdp.place) {
                    replace(&folder, options, xdp.place)
                        .with_context(|| format!("cannot replace the program on {}", link.name))?;
                    return Ok(Done {
                        attached: attached(link, xdp.place, None),
                        replaced: true,
                    });
                }
                self.detach(&link.name)?;
            }
            (Some((_, state)), _) if state.ifindex != 0 => bail!(
                "this instance takes tunnels off on another interface called {} (index {}): give \
                 --instance NAME for this one",
                link.name,
                state.ifindex
            ),
            (_, Some(xdp)) => return Err(foreign(link, xdp)),
            // Its interface is gone, or never was: what is left is removed.
            (_, None) => clear(&folder)?,
        }
        let created = create(&folder, link, options);
        if created.is_err() {
            clear(&folder)?;
            self.tidy();
        }
        Ok(Done {
            attached: created?,
            replaced: false,
        })
    }

    /// Takes the program off an interface and removes its pins. Returns whether it was there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn detach(&self, name: &str) -> Result<bool> {
        let folder = self.of(name);
        let there = open_link(&folder)?;
        if let Some((link, state)) = &there
            && state.ifindex != 0
        {
            detach_link(link.as_fd())
                .with_context(|| format!("cannot detach the program from interface {name}"))?;
        }
        clear(&folder)?;
        self.tidy();
        Ok(there.is_some())
    }

    /// The names of the interfaces that have pins.
    ///
    /// # Errors
    ///
    /// When the pins cannot be read.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        let read = || format!("cannot read {}", self.folder.display());
        for entry in fs::read_dir(&self.folder).with_context(read)? {
            let entry = entry.with_context(read)?;
            if entry.path().join(LINK).exists()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name.replace(':', "."));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What runs on an interface, and what it has counted; none if nothing is pinned for it.
    ///
    /// # Errors
    ///
    /// When the pins are of another layout or cannot be read.
    pub fn state(&self, name: &str) -> Result<Option<State>> {
        let folder = self.of(name);
        let Some((_, link)) = open_link(&folder)? else {
            return Ok(None);
        };
        let settings = settings(&folder)?;
        let counters: PerCpuArray<_, Counters> =
            Map::PerCpuArray(open_map(&folder, COUNTERS)?).try_into()?;
        let per_cpu = counters
            .get(&0, 0)
            .context("cannot read the map counters")?;
        Ok(Some(State {
            name: name.to_owned(),
            ifindex: link.ifindex,
            program: link.program,
            place: place(settings.place),
            gue_port: settings.gue_port.number(),
            sources: sources(&folder)?,
            counters: per_cpu
                .iter()
                .fold(Counters::default(), |sum, counters| sum.plus(counters)),
        }))
    }

    /// The folder of an interface.
    fn of(&self, name: &str) -> PathBuf {
        self.folder.join(name.replace('.', ":"))
    }

    /// Removes the folders that have become empty.
    fn tidy(&self) {
        for folder in [Some(&*self.folder), self.folder.parent()]
            .into_iter()
            .flatten()
        {
            // Fails where something is in it: another interface's pins, or an agent's.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Nothing is pinned, and nothing attached.
fn create(folder: &Path, link: &Link, options: &Options) -> Result<Attached> {
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

/// A program is attached, at `place`.
fn replace(folder: &Path, options: &Options, place: XdpPlace) -> Result<()> {
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

/// Whether the pinned maps are of this version's layout.
fn fits(folder: &Path) -> Result<()> {
    let wanted = shape::wanted(objects::DECAP, &super::Sizes::default())?;
    settings(folder)?;
    for name in [SOURCE_NETWORKS, COUNTERS] {
        let found = RawMap::duplicate(open_map(folder, name)?.fd().as_fd())?.shape();
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
fn settings(folder: &Path) -> Result<Settings> {
    let map = open_map(folder, SETTINGS)?;
    let found = RawMap::duplicate(map.fd().as_fd())?.shape();
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

fn sources(folder: &Path) -> Result<Vec<IpNet>> {
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
            4 => std::net::IpAddr::from(address.v4_bytes()),
            _ => std::net::IpAddr::from(address.0),
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

fn open_link(folder: &Path) -> Result<Option<(std::os::fd::OwnedFd, LinkState)>> {
    let path = folder.join(LINK);
    let Some(link) = Pins::open(&path)? else {
        return Ok(None);
    };
    let state =
        link_state(link.as_fd()).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(Some((link, state)))
}

/// Removes an interface's pins: the link first, since without it the rest counts for nothing.
fn clear(folder: &Path) -> Result<()> {
    Pins::remove(&folder.join(LINK))?;
    if !folder.exists() {
        return Ok(());
    }
    for name in pins::files(folder)? {
        Pins::remove(&folder.join(name))?;
    }
    fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

fn swap(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{}", pins::SWAP))
}

fn attached(link: &Link, place: XdpPlace, fallback: Option<String>) -> Attached {
    Attached {
        name: link.name.clone(),
        ifindex: link.index,
        place,
        fallback,
    }
}

fn is_where_wanted(mode: XdpMode, place: XdpPlace) -> bool {
    match mode {
        XdpMode::Auto => true,
        XdpMode::Driver => place == XdpPlace::Driver,
        XdpMode::Skb => place == XdpPlace::Skb,
    }
}

/// A place as [`Settings::place`] holds it.
const fn number(place: XdpPlace) -> u8 {
    match place {
        XdpPlace::Driver => 1,
        XdpPlace::Skb => 2,
        XdpPlace::Hardware => 3,
    }
}

fn place(kept: u8) -> Option<XdpPlace> {
    [XdpPlace::Driver, XdpPlace::Skb, XdpPlace::Hardware]
        .into_iter()
        .find(|&place| number(place) == kept)
}
