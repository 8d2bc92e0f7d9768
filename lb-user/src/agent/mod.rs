//! The long-running process: it owns the maps and what it has changed on the host, follows the
//! network, and answers on its socket.
//!
//! One task does everything, one thing after the other, so nothing is ever half changed when
//! something else begins. When the agent ends, is killed or is upgraded, the program, its maps and
//! the addresses stay, and packets go on.

mod carry;
mod change;
mod egress;
mod end;
mod follow;
mod log;
mod recipe;
mod report;
mod start;
mod way;

use std::{
    collections::{BTreeMap, VecDeque},
    io::Write as _,
    net::IpAddr,
    time::{Duration, Instant},
};

use ::log::{error, info, warn};
use anyhow::{Context as _, Result};
use lb_common::abi::{BackendId, Event, EventKind, ServiceId};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, mpsc},
    time::{sleep_until, timeout},
};

use crate::{
    api::{
        self,
        server::{EventStream, Request},
    },
    config::{Config, Sizes, XdpMode},
    events::Events,
    instance::Instance,
    kernel::Kernel,
    network::{
        Changed, Changes, InterfaceAddress, Link, Neighbours, Network, Route, XdpPlace, masquerade,
    },
    plan::{Built, Tables, Way},
    state::{Folder, State},
};

pub use end::clean;
pub use start::{check_rights, run};

/// The line on standard output by which `attach` knows that the agent it has started is ready. Those
/// before it say what it did.
pub const READY: &str = "ready";

/// Events that are kept for those who ask later.
const HISTORY: usize = 4096;

/// Changes of the network come in bursts: so long they are gathered.
const GATHER: Duration = Duration::from_millis(10);

/// The network is looked at even if nothing is told of it, so that whatever was refused is tried
/// again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The agent.
pub struct Agent {
    instance: Instance,
    folder: Folder,
    state: State,
    config: Config,
    kernel: Kernel,
    network: Network,
    /// Sizes of the maps that are there.
    sizes: Sizes,
    /// What the maps hold.
    tables: Tables,
    built: Built,
    /// Cells that each backend has in its service's lookup table.
    shares: BTreeMap<ServiceId, BTreeMap<BackendId, u32>>,
    /// The interfaces of the configuration.
    attachments: BTreeMap<String, Attachment>,
    links: Vec<Link>,
    host_addresses: Vec<InterfaceAddress>,
    /// The kernel's way to each backend's address.
    routes: BTreeMap<IpAddr, Option<Route>>,
    /// The kernel's neighbours, when they were last looked at.
    seen: Neighbours,
    /// What was last written of each backend's way.
    ways: BTreeMap<BackendId, Way>,
    /// What was last told to nftables.
    masqueraded: Option<masquerade::Rules>,
    history: VecDeque<api::Event>,
    listeners: broadcast::Sender<api::Event>,
    /// When an address was last asked for because the program missed it.
    asked: BTreeMap<IpAddr, Instant>,
    started: Instant,
    starter: Starter,
}

/// What has become of an interface of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Attachment {
    /// The index it was attached under; none if it is not attached.
    ifindex: Option<u32>,
    /// How it was asked to be attached.
    asked: Option<XdpMode>,
    /// Where the program runs.
    place: Option<XdpPlace>,
    /// Why it is not attached, or not in the driver.
    note: Option<String>,
}

/// Who has started the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Starter {
    /// `attach`, which reads standard output until [`READY`].
    Attach,
    /// A person or a service manager: they read the log.
    Other,
}

/// Why the loop has ended.
enum End {
    /// A signal: everything stays.
    Signal,
    /// `detach`: everything goes, and this is who waits for it.
    Detach(api::server::Reply<api::Detached>),
}

impl Agent {
    /// Answers, follows and listens until a signal or `detach` comes.
    async fn serve(
        &mut self,
        mut requests: mpsc::Receiver<Request>,
        mut changes: Changes,
        mut events: Events,
    ) -> Result<End> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        let mut gathered = Changed::default();
        let mut looked = Instant::now();
        let mut due = looked + LOOK_AGAIN;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(End::Signal),
                _ = interrupt.recv() => return Ok(End::Signal),
                Some(request) = requests.recv() => {
                    if let Some(end) = self.answer(request).await {
                        return Ok(end);
                    }
                }
                changed = changes.next() => match changed {
                    Ok(changed) => {
                        gathered = merged(gathered, changed);
                        due = due.min(Instant::now() + GATHER);
                    }
                    Err(error) => {
                        warn!("{error:#}");
                        changes = self.network.changes()?;
                        gathered = EVERYTHING;
                    }
                },
                event = events.next() => match event {
                    Ok(event) => self.happened(&event).await,
                    Err(error) => {
                        error!("{error:#}");
                        return Ok(End::Signal);
                    }
                },
                () = sleep_until(due.into()) => {
                    let mut changed = std::mem::take(&mut gathered);
                    // However often neighbours change meanwhile.
                    if looked.elapsed() >= LOOK_AGAIN {
                        changed = EVERYTHING;
                        looked = Instant::now();
                    }
                    if let Err(error) = self.follow(changed).await {
                        warn!("{error:#}");
                    }
                    due = looked + LOOK_AGAIN;
                }
            }
        }
    }

    /// Says what was done: in the log, and to `attach`, which may have stopped reading.
    fn say(&self, line: &str) {
        info!("{line}");
        if self.starter == Starter::Attach {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }

    async fn answer(&mut self, request: Request) -> Option<End> {
        // Whoever asked may be gone: then nobody misses the answer.
        match request {
            Request::Status(reply) => drop(reply.send(self.status().await)),
            Request::Stats(reply) => drop(reply.send(self.stats().await)),
            Request::Flows(filter, reply) => self.list_flows(filter, reply),
            Request::Flush(filter, reply) => self.flush_flows(filter, reply),
            Request::FlowSummary(reply) => self.count_flows(reply),
            Request::Recipe(filter, reply) => drop(reply.send(self.recipes(&filter).await)),
            Request::Config(reply) => drop(reply.send(Ok(self.state.config.clone()))),
            Request::Events(reply) => drop(reply.send(Ok(EventStream {
                past: self.history.iter().cloned().collect(),
                coming: self.listeners.subscribe(),
            }))),
            Request::Edits(edits, reply) => drop(reply.send(self.edit(edits).await)),
            Request::Detach(detach, reply) if detach.interfaces.is_empty() => {
                return Some(End::Detach(reply));
            }
            Request::Detach(detach, reply) => drop(reply.send(self.detach(detach).await)),
        }
        None
    }

    /// Takes in an event of the program.
    async fn happened(&mut self, event: &Event) {
        if event.kind == EventKind::NEIGHBOUR {
            let asked = timeout(Duration::from_secs(1), self.ask(event.destination.ip())).await;
            if let Ok(Err(error)) = asked {
                warn!("{error:#}");
            }
        }
        let event = self.event(event);
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(event.clone());
        // Nobody may be listening.
        let _ = self.listeners.send(event);
    }
}

const EVERYTHING: Changed = Changed {
    links: true,
    neighbours: true,
    addresses: true,
    routes: true,
};

fn merged(a: Changed, b: Changed) -> Changed {
    Changed {
        links: a.links || b.links,
        neighbours: a.neighbours || b.neighbours,
        addresses: a.addresses || b.addresses,
        routes: a.routes || b.routes,
    }
}
