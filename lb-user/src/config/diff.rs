//! The difference of two configurations, in words.

use super::{Backend, Config, Service, Source, Tunnel};

/// What changes from `old` to `new`: a line each, `+` for what comes, `-` for what goes and `~`
/// for what becomes different.
pub fn differences(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for interface in &new.interfaces {
        match old.interfaces.iter().find(|i| i.name == interface.name) {
            None => lines.push(format!("+ interface {}", interface.name)),
            Some(known) if known != interface => lines.push(format!(
                "~ interface {}: XDP mode {} -> {}",
                interface.name, known.xdp_mode, interface.xdp_mode
            )),
            Some(_) => {}
        }
    }
    for interface in &old.interfaces {
        if !new.interfaces.iter().any(|i| i.name == interface.name) {
            lines.push(format!("- interface {}", interface.name));
        }
    }
    if old.sizes != new.sizes {
        lines.push("~ sizes: take effect when the agent is started again".to_owned());
    }
    if old.events != new.events {
        lines.push(format!(
            "~ events: new flows {}, drops {}",
            new.events.new_flows, new.events.drops
        ));
    }
    egress(old, new, &mut lines);
    if old.tunnel != new.tunnel {
        let of = |source: Source| match source {
            Source::Route => "by route".to_owned(),
            Source::Address(address) => address.to_string(),
            Source::Prefix(network, length) => format!("{network}/{length}"),
        };
        let Tunnel { v4, v6, gue_port } = new.tunnel;
        lines.push(format!(
            "~ tunnel: source IPv4 {}, IPv6 {}, GUE port {gue_port}",
            of(v4),
            of(v6)
        ));
    }
    for service in &new.services {
        match old.service(&service.name) {
            Some(known) => changed(known, service, &mut lines),
            None => {
                lines.push(format!(
                    "+ service {} at {} ({}, {})",
                    service.name,
                    places(service),
                    service.mode,
                    service.algorithm
                ));
                lines.extend(service.backends.iter().map(|b| added(b, service)));
            }
        }
    }
    for service in &old.services {
        if new.service(&service.name).is_none() {
            lines.push(format!("- service {} at {}", service.name, places(service)));
        }
    }
    lines
}

fn egress(old: &Config, new: &Config, lines: &mut Vec<String>) {
    let known =
        |config: &Config, prefix| config.egress.iter().find(|e| e.prefix == prefix).cloned();
    for egress in &new.egress {
        match known(old, egress.prefix) {
            None => lines.push(format!("+ egress {egress}")),
            Some(known) if known != *egress => lines.push(format!(
                "~ egress {}: out of {} -> {}",
                egress.prefix,
                known.way(),
                egress.way()
            )),
            Some(_) => {}
        }
    }
    for egress in &old.egress {
        if known(new, egress.prefix).is_none() {
            lines.push(format!("- egress {egress}"));
        }
    }
}

fn places(service: &Service) -> String {
    service.places().join(", ")
}

fn added(backend: &Backend, service: &Service) -> String {
    let state = match backend.state {
        super::State::Enabled => String::new(),
        state => format!(", {state}"),
    };
    format!(
        "+ backend {} to {} (weight {}{state})",
        backend.address, service.name, backend.weight
    )
}

fn changed(old: &Service, new: &Service, lines: &mut Vec<String>) {
    let mut parts = Vec::new();
    let mut part = |what: &str, old: String, new: String| {
        if old != new {
            parts.push(format!("{what} {old} -> {new}"));
        }
    };
    part("address", places(old), places(new));
    part("mode", old.mode.to_string(), new.mode.to_string());
    let algorithms = (old.algorithm.to_string(), new.algorithm.to_string());
    part("algorithm", algorithms.0, algorithms.1);
    part("slots", old.slots.to_string(), new.slots.to_string());
    if old.placement != new.placement {
        parts.push(match new.placement {
            super::Placement::Agent => "address put on the interfaces".to_owned(),
            super::Placement::Others => "address left alone".to_owned(),
        });
    }
    if old.timeouts != new.timeouts {
        parts.push("timeouts".to_owned());
    }
    if !parts.is_empty() {
        lines.push(format!("~ service {}: {}", new.name, parts.join(", ")));
    }
    for backend in &new.backends {
        match old.backends.iter().find(|b| b.address == backend.address) {
            None => lines.push(added(backend, new)),
            Some(known) => {
                let mut parts = Vec::new();
                if known.weight != backend.weight {
                    parts.push(format!("weight {} -> {}", known.weight, backend.weight));
                }
                if known.state != backend.state {
                    parts.push(format!("{} -> {}", known.state, backend.state));
                }
                if !parts.is_empty() {
                    let parts = parts.join(", ");
                    lines.push(format!(
                        "~ backend {} of {}: {parts}",
                        backend.address, new.name
                    ));
                }
            }
        }
    }
    for backend in &old.backends {
        if !new.backends.iter().any(|b| b.address == backend.address) {
            lines.push(format!("- backend {} from {}", backend.address, new.name));
        }
    }
}
