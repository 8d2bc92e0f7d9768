//! What the agent tells: state, counters, flows and events, in the API's words.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
    process,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use lb_common::abi::{
    self, BackendId, InterfaceCounters, Mac, Neighbour, Reason, ServiceId, Timeouts,
};
use nix::time::{ClockId, clock_gettime};

use super::Agent;
use crate::{
    api::{
        Backend, Count, Event, Flow, FlowCount, FlowFilter, FlowSummary, Flushed, Interface,
        Service, Stats, Status, server::Reply,
    },
    config,
    kernel::{FlowEntry, FlowTables, Table, clock},
    network::Link,
};

impl Agent {
    pub(super) async fn status(&self) -> Result<Status> {
        Ok(Status {
            instance: self.instance.name().to_owned(),
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            netns: self.state.netns.clone(),
            interfaces: self.interfaces()?,
            services: self.services()?,
            egress: self.egress().await,
            warnings: self.config.warnings.clone(),
        })
    }

    pub(super) async fn stats(&self) -> Result<Stats> {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        Ok(Stats {
            time_ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            interfaces: self.interfaces()?,
            services: self.services()?,
            egress: self.egress().await,
        })
    }

    fn interfaces(&self) -> Result<Vec<Interface>> {
        let counters = self.kernel.interface_counters()?;
        let described = self.config.interfaces.iter().map(|interface| {
            let link = self.links.iter().find(|link| link.name == interface.name);
            let attachment = self.attachments.get(&interface.name);
            let counted = link.and_then(|link| counters.get(&link.index));
            let reasons = counted.map(reasons).unwrap_or_default();
            Interface {
                name: interface.name.clone(),
                ifindex: link.map(|link| link.index),
                mode: attachment
                    .and_then(|a| a.place)
                    .map(|place| place.name().to_owned()),
                mac: link.and_then(|link| link.mac).map(mac),
                mtu: link.map(|link| link.mtu),
                up: link.is_some_and(|link| link.up),
                note: attachment.and_then(|a| a.note.clone()),
                packets: reasons.values().map(|count| count.packets).sum(),
                reasons,
            }
        });
        Ok(described.collect())
    }

    fn services(&self) -> Result<Vec<Service>> {
        self.config
            .services
            .iter()
            .map(|service| self.service(service))
            .collect()
    }

    fn service(&self, service: &config::Service) -> Result<Service> {
        let id = self.state.ids.service(&service.name).unwrap_or_default();
        let traffic = self.kernel.service_counters(id)?;
        let backends = service.backends.iter().map(|backend| {
            let backend_id = self.state.ids.backend(&service.name, backend.address);
            self.backend(id, service.mode, backend_id.unwrap_or_default(), backend)
        });
        Ok(Service {
            name: service.name.clone(),
            addresses: service.addresses.clone(),
            port: service.port,
            protocol: service.protocol,
            mode: service.mode,
            algorithm: service.algorithm,
            slots: self.tables.services.get(&id).map_or(0, |s| s.slots),
            new_flows: traffic.new_flows,
            forward: traffic.forward.into(),
            back: traffic.back.into(),
            backends: backends.collect::<Result<_>>()?,
        })
    }

    fn backend(
        &self,
        service: ServiceId,
        mode: config::Mode,
        id: BackendId,
        backend: &config::Backend,
    ) -> Result<Backend> {
        let traffic = self.kernel.backend_counters(id)?;
        let way = self.ways.get(&id).copied().unwrap_or_default();
        let neighbour = Some(way.neighbour).filter(Neighbour::is_resolved);
        let source = mode.is_tunnel().then(|| way.source.ip());
        let interface = neighbour.and_then(|n| self.link(n.ifindex));
        Ok(Backend {
            address: backend.address.to_string(),
            state: backend.state,
            weight: backend.weight,
            slots: self
                .shares
                .get(&service)
                .and_then(|cells| cells.get(&id))
                .copied()
                .unwrap_or_default(),
            resolved: neighbour.is_some(),
            mac: neighbour.map(|n| mac(n.destination)),
            interface: interface.map(|link| link.name.clone()),
            outer_source: source
                .filter(|source| !source.is_unspecified())
                .map(|source| self.config.tunnel.named(source)),
            mtu: Some(way.mtu).filter(|mtu| *mtu != 0),
            new_flows: traffic.new_flows,
            forward: traffic.forward.into(),
            back: traffic.back.into(),
        })
    }

    fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == ifindex)
    }

    fn names(&self) -> Names {
        let mut names = Names::default();
        for service in &self.config.services {
            let Some(id) = self.state.ids.service(&service.name) else {
                continue;
            };
            names
                .services
                .insert(id, (service.name.clone(), service.timeouts.abi()));
            for backend in &service.backends {
                if let Some(id) = self.state.ids.backend(&service.name, backend.address) {
                    names.backends.insert(id, backend.address);
                }
            }
        }
        names
    }

    /// Lists flows on another thread: there may be millions.
    pub(super) fn list_flows(&self, filter: FlowFilter, reply: Reply<Vec<Flow>>) {
        let names = self.names();
        let checked = names.checked(filter);
        self.read_flows(reply, move |tables| {
            let filter = checked?;
            let now = clock();
            let mut flows = Vec::new();
            tables.each(|entry| {
                if flows.len() >= filter.limit {
                    return ControlFlow::Break(());
                }
                if names.is_alive(&entry, now) && filter.lets_through(&entry) {
                    flows.push(names.flow(&entry, now));
                }
                ControlFlow::Continue(())
            })?;
            Ok(flows)
        });
    }

    /// Deletes flows on another thread.
    pub(super) fn flush_flows(&self, filter: FlowFilter, reply: Reply<Flushed>) {
        let checked = self.names().checked(filter);
        self.read_flows(reply, move |tables| {
            let filter = checked?;
            ensure!(
                filter.names_something(),
                "all flows would be flushed: name a service, a backend or a client"
            );
            let mut chosen = Vec::new();
            tables.each(|entry| {
                if filter.lets_through(&entry) {
                    chosen.push((entry.table, entry.key));
                }
                ControlFlow::Continue(())
            })?;
            let flows = tables.delete(&chosen)?;
            Ok(Flushed { flows })
        });
    }

    /// Counts flows on another thread.
    pub(super) fn count_flows(&self, reply: Reply<FlowSummary>) {
        let names = self.names();
        let sizes = self.sizes.clone();
        self.read_flows(reply, move |tables| {
            let now = clock();
            let mut counts: BTreeMap<(ServiceId, BackendId), (u64, u64)> = BTreeMap::new();
            tables.each(|entry| {
                if names.is_alive(&entry, now) {
                    let key = (entry.key.service, entry.flow.backend);
                    let count = counts.entry(key).or_default();
                    match entry.table {
                        Table::Confirmed => count.0 += 1,
                        Table::New => count.1 += 1,
                    }
                }
                ControlFlow::Continue(())
            })?;
            let services = counts.iter().map(|(&(service, backend), count)| FlowCount {
                service: names.service(service).unwrap_or_else(|| "(removed)".into()),
                backend: names.backend(backend).unwrap_or_else(|| "(removed)".into()),
                flows: count.0,
                new_flows: count.1,
            });
            Ok(FlowSummary {
                flows: counts.values().map(|count| count.0).sum(),
                flows_size: sizes.flows,
                new_flows: counts.values().map(|count| count.1).sum(),
                new_flows_size: sizes.new_flows,
                services: services.collect(),
            })
        });
    }

    fn read_flows<T: Send + 'static>(
        &self,
        reply: Reply<T>,
        read: impl FnOnce(&FlowTables) -> Result<T> + Send + 'static,
    ) {
        match self.kernel.flow_tables() {
            Err(error) => drop(reply.send(Err(error))),
            Ok(tables) => {
                tokio::task::spawn_blocking(move || drop(reply.send(read(&tables))));
            }
        }
    }

    /// An event in the API's words.
    pub(super) fn event(&self, event: &abi::Event) -> Event {
        let names = self.names();
        let is_neighbour = event.kind == abi::EventKind::NEIGHBOUR;
        let place = |address: abi::Address, port: abi::Port| match port.number() {
            0 => address.ip().to_string(),
            port => SocketAddr::new(address.ip(), port).to_string(),
        };
        let destination = if is_neighbour {
            event.destination.ip().to_string()
        } else {
            place(event.destination, event.destination_port)
        };
        Event {
            time: time_of(event.time),
            kind: event.kind.name().to_owned(),
            reason: event.reason().map(|reason| reason.name().to_owned()),
            source: place(event.source, event.source_port),
            destination,
            protocol: match event.protocol {
                6 => "tcp".to_owned(),
                17 => "udp".to_owned(),
                number => number.to_string(),
            },
            service: names.service(event.service),
            backend: names.backend(event.backend),
            interface: self.link(event.ifindex).map(|link| link.name.clone()),
        }
    }
}

