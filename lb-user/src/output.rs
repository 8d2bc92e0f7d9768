//! How what was read is printed for people: tables without frames, for terminals of 80 to 120
//! columns.

mod egress;
mod recipe;

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use crate::api::{
    Backend, Count, Event, Flow, FlowSummary, Interface, ReasonCount, Service, Stats, Status,
};

pub use egress::egress;
pub use recipe::checked;

/// A table with these heads; those that begin with `>` are columns of numbers.
pub(crate) fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(heads.iter().map(|head| head.trim_start_matches('>')));
    for (index, head) in heads.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if head.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

/// A table's text, without spaces at the ends of lines.
pub(crate) fn text(table: &Table) -> String {
    table
        .trim_fmt()
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// A number with its thousands apart: `1 234 567`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut spaced = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            spaced.push(' ');
        }
        spaced.push(digit);
    }
    spaced
}

/// Bytes in the unit that fits: `1.4 GB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

fn dash(text: Option<&str>) -> &str {
    text.unwrap_or("-")
}

/// `status`.
pub fn status(status: &Status) -> String {
    let mut out = format!(
        "agent {:?}, pid {}, version {}, up {}{}\n\n",
        status.instance,
        status.pid,
        status.version,
        humantime::format_duration(std::time::Duration::from_secs(status.uptime_s)),
        status
            .netns
            .as_ref()
            .map(|name| format!(", netns {name}"))
            .unwrap_or_default(),
    );
    out += &interfaces(&status.interfaces);
    for service in &status.services {
        out += &format!(
            "\n{} at {} ({}, {}, {} slots, {} new flows)\n",
            service.name,
            service.places().join(", "),
            service.mode,
            service.algorithm,
            service.slots,
            number(service.new_flows)
        );
        if service.backends.is_empty() {
            out += &format!(
                "no backends: sudo lb-user backend add {} ADDRESS:PORT\n",
                service.name
            );
        } else {
            out += &backends(
                service.backends.iter().map(|b| (service, b)),
                Heads::OneService,
            );
        }
    }
    if !status.egress.is_empty() {
        out += &format!("\n{}", egress(&status.egress));
    }
    if status.services.is_empty() {
        out += "\nno services: sudo lb-user service add 203.0.113.10:80/tcp --name web\n";
    }
    for warning in &status.warnings {
        out += &format!("\nwarning: {warning}\n");
    }
    out
}

fn interfaces(interfaces: &[Interface]) -> String {
    let mut table = table(&["INTERFACE", "MODE", "LINK", "MAC", ">PACKETS", "NOTE"]);
    for interface in interfaces {
        let link = match (interface.ifindex, interface.up) {
            (None, _) => "missing",
            (_, true) => "up",
            (_, false) => "down",
        };
        table.add_row([
            &*interface.name,
            dash(interface.mode.as_deref()),
            link,
            dash(interface.mac.as_deref()),
            &number(interface.packets),
            interface.note.as_deref().unwrap_or(""),
        ]);
    }
    text(&table)
}

/// The interface a backend is reached through, and what outer headers come from.
fn via(backend: &Backend) -> String {
    let interface = dash(backend.interface.as_deref());
    match &backend.outer_source {
        Some(source) => format!("{interface} from {source}"),
        None => interface.to_owned(),
    }
}

/// `service list`.
pub fn services(services: &[Service]) -> String {
    let mut table = table(&[
        "NAME",
        "ADDRESS",
        "MODE",
        "ALGORITHM",
        ">SLOTS",
        ">BACKENDS",
        ">NEW FLOWS",
    ]);
    for service in services {
        table.add_row([
            &*service.name,
            &service.places().join("\n"),
            service.mode.name(),
            service.algorithm.name(),
            &service.slots.to_string(),
            &service.backends.len().to_string(),
            &number(service.new_flows),
        ]);
    }
    text(&table)
}

/// Whether a list of backends names their service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// They are all of one.
    OneService,
    /// Each line names it.
    AllServices,
}

