//! When a flow is confirmed, when it closes and when it is forgotten.

use std::{net::SocketAddr, time::Duration};

use lb_common::{
    abi::{FlowState, ServiceId},
    datapath::Stage,
    host::{Balancer, HostFlows, frame::Frame},
    wire::l4::{ACK, FIN, RST, SYN},
};

use super::{
    CLOSING, DNS, ESTABLISHED, L2, NEW, WEB, answered, balancer, client, forwarded, open, packet,
    service, stage,
};

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
