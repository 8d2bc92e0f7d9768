//! A trace as it is printed: the packet's steps for people, and the same in fields for programs.

use std::collections::BTreeMap;

use lb_common::abi::ServiceId;
use serde::Serialize;

use super::fields::Change;
use crate::output;

/// Ids in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Names of services; without one a service is printed by its number.
    pub services: BTreeMap<ServiceId, String>,
    /// Names of interfaces by index.
    pub interfaces: BTreeMap<u32, String>,
}

impl Names {
    /// A service's name, or its number.
    pub fn service(&self, id: ServiceId) -> String {
        match self.services.get(&id) {
            Some(name) => name.clone(),
            None => format!("service {}", id.0),
        }
    }

    /// An interface's name, or its number.
    pub fn interface(&self, index: u32) -> String {
        match self.interfaces.get(&index) {
            Some(name) => name.clone(),
            None => format!("interface {index}"),
        }
    }
}

/// What the data path would do with a packet, and why. `-o json` prints it, so it is stable: fields
/// are added, never renamed or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Which packet of a capture, counted from 1; null for a packet of the command line.
    pub number: Option<u64>,
    /// The interface that it comes in on.
    pub interface: String,
    /// The packet in one line.
    pub packet: String,
    /// The service, if it is one's.
    pub service: Option<String>,
    /// That service's mode.
    pub mode: Option<String>,
    /// The backend that it goes to or comes from.
    pub backend: Option<String>,
    /// The flow's entry, if there is one.
    pub flow: Option<FlowEntry>,
    /// Where the algorithm puts the flow: of a known one, where it would be without its entry.
    pub slot: Option<Slot>,
    /// The backend that the flow would have if the one of `slot` took no new flows.
    pub runner_up: Option<String>,
    /// Where the frame is sent.
    pub next_hop: Option<NextHop>,
    /// What is rewritten.
    pub changes: Vec<Change>,
    /// `pass`, `drop`, `transmit` (out of the interface it came in on) or `redirect`.
    pub verdict: String,
    /// The interface that it leaves through.
    pub out: Option<String>,
    /// `passed`, `forwarded` or `dropped`.
    pub fate: String,
    /// The reason's name.
    pub reason: String,
    /// What the reason means and what can be done.
    pub explanation: String,
    /// All of this in sentences, in the order in which it is decided.
    pub steps: Vec<Step>,
    /// The frame as it comes in, in hexadecimal digits.
    pub frame: String,
    /// The frame afterwards.
    pub frame_after: String,
}

/// A step of the data path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What is looked at.
    pub step: &'static str,
    /// What was found or done.
    pub text: String,
}

impl Step {
    /// A step and its sentence.
    pub(super) const fn new(step: &'static str, text: String) -> Self {
        Self { step, text }
    }
}

/// A flow's entry, as it was before the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowEntry {
    /// `flows` or `new_flows`.
    pub table: &'static str,
    /// `half-open`, `established`, `closing` or `udp`.
    pub state: &'static str,
    /// Milliseconds since it was made.
    pub age_ms: u64,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
}

/// A cell of a service's lookup table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Its number; null if no slot held an eligible backend and the service's fallback serves.
    pub cell: Option<u32>,
    /// Cells that the table has.
    pub of: u32,
    /// The backend in it.
    pub backend: String,
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHop {
    /// The interface it is reached through.
    pub interface: String,
    /// Its MAC address.
    pub mac: String,
    /// Who knows: `backend` (the backend's record, kept by the agent), `flow` (the flow's entry:
    /// the neighbour that the client's packets come from) or `routing-table` (the kernel's).
    pub from: &'static str,
}

impl Trace {
    /// The steps as a table.
    pub fn table(&self) -> String {
        let mut table = output::table(&["STEP", "WHAT"]);
        table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
        table.set_width(110);
        let mut before = "";
        for Step { step, text } in &self.steps {
            let head = if *step == before { "" } else { *step };
            table.add_row([head, text]);
            before = step;
        }
        output::text(&table)
    }

    /// The packet and what becomes of it, in one line.
    pub fn line(&self) -> String {
        let number = self.number.map(|n| format!("{n:>5}  ")).unwrap_or_default();
        let mut line = format!("{number}{}: {}", self.packet, self.reason);
        if let Some(backend) = &self.backend {
            line += &format!(", {backend}");
        }
        if let Some(out) = &self.out {
            line += &format!(", out of {out}");
        }
        line + "\n"
    }
}
