//! One run of the data path in sentences, question by question.

use std::net::SocketAddr;

use lb_common::{
    abi::{
        self, Address, Backend, BackendId, BackendState, Endpoint, EndpointKey, EventKind, Flow,
        FlowKey, Fragment, Neighbour, Port, Role, Service, ServiceId, Ticks,
    },
    datapath::{
        Began, Stage,
        parse::{Parsed, Part},
    },
};

use super::{
    fields::{mac, protocol},
    record::{Asked, Run, record},
    report::{FlowEntry, Names, Slot, Step},
};
use crate::config::{Algorithm, Mode, State};

/// One run with the names.
pub(super) struct Telling<'r> {
    run: &'r Run,
    names: &'r Names,
}

impl<'r> Telling<'r> {
    pub(super) const fn new(run: &'r Run, names: &'r Names) -> Self {
        Self { run, names }
    }

    /// Everything that was asked, in order.
    pub(super) fn tell(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut slot = None;
        let mut told_service = false;
        let mut is_choosing = false;
        for (place, asked) in self.run.asked.iter().enumerate() {
            let told = match asked {
                Asked::Endpoint(key, found) => self.endpoint(key, found.as_ref()),
                Asked::Service(id, None) => Some(Step::new(
                    "service",
                    format!("the record of {} is missing", self.names.service(*id)),
                )),
                Asked::Service(_, Some(service)) if !told_service => {
                    told_service = true;
                    Some(Step::new("mode", of_service(service)))
                }
                Asked::Service(..) => None,
                Asked::Flow(key, found) => Some(Step::new("flow", self.found(key, found.as_ref()))),
                Asked::Remove(key) => self.forgotten(place, key),
                Asked::Insert(_, flow) => Some(Step::new(
                    "flow",
                    format!("an entry is made in new_flows: {}", flow.state.name()),
                )),
                Asked::Confirm(_) => Some(Step::new(
                    "flow",
                    "the entry moves from new_flows to flows".to_owned(),
                )),
                Asked::Local(_, false) => None,
                Asked::Local(address, true) => Some(Step::new(
                    "address",
                    format!("{} is the load balancer's own address", address.ip()),
                )),
                Asked::Ticket(_, ticket) => {
                    is_choosing = true;
                    Some(Step::new("slot", format!("round-robin ticket {ticket}")))
                }
                Asked::Slot(service, cell, found) => {
                    is_choosing = true;
                    slot = Some((*service, *cell));
                    match found {
                        Some(id) if *id != BackendId::default() => None,
                        _ => {
                            let of = self.service(*service).map_or(0, |service| service.slots);
                            slot = None;
                            Some(Step::new("slot", format!("slot {cell} of {of} is empty")))
                        }
                    }
                }
                Asked::Backend(id, found) => {
                    let place = slot.take();
                    (is_choosing && *id != BackendId::default())
                        .then(|| Step::new("slot", self.tried(*id, found.as_ref(), place)))
                }
                Asked::Forward(_, id, began) => {
                    is_choosing = false;
                    Some(Step::new("backend", self.taken(*id, *began)))
                }
                Asked::Back(_, id) => Some(Step::new(
                    "backend",
                    format!("an answer of {}", self.backend_name(*id)),
                )),
                Asked::Direct(_, None) => None,
                Asked::Direct(_, Some(direct)) => Some(Step::new(
                    "direct",
                    format!(
                        "the client has opened a conversation with the backend itself, last packet \
                         {} ago",
                        self.ago(direct.seen)
                    ),
                )),
                Asked::InsertDirect(_) => Some(Step::new(
                    "direct",
                    "the conversation is remembered, so that the answers pass".to_owned(),
                )),
                Asked::RemoveDirect(_) => None,
                Asked::Fragment(_, found) => match self.run.parsed.part {
                    Part::Later => Some(Step::new("fragment", self.follows(found.as_ref()))),
                    Part::First | Part::Whole => None,
                },
                Asked::InsertFragment(_) => Some(Step::new(
                    "fragment",
                    "noted, so that the datagram's other fragments follow".to_owned(),
                )),
                Asked::RemoveFragment(_) => None,
                Asked::Answered(..) => None,
                Asked::Route(to, found) => Some(Step::new("route", self.route(to, found.as_ref()))),
                Asked::Report(EventKind::NEIGHBOUR, address) => Some(Step::new(
                    "event",
                    format!("the agent is asked to resolve the way to {}", address.ip()),
                )),
                Asked::Report(..) => None,
            };
            steps.extend(told);
        }
        steps
    }