/// `backend list`.
pub fn backends<'a>(
    backends: impl Iterator<Item = (&'a Service, &'a Backend)>,
    heads: Heads,
) -> String {
    let first: &[&str] = match heads {
        Heads::OneService => &[],
        Heads::AllServices => &["SERVICE"],
    };
    let rest = [
        "BACKEND",
        "STATE",
        ">WEIGHT",
        ">SHARE",
        "NEXT HOP",
        "VIA",
        ">NEW FLOWS",
        ">IN",
        ">OUT",
    ];
    let mut table = table(&[first, &rest].concat());
    for (service, backend) in backends {
        let share = match service.slots {
            0 => "-".to_owned(),
            slots => format!(
                "{:.1} %",
                100.0 * f64::from(backend.slots) / f64::from(slots)
            ),
        };
        let name = match heads {
            Heads::OneService => None,
            Heads::AllServices => Some(service.name.clone()),
        };
        table.add_row(
            name.into_iter().chain([
                backend.address.clone(),
                backend.state.name().to_owned(),
                backend.weight.to_string(),
                share,
                backend
                    .mac
                    .clone()
                    .unwrap_or_else(|| "unresolved".to_owned()),
                via(backend),
                number(backend.new_flows),
                bytes(backend.forward.bytes),
                bytes(backend.back.bytes),
            ]),
        );
    }
    text(&table)
}

/// `stats`: sums, or, with an earlier look, rates.
pub fn stats(now: &Stats, before: Option<&Stats>) -> String {
    let rates = Rates::new(now, before);
    let unit = if before.is_some() { "/s" } else { "" };
    let heads = [
        "".to_owned(),
        format!(">PACKETS IN{unit}"),
        format!(">BYTES IN{unit}"),
        format!(">PACKETS OUT{unit}"),
        format!(">BYTES OUT{unit}"),
        format!(">NEW FLOWS{unit}"),
    ];
    let mut table = table(&heads.each_ref().map(|h| &**h));
    for service in &now.services {
        table.add_row(rates.row(
            &service.name,
            &service.name,
            &service.forward,
            &service.back,
            service.new_flows,
        ));
        for backend in &service.backends {
            let key = format!("{} {}", service.name, backend.address);
            let name = format!("  {}", backend.address);
            table.add_row(rates.row(
                &key,
                &name,
                &backend.forward,
                &backend.back,
                backend.new_flows,
            ));
        }
    }
    let mut out = String::new();
    if !now.services.is_empty() {
        out += &text(&table);
        out.push('\n');
    }
    if !now.egress.is_empty() {
        out += &egress::rates(&rates, now, unit);
        out.push('\n');
    }
    out + &reasons_by_interface(now, &rates, unit)
}

fn reasons_by_interface(now: &Stats, rates: &Rates, unit: &str) -> String {
    let heads = [
        "INTERFACE".to_owned(),
        "REASON".to_owned(),
        format!(">PACKETS{unit}"),
        format!(">BYTES{unit}"),
    ];
    let mut table = table(&heads.each_ref().map(|h| &**h));
    for interface in &now.interfaces {
        for (reason, count) in &interface.reasons {
            let key = format!("{} {reason}", interface.name);
            let count = rates.count(&key, count);
            table.add_row([
                &*interface.name,
                reason,
                &number(count.packets),
                &bytes(count.bytes),
            ]);
        }
        if interface.reasons.is_empty() {
            table.add_row([&*interface.name, "(no packet yet)", "0", "0 B"]);
        }
    }
    text(&table)
}

/// What an earlier look has counted, by name.
struct Rates {
    seconds: f64,
    forward: BTreeMap<String, Count>,
    back: BTreeMap<String, Count>,
    flows: BTreeMap<String, u64>,
}

