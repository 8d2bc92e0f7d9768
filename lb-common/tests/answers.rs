//! Who is told that a packet is too long, and how often.

use std::{net::SocketAddr, time::Duration};

use lb_common::{
    abi::{Address, BackendState, Reason, ServiceId},
    datapath::Verdict,
    host::{
        Balancer,
        frame::Frame,
        world::{World, at},
    },
    wire::{
        ip::{TCP, UDP},
        l4::ACK,
    },
};

/// A load balancer that tells the clients of a prefix three times in a second.
fn three_a_second() -> Balancer {
    let mut world = World::standard();
    world.tables.answers_per_second = 3;
    // Whatever the client, it is given a backend that can be reached.
    for backend in world.tables.backends.values_mut() {
        let is_tunnel = backend.service >= ServiceId(13);
        let is_lost = backend.source == Address::default() && is_tunnel;
        if !backend.neighbour.is_resolved() || is_lost {
            backend.state = BackendState::DISABLED;
        }
    }
    Balancer::new(world)
}

fn long(from: SocketAddr, to: &str) -> Frame {
    Frame::of(TCP, from, at(to), ACK)
        .payload(&[0; 1500])
        .dont_fragment()
}

fn told(lb: &mut Balancer, frame: &Frame) -> Reason {
    lb.from_client(frame).reason
}

#[test]
fn a_prefix_is_told_so_often_in_a_second_and_others_all_the_same() {
    for (to, same, neighbour, other) in [
        (
            "203.0.113.50:80",
            "198.51.100.7:20000",
            "198.51.100.250:20001",
            "198.51.101.7:20000",
        ),
        (
            "[2001:db8::60]:80",
            "[2001:db8:c:1::7]:20000",
            "[2001:db8:c:ff::9]:20001",
            "[2001:db8:c:100::7]:20000",
        ),
    ] {
        let mut lb = three_a_second();
        let (same, neighbour, other) = (at(same), at(neighbour), at(other));
        for _ in 0..3 {
            assert_eq!(told(&mut lb, &long(same, to)), Reason::TooBig);
        }
        assert_eq!(told(&mut lb, &long(same, to)), Reason::TooBigSuppressed);
        let of_prefix = told(&mut lb, &long(neighbour, to));
        assert_eq!(of_prefix, Reason::TooBigSuppressed);
        assert_eq!(told(&mut lb, &long(other, to)), Reason::TooBig);
        lb.flows.pass(Duration::from_millis(900));
        assert_eq!(told(&mut lb, &long(same, to)), Reason::TooBigSuppressed);
        lb.flows.pass(Duration::from_millis(200));
        assert_eq!(told(&mut lb, &long(neighbour, to)), Reason::TooBig);
        assert_eq!(lb.flows.packets(Reason::TooBigSuppressed), 3);
    }
}

#[test]
fn nobody_is_told_where_no_message_is_allowed() {
    let mut lb = three_a_second();
    lb.world.tables.answers_per_second = 0;
    let frame = long(at("198.51.100.7:20000"), "203.0.113.50:80");
    let outcome = lb.from_client(&frame);
    assert_eq!(outcome.verdict, Verdict::Drop);
    assert_eq!(outcome.reason, Reason::TooBigSuppressed);
    assert_eq!(outcome.frame, frame.bytes());
}

#[test]
fn a_way_of_unknown_length_takes_everything_and_a_narrow_one_asks_for_no_less_than_the_least() {
    let mut lb = three_a_second();
    for backend in lb.world.tables.backends.values_mut() {
        backend.mtu = 0;
    }
    let v4 = long(at("198.51.100.7:20000"), "203.0.113.50:80");
    let v6 = long(at("[2001:db8:c::7]:20000"), "[2001:db8::60]:80");
    assert_eq!(told(&mut lb, &v4), Reason::ToBackend);
    for backend in lb.world.tables.backends.values_mut() {
        backend.mtu = 60;
    }
    let answer = lb.from_client(&v4);
    assert_eq!(answer.reason, Reason::TooBig);
    assert_eq!(answer.frame[14 + 20..][6..8], 68u16.to_be_bytes());
    let answer = lb.from_client(&v6);
    assert_eq!(answer.reason, Reason::TooBig);
    assert_eq!(answer.frame[14 + 40..][4..8], 1280u32.to_be_bytes());
}

#[test]
fn other_modes_leave_long_packets_alone() {
    let mut lb = three_a_second();
    let client = at("198.51.100.7:20000");
    for (protocol, to) in [(TCP, "203.0.113.20:80"), (UDP, "203.0.113.10:53")] {
        let frame = Frame::of(protocol, client, at(to), ACK).payload(&[0; 1800]);
        assert_eq!(told(&mut lb, &frame), Reason::ToBackend);
    }
}
