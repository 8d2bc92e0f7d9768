//! How far a flow has come: what its packets say about the TCP state, and when an entry has shown
//! that it is no part of a flood and moves to the large table.
//!
//! `nat` sees both directions. A TCP flow is confirmed when the client acknowledges the backend's
//! SYN-ACK (which a forged source never sees) or when the backend sends anything but SYN and RST
//! on it; a UDP flow when the client goes on after an answer. DSR sees the client only: confirmed
//! when it goes on a second after the first packet.

use crate::{
    abi::{Flow, FlowState, Neighbour, Ticks},
    datapath::{Stage, parse::Parsed, rewrite::Mode},
    wire::{
        ip,
        l4::{ACK, FIN, RST, SYN},
    },
};

/// An entry younger than this is not written again for its age alone: about 1/8 s.
const RESOLUTION: u32 = Ticks::PER_SECOND / 8;

/// The state in which a flow begins with this packet.
#[inline(always)]
pub fn begin(parsed: &Parsed) -> FlowState {
    match parsed.protocol {
        ip::UDP => FlowState::UDP,
        _ if parsed.flags & RST != 0 => FlowState::CLOSING,
        _ => FlowState::HALF_OPEN,
    }
}

/// Whether this packet asks for a new connection.
#[inline(always)]
pub fn opens(parsed: &Parsed) -> bool {
    parsed.protocol == ip::TCP && parsed.flags & (SYN | ACK) == SYN
}

/// Notes a client's packet. Returns whether the entry is confirmed by it.
#[inline(always)]
pub fn from_client(
    flow: &mut Flow,
    stage: Stage,
    mode: Mode,
    parsed: &Parsed,
    from: &Neighbour,
    now: Ticks,
) -> bool {
    seen(flow, now);
    if flow.neighbour != *from {
        flow.neighbour = *from;
    }
    if flow.address != parsed.destination {
        flow.address = parsed.destination;
    }
    if opens(parsed) {
        // A new connection between the same ports, or the first SYN again.
        flow.state = FlowState::HALF_OPEN;
        flow.flags = 0;
        return false;
    }
    let confirmed = stage == Stage::New
        && match mode {
            Mode::Nat if parsed.protocol == ip::TCP => {
                flow.flags & Flow::ANSWERED != 0
                    && parsed.flags & (ACK | RST) == ACK
                    && parsed.acknowledgement == flow.awaited
            }
            Mode::Nat => flow.flags & Flow::ANSWERED != 0,
            Mode::DsrL2 | Mode::DsrIpip | Mode::DsrGue => {
                parsed.flags & RST == 0 && flow.made.age(now).0 >= Ticks::PER_SECOND
            }
        };
    if parsed.protocol == ip::TCP {
        if parsed.flags & FIN != 0 {
            flow.flags |= Flow::CLIENT_FIN;
        }
        let established = confirmed || stage == Stage::Confirmed;
        let both = match mode.sees_answers() {
            true => Flow::CLIENT_FIN | Flow::BACKEND_FIN,
            false => Flow::CLIENT_FIN,
        };
        settle(flow, parsed, both, established);
    }
    confirmed
}

/// Notes a backend's answer (`nat`). Returns whether the entry is confirmed by it.
#[inline(always)]
pub fn from_backend(flow: &mut Flow, stage: Stage, parsed: &Parsed, now: Ticks) -> bool {
    seen(flow, now);
    if flow.flags & Flow::ANSWERED == 0 {
        flow.flags |= Flow::ANSWERED;
    }
    if parsed.protocol != ip::TCP {
        return false;
    }
    if parsed.flags & SYN != 0 {
        flow.awaited = u32::from_be_bytes(parsed.sequence)
            .wrapping_add(1)
            .to_be_bytes();
        return false;
    }
    if parsed.flags & FIN != 0 {
        flow.flags |= Flow::BACKEND_FIN;
    }
    let confirmed = stage == Stage::New && parsed.flags & RST == 0;
    let established = confirmed || stage == Stage::Confirmed;
    settle(
        flow,
        parsed,
        Flow::CLIENT_FIN | Flow::BACKEND_FIN,
        established,
    );
    confirmed
}

/// Sets a TCP flow's state after a packet other than a SYN. RST closes for as long as nothing else
/// follows it, FIN from all sides that are seen closes for good.
#[inline(always)]
fn settle(flow: &mut Flow, parsed: &Parsed, fins: u8, established: bool) {
    let state = if parsed.flags & RST != 0 || flow.flags & fins == fins {
        FlowState::CLOSING
    } else if established {
        FlowState::ESTABLISHED
    } else {
        flow.state
    };
    if flow.state != state {
        flow.state = state;
    }
}

#[inline(always)]
fn seen(flow: &mut Flow, now: Ticks) {
    if flow.seen.age(now).0 >= RESOLUTION {
        flow.seen = now;
    }
}
