//! What the load balancer remembers of a flow, and for how long: who keeps its backend, when an
//! entry is confirmed, when it is forgotten.

use std::{net::SocketAddr, time::Duration};

use lb_common::{
    abi::{
        Algorithm, BackendId, BackendState, EventKind, FlowState, Mac, Mode, Reason, ServiceId,
        Settings, Ticks,
    },
    datapath::{Stage, Verdict},
    host::{
        Balancer, HostFlows, Outcome,
        frame::{Frame, describe},
        world::{
            self, BACKENDS, CLIENTS, CLIENTS_MAC, ROUTER_MAC, ServiceSpec, World, at, neighbour,
        },
    },
    wire::{
        ip::{TCP, UDP},
        l4::{ACK, FIN, RST, SYN},
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

#[test]
fn a_syn_sent_again_goes_to_the_same_backend_and_is_no_new_flow() {
    let mut lb = balancer();
    for id in [WEB, L2] {
        let first = forwarded(lb.from_client(&packet(id, 40_000, SYN)));
        lb.flows.pass(Duration::from_secs(1));
        let second = forwarded(lb.from_client(&packet(id, 40_000, SYN)));
        assert_eq!(first, second);
        assert_eq!(lb.flows.services[&id].new_flows, 1);
        assert_eq!(stage(&lb, id, 40_000), NEW);
    }
}

#[test]
fn a_syn_never_reuses_the_entry_of_a_backend_that_takes_no_new_flow() {
    for state in [
        BackendState::DRAINING,
        BackendState::DISABLED,
        BackendState::ABSENT,
    ] {
        for id in [WEB, L2] {
            let mut lb = balancer();
            forwarded(lb.from_client(&packet(id, 40_000, SYN)));
            let had = lb.backend(id, client(40_000)).expect("it has a flow");
            lb.world.set_state(had, state);
            forwarded(lb.from_client(&packet(id, 40_000, SYN)));
            let has = lb.backend(id, client(40_000)).expect("it has a flow");
            assert_ne!(has, had, "{state:?}");
            assert!(lb.world.tables.backends[&has].state.is_eligible());
        }
    }
}

#[test]
fn a_syn_on_an_established_connection_of_a_drained_backend_moves() {
    let mut lb = balancer();
    open(&mut lb, 40_000);
    let had = lb.backend(WEB, client(40_000)).expect("it has a flow");
    lb.world.set_state(had, BackendState::DRAINING);
    forwarded(lb.from_client(&packet(WEB, 40_000, SYN)));
    assert_ne!(lb.backend(WEB, client(40_000)), Some(had));
    assert_eq!(stage(&lb, WEB, 40_000), NEW);
}

#[test]
fn a_draining_backend_keeps_all_flows_that_it_has() {
    let mut lb = balancer();
    open(&mut lb, 40_000);
    forwarded(lb.from_client(&packet(WEB, 40_001, SYN)));
    forwarded(lb.from_client(&packet(DNS, 40_002, 0)));
    for id in (1..=9).map(BackendId) {
        lb.world.set_state(id, BackendState::DRAINING);
    }
    for (id, port) in [(WEB, 40_000), (WEB, 40_001), (DNS, 40_002)] {
        let had = lb.backend(id, client(port));
        forwarded(lb.from_client(&packet(id, port, ACK)));
        assert_eq!(lb.backend(id, client(port)), had);
    }
    let refused = lb.from_client(&packet(WEB, 40_003, SYN));
    assert_eq!(
        (refused.verdict, refused.reason),
        (Verdict::Drop, Reason::NoBackend)
    );
}

#[test]
fn a_disabled_backend_keeps_tcp_connections_only() {
    let mut lb = balancer();
    open(&mut lb, 40_000);
    forwarded(lb.from_client(&packet(WEB, 40_001, SYN)));
    let query = forwarded(lb.from_client(&packet(DNS, 40_002, 0)));
    answered(lb.from_backend(&query.answer(0)));
    forwarded(lb.from_client(&packet(DNS, 40_002, 0)));
    for (id, port, flags, keeps) in [
        (WEB, 40_000, ACK, true),
        (WEB, 40_001, SYN, false),
        (DNS, 40_002, 0, false),
    ] {
        let had = lb.backend(id, client(port)).expect("it has a flow");
        lb.world.set_state(had, BackendState::DISABLED);
        forwarded(lb.from_client(&packet(id, port, flags)));
        assert_eq!(
            lb.backend(id, client(port)) == Some(had),
            keeps,
            "{id:?} {port}"
        );
        lb.world.set_state(had, BackendState::ENABLED);
    }
}

#[test]
fn flows_of_a_removed_backend_choose_anew_and_others_stay() {
    let mut lb = balancer();
    let ports = 40_000..40_050;
    for port in ports.clone() {
        open(&mut lb, port);
    }
    let had: Vec<_> = ports.clone().map(|p| lb.backend(WEB, client(p))).collect();
    lb.world.remove_backend(BackendId(2));
    let mut moved = 0;
    for (port, had) in ports.zip(had) {
        forwarded(lb.from_client(&packet(WEB, port, ACK)));
        let has = lb.backend(WEB, client(port));
        assert_ne!(has, Some(BackendId(2)));
        match had {
            Some(BackendId(2)) => moved += 1,
            _ => assert_eq!(has, had),
        }
    }
    assert!(moved > 5, "{moved}");
}

#[test]
fn a_flow_does_not_go_on_with_another_backend_of_the_same_id() {
    let mut lb = balancer();
    open(&mut lb, 40_000);
    let id = lb.backend(WEB, client(40_000)).expect("it has a flow");
    lb.world.remove_backend(id);
    lb.world
        .add_backend(id.0, WEB, at("10.0.1.9:8080"), 1, neighbour(BACKENDS, 9));
    lb.world.rebuild(WEB, 251);
    forwarded(lb.from_client(&packet(WEB, 40_000, ACK)));
    let (stage, flow) = lb.flow(WEB, client(40_000)).expect("it has a flow");
    assert_eq!(stage, Stage::New, "chosen anew");
    assert_eq!(
        flow.generation,
        lb.world.tables.backends[&flow.backend].generation
    );
    assert_eq!(lb.flows.services[&WEB].new_flows, 2);
}

#[test]
fn a_flow_is_forgotten_after_the_idle_time_of_its_state() {
    fn begin(lb: &mut Balancer, state: FlowState) -> ServiceId {
        match state {
            FlowState::HALF_OPEN => {
                forwarded(lb.from_client(&packet(WEB, 40_000, SYN)));
            }
            FlowState::UDP => {
                forwarded(lb.from_client(&packet(DNS, 40_000, 0)));
                return DNS;
            }
            _ => {
                open(lb, 40_000);
            }
        }
        if state == FlowState::CLOSING {
            forwarded(lb.from_client(&packet(WEB, 40_000, RST)));
        }
        WEB
    }
    for (state, seconds) in [
        (FlowState::HALF_OPEN, 10),
        (FlowState::ESTABLISHED, 350),
        (FlowState::CLOSING, 10),
        (FlowState::UDP, 30),
    ] {
        for (wait, flows) in [(seconds - 1, 1), (seconds + 1, 2)] {
            let mut lb = balancer();
            let id = begin(&mut lb, state);
            assert_eq!(stage(&lb, id, 40_000).map(|s| s.1), Some(state));
            lb.flows.pass(Duration::from_secs(wait));
            forwarded(lb.from_client(&packet(id, 40_000, ACK)));
            assert_eq!(
                lb.flows.services[&id].new_flows,
                flows,
                "{} {wait} s",
                state.name()
            );
        }
    }
}

#[test]
fn packets_of_either_side_keep_a_flow_alive() {
    let mut lb = balancer();
    let (ack, at_backend) = open(&mut lb, 40_000);
    for _ in 0..5 {
        lb.flows.pass(Duration::from_secs(300));
        answered(lb.from_backend(&at_backend.clone().answer(ACK)));
    }
    lb.flows.pass(Duration::from_secs(300));
    forwarded(lb.from_client(&ack));
    assert_eq!(lb.flows.services[&WEB].new_flows, 1);
}

#[test]
fn nat_tcp_is_confirmed_by_the_right_acknowledgement_only() {
    let mut lb = balancer();
    let syn = forwarded(lb.from_client(&packet(WEB, 40_000, SYN)));
    forwarded(lb.from_client(&packet(WEB, 40_000, ACK)));
    assert_eq!(stage(&lb, WEB, 40_000), NEW, "the backend has not answered");
    answered(lb.from_backend(&syn.answer(SYN | ACK).numbers(u32::MAX, 101)));
    for wrong in [1, u32::MAX, 7] {
        forwarded(lb.from_client(&packet(WEB, 40_000, ACK).numbers(101, wrong)));
        assert_eq!(stage(&lb, WEB, 40_000), NEW, "{wrong}");
    }
    // A reset that acknowledges rightly is still no client that goes on.
    forwarded(lb.from_client(&packet(WEB, 40_000, RST | ACK).numbers(101, 0)));
    assert_eq!(stage(&lb, WEB, 40_000).map(|s| s.0), Some(Stage::New));
    forwarded(lb.from_client(&packet(WEB, 40_000, ACK).numbers(101, 0)));
    assert_eq!(stage(&lb, WEB, 40_000), ESTABLISHED);
}

#[test]
fn nat_tcp_is_confirmed_by_what_a_backend_sends_but_not_by_syn_or_rst() {
    let mut lb = balancer();
    let ack = forwarded(lb.from_client(&packet(WEB, 40_000, ACK)));
    for flags in [RST, RST | ACK, SYN | ACK] {
        answered(lb.from_backend(&ack.clone().answer(flags)));
        assert_eq!(stage(&lb, WEB, 40_000).map(|s| s.0), Some(Stage::New));
    }
    answered(lb.from_backend(&ack.answer(ACK).payload(b"data")));
    assert_eq!(stage(&lb, WEB, 40_000), ESTABLISHED);
}

#[test]
fn nat_udp_is_confirmed_when_the_client_goes_on_after_an_answer() {
    let mut lb = balancer();
    let query = forwarded(lb.from_client(&packet(DNS, 40_000, 0)));
    forwarded(lb.from_client(&packet(DNS, 40_000, 0)));
    assert_eq!(stage(&lb, DNS, 40_000), Some((Stage::New, FlowState::UDP)));
    answered(lb.from_backend(&query.answer(0)));
    assert_eq!(stage(&lb, DNS, 40_000), Some((Stage::New, FlowState::UDP)));
    forwarded(lb.from_client(&packet(DNS, 40_000, 0)));
    assert_eq!(
        stage(&lb, DNS, 40_000),
        Some((Stage::Confirmed, FlowState::UDP))
    );
}

#[test]
fn dsr_is_confirmed_when_the_client_goes_on_after_a_second() {
    let mut lb = balancer();
    forwarded(lb.from_client(&packet(L2, 40_000, SYN)));
    lb.flows.pass(Duration::from_millis(900));
    forwarded(lb.from_client(&packet(L2, 40_000, ACK)));
    assert_eq!(stage(&lb, L2, 40_000), NEW);
    lb.flows.pass(Duration::from_millis(200));
    forwarded(lb.from_client(&packet(L2, 40_000, SYN)));
    assert_eq!(stage(&lb, L2, 40_000), NEW, "a SYN again is not going on");
    forwarded(lb.from_client(&packet(L2, 40_000, ACK)));
    assert_eq!(stage(&lb, L2, 40_000), ESTABLISHED);
    forwarded(lb.from_client(&packet(L2, 40_000, FIN | ACK)));
    assert_eq!(stage(&lb, L2, 40_000), CLOSING);
}

#[test]
fn nat_tcp_closes_after_fin_of_both_sides() {
    for backend_first in [true, false] {
        let mut lb = balancer();
        let (ack, at_backend) = open(&mut lb, 40_000);
        let fin = ack.clone().flags(FIN | ACK);
        let back = at_backend.answer(FIN | ACK);
        if backend_first {
            answered(lb.from_backend(&back));
            assert_eq!(stage(&lb, WEB, 40_000), ESTABLISHED);
            forwarded(lb.from_client(&fin));
        } else {
            forwarded(lb.from_client(&fin));
            assert_eq!(stage(&lb, WEB, 40_000), ESTABLISHED);
            answered(lb.from_backend(&back));
        }
        assert_eq!(stage(&lb, WEB, 40_000), CLOSING);
        forwarded(lb.from_client(&ack));
        assert_eq!(
            stage(&lb, WEB, 40_000),
            CLOSING,
            "the last ACK opens nothing"
        );
        forwarded(lb.from_client(&packet(WEB, 40_000, SYN)));
        let (_, flow) = lb.flow(WEB, client(40_000)).expect("a flow");
        assert_eq!((flow.state, flow.flags), (FlowState::HALF_OPEN, 0));
    }
}

#[test]
fn a_reset_closes_unless_the_connection_goes_on() {
    let mut lb = balancer();
    let (ack, at_backend) = open(&mut lb, 40_000);
    forwarded(lb.from_client(&ack.clone().flags(RST)));
    assert_eq!(stage(&lb, WEB, 40_000), CLOSING);
    // The reset was forged, and the backend has ignored it.
    forwarded(lb.from_client(&ack));
    assert_eq!(stage(&lb, WEB, 40_000), ESTABLISHED);
    answered(lb.from_backend(&at_backend.answer(RST)));
    assert_eq!(stage(&lb, WEB, 40_000), CLOSING);
}

#[test]
fn a_flood_leaves_established_flows_their_entries() {
    let mut lb = balancer();
    lb.flows = HostFlows::bounded(Some(200), Some(64));
    for port in 40_000..40_200 {
        open(&mut lb, port);
    }
    for n in 0..20_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let from = SocketAddr::new([198, 18 + a, b, c].into(), 1024);
        let kinds = [(WEB, SYN), (WEB, ACK), (DNS, 0), (L2, SYN), (L2, ACK)];
        let (id, flags) = kinds[n as usize % kinds.len()];
        let (protocol, to) = service(id);
        lb.from_client(&Frame::of(protocol, from, to, flags));
    }
    assert_eq!(lb.flows.new.len(), 64);
    for port in 40_000..40_200 {
        assert_eq!(stage(&lb, WEB, port), ESTABLISHED);
    }
}

#[test]
fn a_peer_without_entries_answers_from_the_service() {
    let mut lb = balancer();
    let mut peer = balancer();
    for id in [WEB, DNS] {
        let at_backend = forwarded(lb.from_client(&packet(id, 40_000, SYN)));
        let outcome = peer.from_backend(&at_backend.answer(ACK));
        assert_eq!(outcome.reason, Reason::ToClientRouted);
        assert_eq!(outcome.verdict, Verdict::Redirect(CLIENTS));
        let frame = Frame::read(&outcome.frame).expect("it is whole");
        assert_eq!(frame.source_socket(), service(id).1);
        assert_eq!(frame.destination_socket(), client(40_000));
        assert_eq!((frame.source, frame.destination), (CLIENTS_MAC, ROUTER_MAC));
    }
}

#[test]
fn answers_go_to_the_neighbour_that_the_clients_packets_come_from() {
    let mut lb = balancer();
    let (ack, at_backend) = open(&mut lb, 40_000);
    let other = Mac([2, 0, 0, 0, 0, 77]);
    forwarded(lb.from_client(&ack.macs(other, CLIENTS_MAC)));
    let answer = answered(lb.from_backend(&at_backend.answer(ACK)));
    assert_eq!(answer.destination, other);
}

#[test]
fn a_late_answer_of_another_backend_is_dropped() {
    let mut lb = balancer();
    let at_backend = forwarded(lb.from_client(&packet(WEB, 40_000, SYN)));
    let had = lb.backend(WEB, client(40_000)).expect("a flow");
    lb.world.set_state(had, BackendState::DRAINING);
    forwarded(lb.from_client(&packet(WEB, 40_000, SYN)));
    let outcome = lb.from_backend(&at_backend.answer(SYN | ACK));
    assert_eq!(
        (outcome.verdict, outcome.reason),
        (Verdict::Drop, Reason::StaleAnswer)
    );
}

#[test]
fn an_address_of_the_load_balancer_is_no_client() {
    let mut lb = balancer();
    let mut forged = packet(WEB, 40_000, SYN);
    forged.from = [192, 0, 2, 1].into();
    assert_eq!(lb.from_client(&forged).reason, Reason::MartianSource);
    assert!(lb.flows.new.is_empty());
}

#[test]
fn new_flows_are_told_but_not_too_often_and_drops_not_at_all_if_so_set() {
    let mut lb = balancer();
    lb.flows.settings = Settings {
        new_flow_spacing: Ticks::from_duration(Duration::from_millis(32)),
        drop_spacing: Ticks(u32::MAX),
        ..Settings::default()
    };
    for port in 40_000..40_010 {
        forwarded(lb.from_client(&packet(WEB, port, SYN)));
        lb.from_client(&packet(WEB, port, SYN).irregular());
    }
    lb.flows.pass(Duration::from_millis(100));
    forwarded(lb.from_client(&packet(WEB, 40_010, SYN)));
    let told: Vec<_> = lb
        .flows
        .events
        .iter()
        .map(|event| (event.kind, event.source_port.number()))
        .collect();
    let new = EventKind::NEW_FLOW;
    assert_eq!(told, [(new, 40_000), (new, 40_010)]);
    let event = lb.flows.events[0];
    assert_eq!(event.source.ip(), client(0).ip());
    assert_eq!(Some(event.backend), lb.backend(WEB, client(40_000)));
}

#[test]
fn services_and_backends_count_what_they_carry() {
    let mut lb = balancer();
    let (ack, at_backend) = open(&mut lb, 40_000);
    let id = lb.backend(WEB, client(40_000)).expect("a flow");
    let before = lb.flows.backends[&id];
    let sent = ack.payload(&[1; 100]);
    forwarded(lb.from_client(&sent));
    answered(lb.from_backend(&at_backend.answer(ACK)));
    let after = lb.flows.backends[&id];
    assert_eq!(after.forward.packets, before.forward.packets + 1);
    assert_eq!(
        after.forward.bytes,
        before.forward.bytes + sent.bytes().len() as u64
    );
    assert_eq!(after.back.packets, before.back.packets + 1);
    assert_eq!(after.new_flows, 1);
    assert_eq!(lb.flows.services[&WEB], after);
}

#[test]
fn a_service_with_two_addresses_answers_from_the_one_that_was_asked_last() {
    for (id, flags) in [(WEB, SYN), (DNS, 0)] {
        let mut lb = balancer();
        let (protocol, first) = service(id);
        let second = SocketAddr::new([203, 0, 113, 11].into(), first.port());
        let key = |at: SocketAddr| world::key(at.ip().into(), at.port().into(), protocol, 0);
        let endpoint = lb.world.tables.endpoints[&key(first)];
        lb.world.tables.endpoints.insert(key(second), endpoint);
        for to in [first, second] {
            let mut frame = packet(id, 40_000, flags);
            frame.to = to.ip();
            let at_backend = forwarded(lb.from_client(&frame));
            let answer = answered(lb.from_backend(&at_backend.answer(SYN | ACK)));
            assert_eq!(answer.source_socket(), to);
        }
    }
}
