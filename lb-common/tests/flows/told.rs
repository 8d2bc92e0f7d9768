//! What is told and counted of flows, and of packets that begin none.

use std::time::Duration;

use lb_common::{
    abi::{EventKind, Reason, Settings, Ticks},
    wire::l4::{ACK, SYN},
};

use super::{WEB, answered, balancer, client, forwarded, open, packet};

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
        lb.from_client(&packet(WEB, port, SYN).ttl(1));
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
