//! What the data path would do with a packet, step by step, and why.
//!
//! Runs the program's own code ([`lb_common::datapath::process`]) on the host, over the live maps
//! (`snapshot`) and the kernel's routing and neighbour tables (`route`). Every question that it
//! asks is noted with its answer (`record`) and put in sentences (`steps`). Promises to change
//! nothing: maps are opened read-only, and what the data path writes goes to copies, which the
//! later packets of a capture meet.
//!
//! Where this differs from the program: the routing table is asked over netlink, which knows no
//! `bpf_fib_lookup` (see [`crate::network::Network::forwarded`]); round-robin turns a wheel on
//! every CPU, and a trace is of one CPU.

mod capture;
mod fields;
mod frame;
mod record;
mod report;
mod route;
mod snapshot;
mod steps;
mod telling;
mod walk;

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::time::{ClockId, clock_gettime};

pub use fields::{Change, flags};
pub use record::{Asked, Run, Runs, run};
pub use report::{FlowEntry, Names, NextHop, Slot, Step, Trace};
pub use steps::trace;

use self::{
    route::Routes,
    snapshot::{Failure, LiveFlows, Snapshot},
};
use crate::{
    agent,
    cli::{self, Form},
    commands::{self, print},
    instance::Instance,
    kernel::Pinned,
    network::netns,
    state::{Folder, State},
};

/// `trace`: prints what would happen to the packets asked about.
///
/// To be called before the process has made a thread: it may have to enter the agent's network
/// namespace.
///
/// # Errors
///
/// One line: no program is pinned, a packet that cannot be, a file that is no capture, an interface
/// that is not there.
pub fn command(instance: &Instance, form: Form, options: &cli::Trace) -> Result<()> {
    let question = frame::Question::checked(options)?;
    let mut capture = options.pcap.as_deref().map(capture::open).transpose()?;
    agent::check_rights(instance, "trace")?;
    let maps = Pinned::open(&instance.pins())?.ok_or_else(|| {
        anyhow!(
            "no agent runs for instance {:?} and nothing is pinned: sudo lb-user attach eth1{}",
            instance.name(),
            instance.option()
        )
    })?;
    let state = Folder::at(instance.state_folder())
        .load()?
        .unwrap_or_default();
    if let Some(name) = &state.netns {
        netns::enter(name)?;
    }
    let routes = Routes::open(commands::runtime()?)?;
    let mut tracer = Tracer::new(&maps, &routes, &state, options.cpu)?;

    match (question, &mut capture) {
        (Some(question), _) => {
            let place = tracer.place(options.interface.as_deref(), question.source())?;
            let frame = question.frame(&place);
            let trace = tracer.packet(&frame, place.ifindex)?;
            tracer.warn(&place);
            match form {
                Form::Json => print::json(&trace),
                Form::Table if options.brief => print::text(&trace.line()),
                Form::Table => print::text(&trace.table()),
            }
        }
        (None, Some(capture)) => tracer.capture(capture, form, options),
        (None, None) => Err(anyhow!("give --src and --dst, or --pcap")),
    }
}

/// Where a packet comes in, and from whom.
struct Place {
    ifindex: u32,
    name: String,
    /// The interface's MAC address.
    own: lb_common::abi::Mac,
    /// The sender's, as far as it is known.
    sender: lb_common::abi::Mac,
    is_attached: bool,
}

/// Everything that the packets of one trace meet.
struct Tracer<'k> {
    maps: &'k Pinned,
    routes: &'k Routes,
    tables: Snapshot<'k>,
    flows: LiveFlows<'k>,
    failure: Failure,
    names: Names,
    /// The clock before the first packet, in nanoseconds.
    began: u64,
}

