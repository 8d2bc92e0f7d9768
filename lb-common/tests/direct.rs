//! What is not the service's although a backend takes part: conversations opened with a backend
//! itself, and backends that several services share.

use std::{net::SocketAddr, time::Duration};

use lb_common::{
    abi::{Algorithm, BackendId, Mode, Reason, ServiceId},
    host::{
        Balancer,
        frame::Frame,
        world::{BACKENDS, ServiceSpec, World, at, neighbour},
    },
    wire::{
        ip::TCP,
        l4::{ACK, RST, SYN},
    },
};

const A: ServiceId = ServiceId(1);
const B: ServiceId = ServiceId(2);
const A_AT: &str = "203.0.113.30:80";
const B_AT: &str = "203.0.113.31:81";

/// Services A and B share so many backends, at 10.0.1.1 and following.
fn sharing(backends: u8) -> Balancer {
    let mut world = World::new();
    let mut next = 1;
    for (id, name, socket) in [(1, "a", A_AT), (2, "b", B_AT)] {
        let spec = ServiceSpec {
            name,
            at: at(socket),
            protocol: TCP,
            mode: Mode::NAT,
            algorithm: Algorithm::MAGLEV,
        };
        let service = world.add_service(id, &spec);
        for n in 1..=backends {
            let socket = SocketAddr::new([10, 0, 1, n].into(), 8080);
            world.add_backend(next, service, socket, 1, neighbour(BACKENDS, n));
            next += 1;
        }
        world.rebuild(service, 251);
    }
    Balancer::new(world)
}

/// Only service A, with one backend.
fn alone() -> Balancer {
    let mut lb = sharing(1);
    lb.world.remove_backend(BackendId(2));
    for endpoint in lb.world.tables.endpoints.values_mut() {
        endpoint.more = 0;
    }
    lb
}

fn client(port: u16) -> SocketAddr {
    SocketAddr::new([198, 51, 100, 7].into(), port)
}

fn to(place: &str, port: u16, flags: u8) -> Frame {
    Frame::tcp(client(port), at(place), flags)
}

#[track_caller]
fn forwarded(lb: &mut Balancer, frame: &Frame) -> Frame {
    let outcome = lb.from_client(frame);
    assert_eq!(outcome.reason, Reason::ToBackend);
    Frame::read(&outcome.frame).expect("a forwarded frame is whole")
}

#[track_caller]
fn untouched(lb: &mut Balancer, frame: &Frame, reason: Reason) {
    let outcome = lb.from_backend(frame);
    assert_eq!((outcome.reason, outcome.frame), (reason, frame.bytes()));
}

#[test]
fn answers_to_a_client_that_opened_the_backend_itself_pass_untouched() {
    let mut lb = alone();
    let syn = to("10.0.1.1:8080", 40_000, SYN);
    assert_eq!(lb.from_client(&syn).reason, Reason::DirectToBackend);
    for flags in [SYN | ACK, ACK, RST] {
        untouched(
            &mut lb,
            &syn.clone().answer(flags),
            Reason::DirectFromBackend,
        );
    }
    // Another client's answers are the service's.
    let other = to("10.0.1.1:8080", 40_001, SYN).answer(ACK);
    assert_eq!(lb.from_backend(&other).reason, Reason::ToClientRouted);
}

#[test]
fn answers_to_the_load_balancer_itself_pass_untouched() {
    let mut lb = alone();
    let probe = Frame::tcp(at("10.0.1.254:50000"), at("10.0.1.1:8080"), SYN);
    untouched(&mut lb, &probe.answer(SYN | ACK), Reason::ToLoadBalancer);
}

#[test]
fn what_a_backend_opens_itself_passes_in_both_directions() {
    let mut lb = alone();
    let syn = Frame::tcp(at("10.0.1.1:8080"), client(443), SYN);
    untouched(&mut lb, &syn, Reason::OpenedByBackend);
    let answer = syn.clone().answer(SYN | ACK);
    assert_eq!(lb.from_client(&answer).reason, Reason::DirectToBackend);
    untouched(&mut lb, &syn.flags(ACK), Reason::DirectFromBackend);
}

