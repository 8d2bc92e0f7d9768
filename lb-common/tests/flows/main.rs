//! What the load balancer remembers of a flow, and for how long: who keeps its backend, when an
//! entry is confirmed, when it is forgotten.

mod answers;
mod backends;
mod states;
mod told;

use std::net::SocketAddr;

use lb_common::{
    abi::{Algorithm, FlowState, Mode, Reason, ServiceId},
    datapath::Stage,
    host::{
        Balancer, Outcome,
        frame::{Frame, describe},
        world::{BACKENDS, CLIENTS_MAC, ROUTER_MAC, ServiceSpec, World, at, neighbour},
    },
    wire::{
        ip::{TCP, UDP},
        l4::{ACK, SYN},
    },
};

const WEB: ServiceId = ServiceId(1);
const DNS: ServiceId = ServiceId(2);
const L2: ServiceId = ServiceId(3);

const NEW: Option<(Stage, FlowState)> = Some((Stage::New, FlowState::HALF_OPEN));
const ESTABLISHED: Option<(Stage, FlowState)> = Some((Stage::Confirmed, FlowState::ESTABLISHED));
const CLOSING: Option<(Stage, FlowState)> = Some((Stage::Confirmed, FlowState::CLOSING));

/// `nat` TCP with backends 1–3, `nat` UDP with 4–6, `dsr-l2` TCP with 7–9.
fn balancer() -> Balancer {
    let mut world = World::new();
    let mut next = 1;
    for (id, name, mode, port) in [
        (WEB, "web", Mode::NAT, 8080),
        (DNS, "dns", Mode::NAT, 53),
        (L2, "l2", Mode::DSR_L2, 80),
    ] {
        let (protocol, at) = service(id);
        let spec = ServiceSpec {
            name,
            at,
            protocol,
            mode,
            algorithm: Algorithm::MAGLEV,
        };
        world.add_service(id.0, &spec);
        for n in 1..=3 {
            let socket = SocketAddr::new([10, 0, 1, n].into(), port);
            world.add_backend(next, id, socket, 1, neighbour(BACKENDS, n));
            next += 1;
        }
        world.rebuild(id, 251);
    }
    Balancer::new(world)
}

fn client(port: u16) -> SocketAddr {
    SocketAddr::new([198, 51, 100, 7].into(), port)
}

fn service(id: ServiceId) -> (u8, SocketAddr) {
    match id {
        WEB => (TCP, at("203.0.113.10:80")),
        DNS => (UDP, at("203.0.113.10:53")),
        _ => (TCP, at("203.0.113.20:80")),
    }
}

/// A packet of the client on `port` to a service.
fn packet(id: ServiceId, port: u16, flags: u8) -> Frame {
    let (protocol, to) = service(id);
    Frame::of(protocol, client(port), to, flags)
        .numbers(100, 0)
        .macs(ROUTER_MAC, CLIENTS_MAC)
}

#[track_caller]
fn forwarded(outcome: Outcome) -> Frame {
    assert_eq!(
        outcome.reason,
        Reason::ToBackend,
        "{}",
        describe(&outcome.frame)
    );
    Frame::read(&outcome.frame).expect("a forwarded frame is whole")
}

#[track_caller]
fn answered(outcome: Outcome) -> Frame {
    assert_eq!(
        outcome.reason,
        Reason::ToClient,
        "{}",
        describe(&outcome.frame)
    );
    Frame::read(&outcome.frame).expect("a forwarded frame is whole")
}

/// Opens a TCP connection through the `nat` service, whose flow is confirmed afterwards. Returns
/// the client's last packet, before and after the load balancer.
#[track_caller]
fn open(lb: &mut Balancer, port: u16) -> (Frame, Frame) {
    let syn = forwarded(lb.from_client(&packet(WEB, port, SYN)));
    let back = answered(lb.from_backend(&syn.answer(SYN | ACK).numbers(7000, 101)));
    let ack = back.answer(ACK);
    let at_backend = forwarded(lb.from_client(&ack));
    assert_eq!(stage(lb, WEB, port), ESTABLISHED);
    (ack, at_backend)
}

fn stage(lb: &Balancer, id: ServiceId, port: u16) -> Option<(Stage, FlowState)> {
    lb.flow(id, client(port))
        .map(|(stage, flow)| (stage, flow.state))
}
