//! What was asked and answered, in sentences. A pure function of the runs and the names.

use lb_common::{abi::Neighbour, datapath::Verdict};

use super::{
    fields::{Change, changes, line, mac, macs},
    record::{Asked, Run, Runs},
    report::{Names, NextHop, Step, Trace},
    telling::{Telling, cell, mode},
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
    let mut steps = vec![Step::new("packet", format!("{packet}, in on {interface}"))];
    steps.extend(told);
    if runs.without_entry.is_some()
        && let Some(slot) = &slot
    {
        steps.push(Step::new(
            "slot",
            format!("without the entry: {}", cell(slot)),
        ));
    }
    if runs.next_choice.is_some() {
        let text = match (&slot, &runner_up) {
            (Some(first), Some(next)) => {
                format!("{} if {} took no new flows", cell(next), first.backend)
            }
            _ => "none: no other backend takes new flows".to_owned(),
        };
        steps.push(Step::new("runner-up", text));
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
        steps.push(Step::new(
            "next hop",
            format!("{mac} on {interface}, {knows}"),
        ));
    }
    let changes = changes(&runs.frame, &outcome.frame);
    for Change {
        field,
        before,
        after,
    } in &changes
    {
        let text = match (before, after) {
            (Some(before), Some(after)) => format!("{field}: {before} -> {after}"),
            (None, Some(after)) => format!("{field}: {after}, put in front"),
            (Some(before), None) => format!("{field}: {before}, taken away"),
            (None, None) => continue,
        };
        steps.push(Step::new("rewritten", text));
    }
    let (verdict, sentence) = verdict(outcome.verdict, &interface, names);
    steps.push(Step::new("verdict", sentence));
    let reason = outcome.reason;
    steps.push(Step::new(
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