#[test]
fn a_direct_conversation_is_forgotten_when_idle_or_when_the_service_is_used() {
    let mut lb = alone();
    let syn = to("10.0.1.1:8080", 40_000, SYN);
    let answer = syn.clone().answer(ACK);
    lb.from_client(&syn);
    lb.flows.pass(Duration::from_secs(349));
    lb.from_client(&syn.clone().flags(ACK));
    lb.flows.pass(Duration::from_secs(349));
    untouched(&mut lb, &answer, Reason::DirectFromBackend);
    lb.flows.pass(Duration::from_secs(2));
    assert_eq!(lb.from_backend(&answer).reason, Reason::ToClientRouted);

    lb.from_client(&syn);
    untouched(&mut lb, &answer, Reason::DirectFromBackend);
    forwarded(&mut lb, &to(A_AT, 40_000, SYN));
    assert_eq!(lb.from_backend(&answer).reason, Reason::ToClient);
}

#[test]
fn a_client_that_goes_direct_after_its_flow_went_quiet_gets_untouched_answers() {
    for lb in [alone(), sharing(1)] {
        for service in [A_AT, B_AT] {
            let mut lb = lb.clone();
            lb.from_client(&to(service, 40_000, SYN));
            lb.flows.pass(Duration::from_secs(2));
            let syn = to("10.0.1.1:8080", 40_000, SYN);
            lb.from_client(&syn);
            untouched(&mut lb, &syn.answer(SYN | ACK), Reason::DirectFromBackend);
        }
    }
}

#[test]
fn a_client_that_goes_direct_right_after_its_connection_ended_gets_untouched_answers() {
    let mut lb = alone();
    forwarded(&mut lb, &to(A_AT, 40_000, SYN));
    forwarded(&mut lb, &to(A_AT, 40_000, RST));
    let direct = to("10.0.1.1:8080", 40_000, SYN);
    assert_eq!(lb.from_client(&direct).reason, Reason::DirectToBackend);
    untouched(
        &mut lb,
        &direct.answer(SYN | ACK),
        Reason::DirectFromBackend,
    );
}

#[test]
fn the_flow_table_tells_which_service_an_answer_of_a_shared_backend_is_of() {
    let mut lb = sharing(1);
    for (service, port) in [(A_AT, 40_000), (B_AT, 40_001)] {
        let at_backend = forwarded(&mut lb, &to(service, port, SYN));
        let outcome = lb.from_backend(&at_backend.answer(SYN | ACK));
        assert_eq!(outcome.reason, Reason::ToClient);
        let frame = Frame::read(&outcome.frame).expect("it is whole");
        assert_eq!(frame.source_socket(), at(service));
        assert_eq!(frame.destination_socket(), client(port));
    }
    let stranger = to("10.0.1.1:8080", 40_002, SYN).answer(ACK);
    assert_eq!(lb.from_backend(&stranger).reason, Reason::AmbiguousAnswer);
}

#[test]
fn a_conversation_that_is_taken_goes_to_another_backend() {
    let mut lb = sharing(3);
    for port in 40_000..40_100 {
        let one = forwarded(&mut lb, &to(A_AT, port, SYN));
        let other = forwarded(&mut lb, &to(B_AT, port, SYN));
        assert_ne!(one.destination_socket(), other.destination_socket());
    }
    let mut lb = sharing(1);
    forwarded(&mut lb, &to(A_AT, 40_000, SYN));
    let outcome = lb.from_client(&to(B_AT, 40_000, SYN));
    assert_eq!(outcome.reason, Reason::ConversationTaken);
    forwarded(&mut lb, &to(B_AT, 40_001, SYN));
}

#[test]
fn a_conversation_that_has_ended_does_not_claim_the_answers_of_the_next() {
    for reset in [true, false] {
        let mut lb = sharing(1);
        forwarded(&mut lb, &to(A_AT, 40_000, SYN));
        if reset {
            forwarded(&mut lb, &to(A_AT, 40_000, SYN));
            forwarded(&mut lb, &to(A_AT, 40_000, RST));
        } else {
            lb.flows.pass(Duration::from_secs(11));
        }
        let at_backend = forwarded(&mut lb, &to(B_AT, 40_000, SYN));
        let outcome = lb.from_backend(&at_backend.answer(SYN | ACK));
        let frame = Frame::read(&outcome.frame).expect("it is whole");
        assert_eq!(frame.source_socket(), at(B_AT), "reset: {reset}");
        assert!(lb.backend(B, client(40_000)).is_some());
        assert_eq!(lb.backend(A, client(40_000)), None);
        let again = lb.from_client(&to(A_AT, 40_000, SYN));
        assert_eq!(again.reason, Reason::ConversationTaken, "reset: {reset}");
    }
}