impl Rates {
    fn new(now: &Stats, before: Option<&Stats>) -> Self {
        let mut rates = Self {
            seconds: 1.0,
            forward: BTreeMap::new(),
            back: BTreeMap::new(),
            flows: BTreeMap::new(),
        };
        let Some(before) = before else {
            return rates;
        };
        rates.seconds = now.time_ns.saturating_sub(before.time_ns).max(1) as f64 / 1e9;
        for service in &before.services {
            rates.keep(
                service.name.clone(),
                service.forward,
                service.back,
                service.new_flows,
            );
            for backend in &service.backends {
                let key = format!("{} {}", service.name, backend.address);
                rates.keep(key, backend.forward, backend.back, backend.new_flows);
            }
        }
        for egress in &before.egress {
            rates.keep(
                format!("egress {}", egress.prefix),
                egress.out,
                egress.back,
                egress.connections,
            );
        }
        for interface in &before.interfaces {
            for (reason, &count) in &interface.reasons {
                rates
                    .forward
                    .insert(format!("{} {reason}", interface.name), count);
            }
        }
        rates
    }

    fn keep(&mut self, key: String, forward: Count, back: Count, flows: u64) {
        self.forward.insert(key.clone(), forward);
        self.back.insert(key.clone(), back);
        self.flows.insert(key, flows);
    }

    fn per_second(&self, now: u64, before: u64) -> u64 {
        (now.saturating_sub(before) as f64 / self.seconds).round() as u64
    }

    fn count(&self, key: &str, now: &Count) -> Count {
        let before = self.forward.get(key).copied().unwrap_or_default();
        self.difference(now, before)
    }

    fn difference(&self, now: &Count, before: Count) -> Count {
        Count {
            packets: self.per_second(now.packets, before.packets),
            bytes: self.per_second(now.bytes, before.bytes),
        }
    }

    fn row(&self, key: &str, name: &str, forward: &Count, back: &Count, flows: u64) -> [String; 6] {
        let forward = self.count(key, forward);
        let back = self.difference(back, self.back.get(key).copied().unwrap_or_default());
        let before = self.flows.get(key).copied().unwrap_or_default();
        [
            name.to_owned(),
            number(forward.packets),
            bytes(forward.bytes),
            number(back.packets),
            bytes(back.bytes),
            number(self.per_second(flows, before)),
        ]
    }
}

/// `flows`.
pub fn flows(flows: &[Flow]) -> String {
    let mut table = table(&[
        "SERVICE", "CLIENT", "ADDRESS", "BACKEND", "STATE", "TABLE", ">IDLE",
    ]);
    for flow in flows {
        table.add_row([
            dash(flow.service.as_deref()),
            &std::net::SocketAddr::new(flow.client, flow.client_port).to_string(),
            &flow.address.to_string(),
            dash(flow.backend.as_deref()),
            &flow.state,
            &flow.table,
            &format!("{:.1} s", flow.idle_ms as f64 / 1000.0),
        ]);
    }
    text(&table)
}

/// `flows --summary`.
pub fn flow_summary(summary: &FlowSummary) -> String {
    let mut table = table(&["SERVICE", "BACKEND", ">FLOWS", ">NEW FLOWS"]);
    for count in &summary.services {
        table.add_row([
            &*count.service,
            &count.backend,
            &number(count.flows),
            &number(count.new_flows),
        ]);
    }
    format!(
        "{}\n{} of {} flows, {} of {} new flows\n",
        text(&table),
        number(summary.flows),
        number(u64::from(summary.flows_size)),
        number(summary.new_flows),
        number(u64::from(summary.new_flows_size))
    )
}

/// `reasons`.
pub fn reasons(reasons: &[ReasonCount]) -> String {
    let mut table = table(&["REASON", "FATE", ">PACKETS", "MEANING"]);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_width(110);
    for reason in reasons {
        table.add_row([
            &*reason.name,
            &reason.fate,
            &reason.packets.map_or_else(|| "-".to_owned(), number),
            &reason.explanation,
        ]);
    }
    text(&table)
}

/// A line of `events`.
pub fn event(event: &Event) -> String {
    let mut line = format!(
        "{} {:9} {} -> {} {}",
        event.time, event.kind, event.source, event.destination, event.protocol
    );
    let parts = [
        ("service", &event.service),
        ("backend", &event.backend),
        ("interface", &event.interface),
        ("reason", &event.reason),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            line += &format!(" {name}={value}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(number(0), "0");
        assert_eq!(number(1_234_567), "1 234 567");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_400_000_000), "1.4 GB");
        assert_eq!(bytes(999_999), "1.0 MB");
    }
}
