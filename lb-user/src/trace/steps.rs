//! What was asked and answered, in sentences. A pure function of the runs and the names.

use std::net::SocketAddr;

use lb_common::{
    abi::{
        Address, Algorithm, Backend, BackendId, BackendState, Endpoint, EndpointKey, EventKind,
        Flow, FlowKey, Mode, Neighbour, Port, Role, Service, ServiceId, Ticks,
    },
    datapath::{Began, Stage, Verdict, parse::Parsed},
};

use super::{
    fields::{changes, line, mac, macs, protocol},
    record::{Asked, Run, Runs, record},
    report::{FlowEntry, Names, NextHop, Slot, Step, Trace},
};

/// Says what happens to a packet, and why.
pub fn trace(runs: &Runs, names: &Names) -> Trace {
    let Run { outcome, .. } = &runs.now;
    let told = Telling::new(&runs.now, names).tell();
    let choice = runs.without_entry.as_ref().unwrap_or(&runs.now);
    let slot = Telling::new(choice, names).slot();
    let next = runs
        .next_choice
        .as_ref()
        .map(|run| Telling::new(run, names));
    let runner_up = next.as_ref().and_then(|next| next.slot());
    let interface = names.interface(runs.ifindex);

    let packet = line(&runs.frame);
    let mut steps = vec![step("packet", format!("{packet}, in on {interface}"))];
    steps.extend(told);
    if runs.without_entry.is_some()
        && let Some(slot) = &slot
    {
        steps.push(step("slot", format!("without the entry: {}", cell(slot))));
    }
    if runs.next_choice.is_some() {
        let text = match (&slot, &runner_up) {
            (Some(first), Some(next)) => {
                format!("{} if {} took no new flows", cell(next), first.backend)
            }
            _ => "none: no other backend takes new flows".to_owned(),
        };
        steps.push(step("runner-up", text));
    }

    let out = match outcome.verdict {
        Verdict::Transmit => Some(runs.ifindex),
        Verdict::Redirect(ifindex) => Some(ifindex),
        Verdict::Pass | Verdict::Drop => None,
    };
    let next_hop = out.and_then(|out| next_hop(&runs.now, out, names));
    if let Some(NextHop {
        interface,
        mac,
        from,
    }) = &next_hop
    {
        let knows = match *from {
            "backend" => "from the backend's record, which the agent keeps resolved",
            "flow" => "from the flow's entry: there the client's packets come from",
            _ => "from the kernel's routing and neighbour tables",
        };
        steps.push(step("next hop", format!("{mac} on {interface}, {knows}")));
    }
    let changes = changes(&runs.frame, &outcome.frame);
    for change in &changes {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
        let (before, after) = (value(&change.before), value(&change.after));
        steps.push(step(
            "rewritten",
            format!("{}: {before} -> {after}", change.field),
        ));
    }
    let (verdict, sentence) = verdict(outcome.verdict, &interface, names);
    steps.push(step("verdict", sentence));
    let reason = outcome.reason;
    steps.push(step(
        "reason",
        format!("{}: {}", reason.name(), reason.explanation()),
    ));

    let telling = Telling::new(&runs.now, names);
    let service = telling.service_id();
    Trace {
        number: None,
        interface,
        packet,
        service: service.map(|id| names.service(id)),
        mode: service
            .and_then(|id| telling.service(id))
            .map(|service| mode(service.mode).to_owned()),
        backend: telling.chosen().map(|id| telling.backend_name(id)),
        flow: telling.flow(),
        slot,
        runner_up: runner_up.map(|slot| slot.backend),
        next_hop,
        changes,
        verdict: verdict.to_owned(),
        out: out.map(|out| names.interface(out)),
        fate: reason.fate().name().to_owned(),
        reason: reason.name().to_owned(),
        explanation: reason.explanation().to_owned(),
        steps,
        frame: hex(&runs.frame),
        frame_after: hex(&outcome.frame),
    }
}

/// One run with the names.
struct Telling<'r> {
    run: &'r Run,
    names: &'r Names,
}

impl<'r> Telling<'r> {
    const fn new(run: &'r Run, names: &'r Names) -> Self {
        Self { run, names }
    }

