//! The program on interfaces: putting it there, taking it off, following interfaces that come back.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context, Result, anyhow};
use aya::programs::{ProgramError, Xdp, links::FdLink, loaded_programs};
use lb_common::abi::{InterfaceCounters, Settings};

use super::{
    Kernel,
    apply::zeroed,
    pins::Pins,
    syscall::{LinkState, detach_link, link_state, update_link},
    tables::gone,
};
use crate::network::{Link, LinkXdp, XdpPlace};

/// Where the program is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, or in the kernel's stack where the driver refuses it.
    #[default]
    Auto,
    /// In the driver only.
    Driver,
    /// In the kernel's stack only.
    Skb,
}

/// What attaching has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Name of the interface.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Where the program runs.
    pub place: XdpPlace,
    /// Why not in the driver, if that was tried in vain.
    pub fallback: Option<String>,
}

/// The program on an interface, as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name that the interface had when the program was attached.
    pub name: String,
    /// Its index; 0 if the interface is gone, or somebody has taken the program off.
    pub ifindex: u32,
    /// Id of the program that runs there.
    pub program: u32,
}

impl Kernel {
    /// Puts the program on an interface, or leaves it there. To be called again when the interface
    /// was re-created or renamed: what is pinned for one that is gone is replaced.
    ///
    /// `link` is the interface as [`Network::link`](crate::network::Network::link) has just seen it.
    ///
    /// # Errors
    ///
    /// When the interface carries another XDP program, or the kernel refuses; nothing is changed
    /// then. When [`XdpMode`] asks for another place than where the program runs already, it is
    /// taken off first.
    pub fn attach(&mut self, link: &Link, mode: XdpMode) -> Result<Attached> {
        let attached = self.attach_program(link, mode)?;
        if link.is_veth {
            let settings = Settings {
                transmit_by_redirect: 1,
                ..self.settings()?
            };
            self.write_settings(settings)?;
        }
        Ok(attached)
    }

    fn attach_program(&mut self, link: &Link, mode: XdpMode) -> Result<Attached> {
        let attached = |place, fallback| Attached {
            name: link.name.clone(),
            ifindex: link.index,
            place,
            fallback,
        };
        if let (Some(pinned), Some(xdp)) = (self.pinned_for(link)?, link.xdp) {
            let pinned_place = self.pins.link(&pinned);
            let place = self.pins.link(&link.name);
            if pinned != link.name {
                Pins::remove(&place)?;
                std::fs::rename(&pinned_place, &place)
                    .with_context(|| format!("cannot rename {}", pinned_place.display()))?;
            }
            let is_where_wanted = match mode {
                XdpMode::Auto => true,
                XdpMode::Driver => xdp.place == XdpPlace::Driver,
                XdpMode::Skb => xdp.place == XdpPlace::Skb,
            };
            if is_where_wanted {
                self.count_on(link.index)?;
                return Ok(attached(xdp.place, None));
            }
        } else if let Some(xdp) = link.xdp {
            return Err(foreign(link, xdp));
        }
        self.detach(&link.name)?;

        self.count_on(link.index)?;
        let result = match mode {
            XdpMode::Driver => self
                .attach_in(link, XdpPlace::Driver)
                .map(|()| (XdpPlace::Driver, None)),
            XdpMode::Skb => self
                .attach_in(link, XdpPlace::Skb)
                .map(|()| (XdpPlace::Skb, None)),
            XdpMode::Auto => match self.attach_in(link, XdpPlace::Driver) {
                Ok(()) => Ok((XdpPlace::Driver, None)),
                Err(refused) => self
                    .attach_in(link, XdpPlace::Skb)
                    .map(|()| (XdpPlace::Skb, Some(format!("{refused:#}")))),
            },
        };
        match result {
            Ok((place, fallback)) => Ok(attached(place, fallback)),
            Err(error) => {
                self.forget_counters(link.index)?;
                Err(error)
            }
        }
    }

