//! `decap`: a backend's interfaces, on which packets are taken out of tunnels. There is no agent: each
//! command does its work on what is pinned and ends.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use ipnet::IpNet;
use lb_common::abi::decap::Reason;
use serde::Serialize;

use super::{
    print::{aside, edited, show},
    runtime,
};
use crate::{
    agent::check_rights,
    api::{Detached, Edited, ReasonCount},
    cli::{Decap as Command, DecapAttach, Form},
    config::XdpMode,
    instance::Instance,
    kernel::{
        self,
        decap::{Decap, Done, Options, State},
    },
    network::{Network, XdpPlace, netns},
    output,
};

/// Carries out a `decap` command. To be called before the process has made a thread.
pub(super) fn run(instance: &Instance, form: Form, command: &Command) -> Result<()> {
    match command {
        Command::Attach(options) => attach(instance, form, options),
        Command::Detach { interface } => detach(instance, form, interface.as_deref()),
        Command::Status => status(instance, form),
    }
}

fn attach(instance: &Instance, form: Form, asked: &DecapAttach) -> Result<()> {
    ensure!(
        !asked.from.is_empty(),
        "decap takes packets out of tunnels from load balancers that are named: give at least one, \
         as in --from 10.0.0.2"
    );
    check_rights(instance, "decap attach")?;
    if let Some(name) = &asked.netns {
        netns::enter(name)?;
    }
    let sources: BTreeSet<IpNet> = asked.from.iter().map(|source| source.0).collect();
    let options = Options {
        sources: sources.into_iter().collect(),
        gue_port: asked.gue_port,
        mode: match asked.xdp_mode {
            XdpMode::Auto => kernel::XdpMode::Auto,
            XdpMode::Driver => kernel::XdpMode::Driver,
            XdpMode::Skb => kernel::XdpMode::Skb,
        },
        discard: asked.discard,
    };
    let decap = Decap::lock(&instance.pins())?;
    let link =
        runtime()?.block_on(async { Network::open().await?.link(&asked.interface).await })?;
    let done = decap.attach(&link, &options)?;
    let mut warnings = Vec::new();
    if !link.up {
        warnings.push(format!("interface {} is down", link.name));
    }
    edited(
        form,
        &Edited {
            changes: vec![change(&done, &options)],
            notes: done.attached.fallback.iter().cloned().collect(),
            warnings,
        },
    )
}

/// What attaching has done, in a line.
fn change(done: &Done, options: &Options) -> String {
    let sources: Vec<String> = options.sources.iter().map(ToString::to_string).collect();
    format!(
        "{} {} in {}: takes IPIP and GUE (UDP port {}) from {}",
        if done.replaced {
            "~ replaced on"
        } else {
            "+ attached to"
        },
        done.attached.name,
        match done.attached.place {
            XdpPlace::Driver => "driver mode",
            XdpPlace::Skb => "generic mode (slow)",
            XdpPlace::Hardware => "hardware mode",
        },
        options.gue_port,
        sources.join(", ")
    )
}

fn detach(instance: &Instance, form: Form, interface: Option<&str>) -> Result<()> {
    check_rights(instance, "decap detach")?;
    let decap = Decap::lock(&instance.pins())?;
    let there = decap.interfaces()?;
    let names = match interface {
        None => there,
        Some(name) if there.iter().any(|known| known == name) => vec![name.to_owned()],
        Some(name) if there.is_empty() => {
            bail!("decap is not attached to {name}, nor to any other interface")
        }
        Some(name) => bail!(
            "decap is not attached to {name}; it is to {}",
            there.join(", ")
        ),
    };
    let mut notes = Vec::new();
    for name in names {
        decap.detach(&name)?;
        notes.push(format!("detached from {name}"));
    }
    if notes.is_empty() {
        notes.push("decap is attached to no interface".to_owned());
    }
    super::detached(form, &Detached { notes, ends: false })
}

fn status(instance: &Instance, form: Form) -> Result<()> {
    check_rights(instance, "decap status")?;
    let decap = Decap::open(&instance.pins())?;
    let mut interfaces = Vec::new();
    for name in decap.interfaces()? {
        interfaces.extend(decap.state(&name)?.map(Interface::from));
    }
    if interfaces.is_empty() && form == Form::Table {
        aside(
            "decap is attached to no interface: sudo lb-user decap attach INTERFACE --from ADDRESS",
        );
        return Ok(());
    }
    show(form, &interfaces, |interfaces| {
        let parts: Vec<String> = interfaces.iter().map(table).collect();
        parts.join("\n")
    })
}

/// An interface on which packets are taken out of tunnels.
#[derive(Debug, Serialize)]
struct Interface {
    name: String,
    /// Null if the interface is gone, or somebody has taken the program off.
    ifindex: Option<u32>,
    /// Id of the XDP program.
    program: u32,
    /// `driver`, `skb` or `hardware`.
    mode: Option<&'static str>,
    gue_port: u16,
    sources: Vec<String>,
    reasons: Vec<ReasonCount>,
}

impl From<State> for Interface {
    fn from(state: State) -> Self {
        let reasons = Reason::ALL.iter().map(|&reason| {
            let count = state.counters.reasons[reason as usize];
            ReasonCount {
                name: reason.name().to_owned(),
                fate: reason.fate().name().to_owned(),
                packets: Some(count.packets),
                bytes: Some(count.bytes),
                explanation: reason.explanation().to_owned(),
            }
        });
        Self {
            ifindex: (state.ifindex != 0).then_some(state.ifindex),
            program: state.program,
            mode: state.place.map(XdpPlace::name),
            gue_port: state.gue_port,
            sources: state.sources.iter().map(ToString::to_string).collect(),
            reasons: reasons.collect(),
            name: state.name,
        }
    }
}

/// An interface for people: the reasons that have been met, and the two that should be.
fn table(interface: &Interface) -> String {
    let place = match (interface.ifindex, interface.mode) {
        (None, _) => "gone: sudo lb-user decap detach, or attach again",
        (Some(_), mode) => mode.unwrap_or("unknown"),
    };
    let shown: Vec<ReasonCount> = interface
        .reasons
        .iter()
        .filter(|reason| reason.fate == "taken" || reason.packets != Some(0))
        .cloned()
        .collect();
    format!(
        "{} ({place}): IPIP and GUE (UDP port {}) from {}\n{}",
        interface.name,
        interface.gue_port,
        interface.sources.join(", "),
        output::reasons(&shown)
    )
}