    /// Everything that was asked, in order.
    fn tell(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut slot = None;
        let mut told_service = false;
        let mut is_choosing = false;
        for (place, asked) in self.run.asked.iter().enumerate() {
            let told = match asked {
                Asked::Endpoint(key, found) => self.endpoint(key, found.as_ref()),
                Asked::Service(id, None) => Some(step(
                    "service",
                    format!("the record of {} is missing", self.names.service(*id)),
                )),
                Asked::Service(_, Some(service)) if !told_service => {
                    told_service = true;
                    Some(step("mode", of_service(service)))
                }
                Asked::Service(..) => None,
                Asked::Flow(key, found) => Some(step("flow", self.found(key, found.as_ref()))),
                Asked::Remove(key) => self.forgotten(place, key),
                Asked::Insert(_, flow) => Some(step(
                    "flow",
                    format!("an entry is made in new_flows: {}", flow.state.name()),
                )),
                Asked::Confirm(_) => Some(step(
                    "flow",
                    "the entry moves from new_flows to flows".to_owned(),
                )),
                Asked::Local(_, false) => None,
                Asked::Local(address, true) => Some(step(
                    "address",
                    format!("{} is the load balancer's own address", address.ip()),
                )),
                Asked::Ticket(_, ticket) => {
                    is_choosing = true;
                    Some(step("slot", format!("round-robin ticket {ticket}")))
                }
                Asked::Slot(service, cell, found) => {
                    is_choosing = true;
                    slot = Some((*service, *cell));
                    match found {
                        Some(id) if *id != BackendId::default() => None,
                        _ => {
                            let of = self.service(*service).map_or(0, |service| service.slots);
                            slot = None;
                            Some(step("slot", format!("slot {cell} of {of} is empty")))
                        }
                    }
                }
                Asked::Backend(id, found) => {
                    let place = slot.take();
                    (is_choosing && *id != BackendId::default())
                        .then(|| step("slot", self.tried(*id, found.as_ref(), place)))
                }
                Asked::Forward(_, id, began) => {
                    is_choosing = false;
                    Some(step("backend", self.taken(*id, *began)))
                }
                Asked::Back(_, id) => Some(step(
                    "backend",
                    format!("an answer of {}", self.backend_name(*id)),
                )),
                Asked::Direct(_, None) => None,
                Asked::Direct(_, Some(direct)) => Some(step(
                    "direct",
                    format!(
                        "the client has opened a conversation with the backend itself, last packet \
                         {} ago",
                        self.ago(direct.seen)
                    ),
                )),
                Asked::InsertDirect(_) => Some(step(
                    "direct",
                    "the conversation is remembered, so that the answers pass".to_owned(),
                )),
                Asked::RemoveDirect(_) => None,
                Asked::Route(to, found) => Some(step("route", self.route(to, found.as_ref()))),
                Asked::Report(EventKind::NEIGHBOUR, address) => Some(step(
                    "event",
                    format!("the agent is asked to resolve the way to {}", address.ip()),
                )),
                Asked::Report(..) => None,
            };
            steps.extend(told);
        }
        steps
    }

    /// What an address and port mean.
    fn endpoint(&self, key: &EndpointKey, found: Option<&Endpoint>) -> Option<Step> {
        let at = place(key);
        let service = |endpoint: &Endpoint| self.names.service(endpoint.service);
        let Parsed {
            source,
            destination,
            source_port,
            destination_port,
            ..
        } = &self.run.parsed;
        let is = |address: &Address, port: &Port| (key.address, key.port) == (*address, *port);
        if is(destination, destination_port) {
            let text = match found {
                Some(endpoint) if endpoint.role == Role::SERVICE => {
                    format!("{at} is {}", service(endpoint))
                }
                Some(endpoint) => format!(
                    "{at} is no service, but a backend of {}: asked itself",
                    service(endpoint)
                ),
                None => format!("{at} is no service"),
            };
            return Some(step("service", text));
        }
        if is(source, source_port) {
            let text = match found {
                Some(endpoint) if endpoint.role == Role::BACKEND => {
                    format!("{at} is a backend of {}", service(endpoint))
                }
                _ => format!("{at} is no backend"),
            };
            return Some(step("source", text));
        }
        // The choice is being checked for other services that have the same backend.
        found
            .filter(|endpoint| Some(endpoint.service) != self.service_id())
            .map(|endpoint| {
                step(
                    "shared",
                    format!("{at} is a backend of {}, too", service(endpoint)),
                )
            })
    }

    /// A flow's entry.
    fn found(&self, key: &FlowKey, found: Option<&(Stage, Flow)>) -> String {
        let client = SocketAddr::new(key.client.ip(), key.client_port.number());
        let service = self.names.service(key.service);
        match found {
            None => format!("no entry of {client} with {service}"),
            Some((stage, flow)) => format!(
                "{client} with {service} has an entry in {}: {}, to {}, with {}, made {} ago, last \
                 packet {} ago",
                table(*stage),
                flow.state.name(),
                flow.address.ip(),
                self.backend_name(flow.backend),
                self.ago(flow.made),
                self.ago(flow.seen)
            ),
        }
    }