    /// Takes the program off an interface; its counters are gone. Returns whether it was there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn detach(&mut self, name: &str) -> Result<bool> {
        let Some((_, state)) = open_link(&self.pins, name)? else {
            return Ok(false);
        };
        let is_attached = detach(&self.pins, name)?;
        if state.ifindex != 0 {
            self.forget_counters(state.ifindex)?;
        }
        Ok(is_attached)
    }

    /// Where the program is, by name. An interface that is gone has index 0 here until
    /// [`Kernel::attach`] or [`Kernel::detach`] is called for its name.
    ///
    /// # Errors
    ///
    /// When the pins cannot be read.
    pub fn attached(&self) -> Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for name in self.pins.links()? {
            if let Some((_, state)) = open_link(&self.pins, &name)? {
                attachments.push(Attachment {
                    name,
                    ifindex: state.ifindex,
                    program: state.program,
                });
            }
        }
        Ok(attachments)
    }

    /// Removes the counters of interfaces that no longer have the program.
    pub(super) fn forget_gone_interfaces(&self) -> Result<()> {
        let attached = self.attached()?;
        let counted = self
            .maps
            .if_counters
            .keys()
            .collect::<Result<Vec<u32>, _>>()
            .context("cannot read the map if_counters")?;
        for ifindex in counted {
            if !attached
                .iter()
                .any(|attachment| attachment.ifindex == ifindex)
            {
                self.maps
                    .if_counters_raw
                    .delete(&ifindex.to_ne_bytes())
                    .context("cannot remove from the map if_counters")?;
            }
        }
        Ok(())
    }

    /// The name under which our program on this very interface is pinned.
    fn pinned_for(&self, link: &Link) -> Result<Option<String>> {
        let Some(xdp) = link.xdp else {
            return Ok(None);
        };
        Ok(self
            .attached()?
            .into_iter()
            .find(|a| a.ifindex == link.index && a.program == xdp.program)
            .map(|attachment| attachment.name))
    }

    fn attach_in(&mut self, link: &Link, place: XdpPlace) -> Result<()> {
        let mode = match place {
            XdpPlace::Driver => aya::programs::XdpMode::Driver,
            XdpPlace::Skb => aya::programs::XdpMode::Skb,
            XdpPlace::Hardware => aya::programs::XdpMode::Hardware,
        };
        let pin = self.pins.link(&link.name);
        let program = self.program()?;
        let id = program
            .attach_to_if_index(link.index, mode)
            .map_err(|error| refusal(link, place, error))?;
        let attached = program.take_link(id)?;
        // Where the kernel refuses a link, aya attaches over netlink, which cannot be pinned.
        let fd_link = FdLink::try_from(attached)
            .map_err(|_| anyhow!("the kernel gives no link for interface {}", link.name))?;
        fd_link
            .pin(&pin)
            .map(drop)
            .with_context(|| format!("cannot pin {}", pin.display()))
    }

    /// Makes the counters of an interface, if there are none.
    fn count_on(&mut self, ifindex: u32) -> Result<()> {
        if self.maps.if_counters.get(&ifindex, 0).is_ok() {
            return Ok(());
        }
        self.maps
            .if_counters
            .insert(ifindex, zeroed::<InterfaceCounters>()?, 0)
            .context("cannot make the counters of an interface: is sizes.interfaces too small?")
    }

    fn forget_counters(&mut self, ifindex: u32) -> Result<()> {
        gone(self.maps.if_counters.remove(&ifindex))
            .context("cannot remove the counters of an interface")
    }
}

/// Gives every pinned link the new program. If one refuses, those before it get the old one back.
pub(super) fn replace_all(pins: &Pins, program: &Xdp) -> Result<()> {
    let old = Pins::open(&pins.map(super::pins::PROGRAM))?
        .ok_or_else(|| anyhow!("the program is not pinned"))?;
    let new = program.fd()?;
    let mut replaced: Vec<OwnedFd> = Vec::new();
    for name in pins.links()? {
        let Some((link, state)) = open_link(pins, &name)? else {
            continue;
        };
        // The interface is gone; what is pinned for it tells the agent so.
        if state.ifindex == 0 {
            continue;
        }
        if let Err(error) = update_link(link.as_fd(), new.as_fd()) {
            for link in replaced {
                update_link(link.as_fd(), old.as_fd())
                    .context("cannot put the old program back")?;
            }
            return Err(error).with_context(|| {
                format!("cannot replace the program on interface {name}: the old one runs on")
            });
        }
        replaced.push(link);
    }
    Ok(())
}

/// Takes the program off every interface.
pub(super) fn detach_all(pins: &Pins) -> Result<()> {
    for name in pins.links()? {
        detach(pins, &name)?;
    }
    Ok(())
}

/// Takes the program off one interface; returns whether it was there.
fn detach(pins: &Pins, name: &str) -> Result<bool> {
    let Some((link, state)) = open_link(pins, name)? else {
        return Ok(false);
    };
    if state.ifindex != 0 {
        detach_link(link.as_fd())
            .with_context(|| format!("cannot detach the program from interface {name}"))?;
    }
    Pins::remove(&pins.link(name))?;
    Ok(state.ifindex != 0)
}

fn open_link(pins: &Pins, name: &str) -> Result<Option<(OwnedFd, LinkState)>> {
    let path = pins.link(name);
    let Some(link) = Pins::open(&path)? else {
        return Ok(None);
    };
    let state =
        link_state(link.as_fd()).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(Some((link, state)))
}

/// Somebody else's program is on the interface.
pub(super) fn foreign(link: &Link, xdp: LinkXdp) -> anyhow::Error {
    anyhow!(
        "interface {} already carries XDP program {}{}: detach that one first \
         (`ip link set dev {} {} off`, or the tool that put it there)",
        link.name,
        xdp.program,
        program_name(xdp.program),
        link.name,
        match xdp.place {
            XdpPlace::Driver => "xdp",
            XdpPlace::Skb => "xdpgeneric",
            XdpPlace::Hardware => "xdpoffload",
        }
    )
}

/// ` (name)`, if the program has one.
fn program_name(id: u32) -> String {
    loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .map(|name| format!(" ({name})"))
        .unwrap_or_default()
}

/// Why a driver or the kernel does not take the program, in words.
pub(super) fn refusal(link: &Link, place: XdpPlace, error: ProgramError) -> anyhow::Error {
    let number = match &error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    /// `ENOTSUPP`, which the kernel does not show to programs as a rule; drivers do.
    const NOT_SUPPORTED: i32 = 524;
    let why = match number {
        Some(libc::EOPNOTSUPP | NOT_SUPPORTED) => "it does not know XDP".to_owned(),
        Some(libc::ERANGE | libc::EINVAL | libc::EMSGSIZE | libc::E2BIG) => format!(
            "it refuses XDP as it is set up; often the MTU ({}) or the number of queues is too large",
            link.mtu
        ),
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program is attached".to_owned(),
        Some(libc::ENODEV) => "the interface is gone".to_owned(),
        _ => error.to_string(),
    };
    match place {
        XdpPlace::Driver => anyhow!("the driver of {}: {why}", link.name),
        XdpPlace::Skb | XdpPlace::Hardware => anyhow!("interface {}: {why}", link.name),
    }
}