/// Ids in words.
#[derive(Default)]
struct Names {
    services: BTreeMap<ServiceId, (String, Timeouts)>,
    backends: BTreeMap<BackendId, SocketAddr>,
}

/// A [`FlowFilter`] in ids.
struct Filter {
    service: Option<ServiceId>,
    backends: Option<Vec<BackendId>>,
    client: Option<IpAddr>,
    limit: usize,
}

impl Filter {
    /// Whether it keeps anything back besides what is beyond the limit.
    fn names_something(&self) -> bool {
        self.service.is_some() || self.backends.is_some() || self.client.is_some()
    }

    fn lets_through(&self, entry: &FlowEntry) -> bool {
        let Self {
            service,
            backends,
            client,
            limit: _,
        } = self;
        service.is_none_or(|id| id == entry.key.service)
            && backends
                .as_ref()
                .is_none_or(|ids| ids.contains(&entry.flow.backend))
            && client.is_none_or(|client| client == entry.key.client.ip())
    }
}

impl Names {
    fn service(&self, id: ServiceId) -> Option<String> {
        self.services.get(&id).map(|(name, _)| name.clone())
    }

    fn backend(&self, id: BackendId) -> Option<String> {
        self.backends.get(&id).map(SocketAddr::to_string)
    }

    /// A filter for names that there are.
    fn checked(&self, filter: FlowFilter) -> Result<Filter> {
        let FlowFilter {
            service,
            backend,
            client,
            limit,
        } = filter;
        let service = service
            .map(|name| {
                let found = self.services.iter().find(|(_, (known, _))| *known == name);
                found
                    .map(|(&id, _)| id)
                    .ok_or_else(|| config::Error::NoService {
                        name,
                        known: self.services.values().map(|(n, _)| n.clone()).collect(),
                    })
            })
            .transpose()?;
        let backends = backend
            .map(|text| {
                let ip: Option<IpAddr> = text.trim_matches(['[', ']']).parse().ok();
                let ids: Vec<BackendId> = self
                    .backends
                    .iter()
                    .filter(|(_, address)| address.to_string() == text || Some(address.ip()) == ip)
                    .map(|(&id, _)| id)
                    .collect();
                ensure!(
                    !ids.is_empty(),
                    "there is no backend {text:?}: see lb-user backend list"
                );
                Ok(ids)
            })
            .transpose()?;
        Ok(Filter {
            service,
            backends,
            client,
            limit: limit.unwrap_or(usize::MAX),
        })
    }

    /// Whether the flow has not expired. Those of removed services have.
    fn is_alive(&self, entry: &FlowEntry, now: abi::Ticks) -> bool {
        self.services
            .get(&entry.key.service)
            .is_some_and(|(_, timeouts)| !entry.flow.is_expired(now, timeouts))
    }

    fn flow(&self, entry: &FlowEntry, now: abi::Ticks) -> Flow {
        let FlowEntry { table, key, flow } = entry;
        Flow {
            service: self.service(key.service),
            client: key.client.ip(),
            client_port: key.client_port.number(),
            address: flow.address.ip(),
            backend: self.backend(flow.backend),
            state: flow.state.name().to_owned(),
            table: match table {
                Table::Confirmed => "flows",
                Table::New => "new_flows",
            }
            .to_owned(),
            idle_ms: u64::try_from(flow.seen.age(now).duration().as_millis()).unwrap_or(u64::MAX),
            confirmed: *table == Table::Confirmed,
        }
    }
}

fn reasons(counters: &InterfaceCounters) -> BTreeMap<String, Count> {
    Reason::ALL
        .iter()
        .map(|&reason| (reason, counters.reasons[reason as usize]))
        .filter(|(_, counter)| counter.packets > 0)
        .map(|(reason, counter)| (reason.name().to_owned(), counter.into()))
        .collect()
}

fn mac(Mac(bytes): Mac) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// The time of day of a moment on the coarse monotonic clock.
fn time_of(nanos: u64) -> String {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from);
    let age = now.saturating_sub(Duration::from_nanos(nanos));
    let time = SystemTime::now().checked_sub(age);
    humantime::format_rfc3339_millis(time.unwrap_or_else(SystemTime::now)).to_string()
}