    /// An entry that was there and is not used.
    fn forgotten(&self, place: usize, key: &FlowKey) -> Option<Step> {
        let before = &self.run.asked[..place];
        let flow = before.iter().rev().find_map(|asked| match asked {
            Asked::Flow(known, found) if known == key => Some(*found),
            _ => None,
        });
        let (_, flow) = flow.flatten()?;
        let why = match (before.last(), self.service(key.service)) {
            (Some(Asked::Backend(_, None)), _) => "its backend is gone".to_owned(),
            (Some(Asked::Backend(_, Some(backend))), _)
                if backend.generation != flow.generation =>
            {
                "its backend was removed and made anew".to_owned()
            }
            (Some(_), Some(service)) if flow.is_expired(self.run.now, &service.timeouts) => {
                let limit = service.timeouts.of(flow.state);
                format!("it was idle for more than {}", seconds(limit))
            }
            (Some(Asked::Backend(_, Some(backend))), _) => format!(
                "its backend is {} and keeps no packet such as this",
                state(backend.state)
            ),
            _ => "it is over".to_owned(),
        };
        Some(step("flow", format!("the entry is forgotten: {why}")))
    }

    /// A backend that was looked at for a new flow.
    fn tried(
        &self,
        id: BackendId,
        found: Option<&Backend>,
        slot: Option<(ServiceId, u32)>,
    ) -> String {
        let place = match slot {
            Some((service, cell)) => {
                let of = self.service(service).map_or(0, |service| service.slots);
                format!("slot {cell} of {of}")
            }
            None => "the service's fallback".to_owned(),
        };
        match found {
            None => format!("{place}: backend {}, which is gone", id.0),
            Some(backend) if backend.state.is_eligible() => {
                format!("{place}: {}", self.backend_name(id))
            }
            Some(backend) => format!(
                "{place}: {}, passed over: {}",
                self.backend_name(id),
                state(backend.state)
            ),
        }
    }

    fn taken(&self, id: BackendId, began: Began) -> String {
        let is = record(self.run, id).map_or("gone", |backend| state(backend.state));
        let why = match began {
            Began::New => "chosen for a new flow",
            Began::Known => "the flow's",
        };
        format!("{}, {is}, {why}", self.backend_name(id))
    }

    fn route(&self, to: &Address, found: Option<&Neighbour>) -> String {
        match found {
            Some(hop) => format!(
                "the kernel's tables lead to {} by {} on {}",
                to.ip(),
                mac(hop.destination),
                self.names.interface(hop.ifindex)
            ),
            None => format!(
                "the kernel's tables lead nowhere: {} has no route, its next hop is not resolved, \
                 or the packet is too long for it",
                to.ip()
            ),
        }
    }

    /// The slot that served: of several tried, the last.
    fn slot(&self) -> Option<Slot> {
        let mut last = None;
        let mut cell = None;
        for asked in &self.run.asked {
            match asked {
                Asked::Slot(service, number, _) => cell = Some((*service, *number)),
                Asked::Backend(id, Some(backend)) => {
                    if backend.state.is_eligible() {
                        last = Some((*id, cell));
                    }
                    cell = None;
                }
                Asked::Backend(_, None) => cell = None,
                Asked::Forward(service, id, Began::New) => {
                    let (eligible, cell) = last?;
                    return (eligible == *id).then(|| Slot {
                        cell: cell.map(|(_, cell)| cell),
                        of: self.service(*service).map_or(0, |service| service.slots),
                        backend: self.backend_name(*id),
                    });
                }
                _ => {}
            }
        }
        None
    }

    /// The entry that the packet is of.
    fn flow(&self) -> Option<FlowEntry> {
        self.run.asked.iter().find_map(|asked| match asked {
            Asked::Flow(_, Some((stage, flow))) => Some(FlowEntry {
                table: table(*stage),
                state: flow.state.name(),
                age_ms: millis(flow.made.age(self.run.now)),
                idle_ms: millis(flow.seen.age(self.run.now)),
            }),
            _ => None,
        })
    }

    fn service(&self, id: ServiceId) -> Option<Service> {
        self.run.asked.iter().find_map(|asked| match asked {
            Asked::Service(known, found) if *known == id => *found,
            _ => None,
        })
    }

