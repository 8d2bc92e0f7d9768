//! Where answers go, with a flow and without one, and which address they come from.

use std::net::SocketAddr;

use lb_common::{
    abi::{BackendState, Mac, Reason},
    datapath::Verdict,
    host::{
        frame::Frame,
        world::{self, CLIENTS, CLIENTS_MAC, ROUTER_MAC},
    },
    wire::l4::{ACK, SYN},
};

use super::{DNS, WEB, answered, balancer, client, forwarded, open, packet, service};

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
