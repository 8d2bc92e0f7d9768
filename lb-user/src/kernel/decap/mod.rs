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

mod pinned;
mod program;

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use lb_common::abi::decap::{Counters, SOURCES};

use super::{
    Attached, XdpMode,
    attach::foreign,
    pins::{self, is_bpffs},
    requirements,
    syscall::detach_link,
};
use crate::network::{Link, XdpPlace};
use pinned::{LINK, clear, open_link};
use program::{create, replace};

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
        let settings = pinned::settings(&folder)?;
        Ok(Some(State {
            name: name.to_owned(),
            ifindex: link.ifindex,
            program: link.program,
            place: pinned::place(settings.place),
            gue_port: settings.gue_port.number(),
            sources: pinned::sources(&folder)?,
            counters: pinned::counters(&folder)?,
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