impl<'k> Tracer<'k> {
    fn new(maps: &'k Pinned, routes: &'k Routes, state: &State, cpu: u32) -> Result<Self> {
        let began = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
            .map(Duration::from)
            .context("cannot read the clock")?;
        let began = u64::try_from(began.as_nanos())?;
        let failure = Failure::default();
        let links = routes.links().iter();
        Ok(Self {
            maps,
            routes,
            tables: Snapshot::new(maps, routes, &failure),
            flows: LiveFlows::new(maps, cpu, began, &failure),
            failure,
            names: Names {
                services: state
                    .ids
                    .services()
                    .map(|(name, id)| (id, name.to_owned()))
                    .collect(),
                interfaces: links.map(|link| (link.index, link.name.clone())).collect(),
            },
            began,
        })
    }

    /// Where packets from `source` come in: on the interface named, else where the kernel would
    /// send to it, else on the first one that is attached.
    fn place(&self, interface: Option<&str>, source: std::net::IpAddr) -> Result<Place> {
        let attached = self.maps.interfaces();
        let known = self.routes.towards(source)?;
        let link = match interface {
            Some(name) => self.routes.link(name)?,
            None => {
                let links = || {
                    self.routes
                        .links()
                        .iter()
                        .filter(|l| attached.contains(&l.name))
                };
                let by_route = links().find(|l| known.is_some_and(|(index, _)| index == l.index));
                by_route
                    .or_else(|| links().next())
                    .cloned()
                    .ok_or_else(|| {
                        anyhow!("the program is attached to no interface: name one with --in")
                    })?
            }
        };
        let sender = known
            .filter(|(index, _)| *index == link.index)
            .and_then(|(_, mac)| mac);
        Ok(Place {
            ifindex: link.index,
            is_attached: attached.contains(&link.name),
            name: link.name,
            own: link.mac.unwrap_or_default(),
            sender: sender.unwrap_or(frame::UNKNOWN_SENDER),
        })
    }

    /// Tells the person of what is odd about the place.
    fn warn(&self, place: &Place) {
        if !place.is_attached {
            print::aside(&format!(
                "warning: the program is not attached to {}: packets that come in there do not \
                 meet it (it is on {})",
                place.name,
                self.maps.interfaces().join(", ")
            ));
        }
    }

    /// One packet, which leaves its mark on the flows that the next one meets.
    fn packet(&mut self, frame: &[u8], ifindex: u32) -> Result<Trace> {
        self.tables.ifindex.set(ifindex);
        let runs = Runs::of(frame, ifindex, &self.tables, &mut self.flows);
        self.failure.check()?;
        Ok(trace(&runs, &self.names))
    }

    /// Each packet of a capture. The clock goes on as it did when they were captured.
    fn capture(
        &mut self,
        capture: &mut capture::Capture,
        form: Form,
        options: &cli::Trace,
    ) -> Result<()> {
        let mut first = None;
        let mut place = None;
        let mut number = 0;
        while let Some(packet) = capture.next()? {
            number += 1;
            let began = *first.get_or_insert(packet.time);
            let later = packet.time.saturating_sub(began);
            self.flows.host.time = self.began + u64::try_from(later.as_nanos())?;
            let from = packet
                .source()
                .unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
            let here = self.place(options.interface.as_deref(), from)?;
            let trace = Trace {
                number: Some(number),
                ..self.packet(&packet.frame(&here), here.ifindex)?
            };
            if place.replace(here.ifindex) != Some(here.ifindex) {
                self.warn(&here);
            }
            match form {
                Form::Json => print::line(&serde_json::to_string(&trace)?)?,
                Form::Table if options.brief => print::text(&trace.line())?,
                Form::Table => {
                    let lost = match packet.missing {
                        0 => String::new(),
                        missing => format!(", {missing} bytes not captured and taken for zeros"),
                    };
                    let time = later.as_secs_f64();
                    print::text(&format!(
                        "packet {number} at {time:.6} s{lost}\n{}\n",
                        trace.table()
                    ))?;
                }
            }
        }
        if number == 0 {
            print::aside("the capture holds no packet");
        }
        Ok(())
    }
}
