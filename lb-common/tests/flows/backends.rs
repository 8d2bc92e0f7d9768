//! Which backend a flow stays with when backends drain, are disabled, go or are replaced.

use std::time::Duration;

use lb_common::{
    abi::{BackendId, BackendState, Reason},
    datapath::{Stage, Verdict},
    host::world::{BACKENDS, at, neighbour},
    wire::l4::{ACK, SYN},
};

use super::{DNS, L2, NEW, WEB, answered, balancer, client, forwarded, open, packet, stage};

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