    /// What a later fragment's first has left.
    fn follows(&self, found: Option<&Fragment>) -> String {
        match found {
            None => "no first fragment of this datagram was sent on".to_owned(),
            Some(first) => format!(
                "the first fragment was sent on {} ago, {} {}",
                self.ago(first.seen),
                match first.address == Address::default() {
                    true => "to",
                    false => "from",
                },
                self.backend_name(first.backend)
            ),
        }
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
            return Some(Step::new("service", text));
        }
        if is(source, source_port) {
            let text = match found {
                Some(endpoint) if endpoint.role == Role::BACKEND => {
                    format!("{at} is a backend of {}", service(endpoint))
                }
                _ => format!("{at} is no backend"),
            };
            return Some(Step::new("source", text));
        }
        // The choice is being checked for other services that have the same backend.
        found
            .filter(|endpoint| Some(endpoint.service) != self.service_id())
            .map(|endpoint| {
                Step::new(
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
        Some(Step::new("flow", format!("the entry is forgotten: {why}")))
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
    pub(super) fn slot(&self) -> Option<Slot> {
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
    pub(super) fn flow(&self) -> Option<FlowEntry> {
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

    pub(super) fn service(&self, id: ServiceId) -> Option<Service> {
        self.run.asked.iter().find_map(|asked| match asked {
            Asked::Service(known, found) if *known == id => *found,
            _ => None,
        })
    }

    /// The service that the packet is of.
    pub(super) fn service_id(&self) -> Option<ServiceId> {
        self.run.asked.iter().find_map(|asked| match asked {
            Asked::Endpoint(_, Some(endpoint)) => Some(endpoint.service),
            _ => None,
        })
    }

    /// The backend that the packet goes to or comes from.
    pub(super) fn chosen(&self) -> Option<BackendId> {
        self.run.asked.iter().find_map(|asked| match asked {
            Asked::Forward(_, id, _) | Asked::Back(_, id) => Some(*id),
            _ => None,
        })
    }

    /// A backend's address and port; its number where the data path did not look at its record.
    pub(super) fn backend_name(&self, id: BackendId) -> String {
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

fn of_service(service: &Service) -> String {
    let algorithm = Algorithm::ALL
        .iter()
        .find(|word| word.abi() == service.algorithm)
        .map_or("an algorithm of another version", |word| word.name());
    format!("{}, {algorithm}", mode(service.mode))
}

/// A mode's name.
pub(super) fn mode(mode: abi::Mode) -> &'static str {
    let word = Mode::ALL.iter().find(|word| word.abi() == mode);
    word.map_or("a mode of another version", |word| word.name())
}

fn state(state: BackendState) -> &'static str {
    let word = State::ALL.iter().find(|word| word.abi() == state);
    word.map_or("removed", |word| word.name())
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

/// A slot and the backend in it.
pub(super) fn cell(slot: &Slot) -> String {
    match slot.cell {
        Some(cell) => format!("slot {cell} of {}: {}", slot.of, slot.backend),
        None => format!("the service's fallback: {}", slot.backend),
    }
}

fn seconds(age: Ticks) -> String {
    format!("{:.1} s", age.duration().as_secs_f64())
}

fn millis(age: Ticks) -> u64 {
    u64::try_from(age.duration().as_millis()).unwrap_or(u64::MAX)
}