    /// The service that the packet is of.
    fn service_id(&self) -> Option<ServiceId> {
        self.run.asked.iter().find_map(|asked| match asked {
            Asked::Endpoint(_, Some(endpoint)) => Some(endpoint.service),
            _ => None,
        })
    }

    /// The backend that the packet goes to or comes from.
    fn chosen(&self) -> Option<BackendId> {
        self.run.asked.iter().find_map(|asked| match asked {
            Asked::Forward(_, id, _) | Asked::Back(_, id) => Some(*id),
            _ => None,
        })
    }

    /// A backend's address and port; its number where the data path did not look at its record.
    fn backend_name(&self, id: BackendId) -> String {
        if let Some(backend) = record(self.run, id) {
            let port = match backend.port.number() {
                0 => self.service(backend.service).map_or(0, |s| s.port.number()),
                port => port,
            };
            return SocketAddr::new(backend.address.ip(), port).to_string();
        }
        // An answer tells by where it comes from.
        let answers = self.run.asked.iter().find_map(|asked| match asked {
            Asked::Endpoint(key, Some(endpoint)) if endpoint.backend == id => Some(*key),
            _ => None,
        });
        match answers {
            Some(key) => SocketAddr::new(key.address.ip(), key.port.number()).to_string(),
            None => format!("backend {}", id.0),
        }
    }

    fn ago(&self, then: Ticks) -> String {
        seconds(then.age(self.run.now))
    }
}

/// Who knew the next hop that the frame is addressed to.
fn next_hop(run: &Run, out: u32, names: &Names) -> Option<NextHop> {
    let (destination, source) = macs(&run.outcome.frame)?;
    let sent = Neighbour {
        ifindex: out,
        destination,
        source,
    };
    let from = run.asked.iter().find_map(|asked| match asked {
        Asked::Route(_, Some(hop)) if *hop == sent => Some("routing-table"),
        Asked::Backend(_, Some(backend)) if backend.neighbour == sent => Some("backend"),
        Asked::Back(..) => Some("flow"),
        _ => None,
    });
    // An answer is counted before the routing table is asked for it.
    let is_routed = run
        .asked
        .iter()
        .any(|asked| matches!(asked, Asked::Route(_, Some(hop)) if *hop == sent));
    Some(NextHop {
        interface: names.interface(out),
        mac: mac(destination),
        from: if is_routed { "routing-table" } else { from? },
    })
}

fn verdict(verdict: Verdict, interface: &str, names: &Names) -> (&'static str, String) {
    match verdict {
        Verdict::Pass => ("pass", "passed to the kernel's stack".to_owned()),
        Verdict::Drop => ("drop", "dropped".to_owned()),
        Verdict::Transmit => (
            "transmit",
            format!("sent out of {interface}, where it came in"),
        ),
        Verdict::Redirect(ifindex) => (
            "redirect",
            format!("sent out of {}", names.interface(ifindex)),
        ),
    }
}

fn of_service(service: &Service) -> String {
    let algorithm = match service.algorithm {
        Algorithm::MAGLEV => "maglev",
        Algorithm::ROUND_ROBIN => "round-robin",
        Algorithm::SOURCE_HASH => "source-hash",
        _ => "an algorithm of another version",
    };
    format!("{}, {algorithm}", mode(service.mode))
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::NAT => "nat",
        Mode::DSR_L2 => "dsr-l2",
        _ => "a mode of another version",
    }
}

const fn state(state: BackendState) -> &'static str {
    match state {
        BackendState::ENABLED => "enabled",
        BackendState::DRAINING => "draining",
        BackendState::DISABLED => "disabled",
        _ => "removed",
    }
}

const fn table(stage: Stage) -> &'static str {
    match stage {
        Stage::Confirmed => "flows",
        Stage::New => "new_flows",
    }
}

fn place(key: &EndpointKey) -> String {
    let at = SocketAddr::new(key.address.ip(), key.port.number());
    format!("{at}/{}", protocol(key.protocol).to_lowercase())
}

fn cell(slot: &Slot) -> String {
    match slot.cell {
        Some(cell) => format!("slot {cell} of {}: {}", slot.of, slot.backend),
        None => format!("the service's fallback: {}", slot.backend),
    }
}

const fn step(step: &'static str, text: String) -> Step {
    Step { step, text }
}

fn seconds(age: Ticks) -> String {
    format!("{:.1} s", age.duration().as_secs_f64())
}

fn millis(age: Ticks) -> u64 {
    u64::try_from(age.duration().as_millis()).unwrap_or(u64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
