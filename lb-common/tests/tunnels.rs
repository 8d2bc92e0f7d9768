//! What tunnels do where the standard fixtures do not look: no room in front of the frame, how flows
//! spread, and what becomes of DSCP and ECN.

use std::collections::BTreeSet;

use lb_common::{
    abi::{Address, BackendState, Reason, ServiceId},
    datapath::{self, End, Verdict, parse::Parsed},
    host::{
        Balancer, HostFlows, HostPacket,
        frame::{self, Frame},
        world::{CLIENTS, GUE_PORT, World, at},
    },
    wire::{ip::TCP, l4::SYN},
};

/// The standard set-up, in which only backends that packets can be sent to take flows.
fn reachable() -> Balancer {
    let mut world = World::standard();
    for backend in world.tables.backends.values_mut() {
        if !backend.neighbour.is_resolved() || backend.source == Address::default() {
            backend.state = BackendState::DISABLED;
        }
    }
    for id in 13..=20 {
        world.rebuild(ServiceId(id), 251);
    }
    Balancer::new(world)
}

#[test]
fn without_room_in_front_a_packet_is_dropped_as_it_came() {
    let lb = reachable();
    for (to, head) in [("203.0.113.50:80", 20), ("[2001:db8::60]:80", 28)] {
        let client = match to.starts_with('[') {
            true => "[2001:db8:c::7]:20000",
            false => "198.51.100.7:20000",
        };
        let bytes = Frame::tcp(at(client), at(to), SYN).bytes();
        let mut packet = HostPacket::with_headroom(head - 4, &bytes, CLIENTS);
        let mut flows = HostFlows::new();
        let mut parsed = Parsed::default();
        let end = datapath::process(&mut packet, &mut parsed, &lb.world.tables, &mut flows);
        assert_eq!(end, End::Sent(Verdict::Drop, Reason::NoHeadroom), "{to}");
        assert_eq!(packet.bytes(), bytes, "{to}");
    }
}

#[test]
fn flows_spread_over_sources_ports_and_labels_and_each_keeps_its_own() {
    let mut lb = reachable();
    for to in ["203.0.113.60:80", "203.0.113.50:80"] {
        let mut outers = BTreeSet::new();
        for port in 20_000..20_256 {
            let client = at(&format!("198.51.100.7:{port}"));
            let mut of_flow = BTreeSet::new();
            for payload in [&b""[..], b"more"] {
                let frame = Frame::of(TCP, client, at(to), SYN).payload(payload);
                let out = lb.from_client(&frame).frame;
                assert!(frame::inner(&out, GUE_PORT).is_some());
                // Sources, and what varies: the label, or the source's last byte; the UDP port.
                let (source, label) = match out[12..14] {
                    [0x08, 0x00] => (out[26..30].to_vec(), Vec::new()),
                    _ => (out[22..38].to_vec(), out[14..18].to_vec()),
                };
                let offset = if label.is_empty() { 34 } else { 54 };
                let ends = match to.contains(".60") {
                    true => out[offset..offset + 2].to_vec(),
                    false => Vec::new(),
                };
                of_flow.insert((source, label, ends));
            }
            assert_eq!(of_flow.len(), 1, "one flow, several tunnels");
            outers.extend(of_flow);
        }
        let labels: BTreeSet<_> = outers.iter().map(|(_, label, _)| label).collect();
        let sources: BTreeSet<_> = outers.iter().map(|(source, ..)| source).collect();
        // Half of 256 flows go over IPv4, whose sources vary in a byte.
        assert!(labels.len() > 90, "{} flow labels", labels.len());
        assert!(sources.len() > 70, "{} sources", sources.len());
        if to.contains(".60") {
            let ports: BTreeSet<_> = outers.iter().map(|(.., port)| port).collect();
            assert!(ports.len() > 240, "{} ports", ports.len());
            assert!(ports.iter().all(|port| port[0] >= 0xc0));
        }
    }
}

#[test]
fn dscp_and_ecn_are_copied_whatever_they_are() {
    let mut lb = reachable();
    for tos in 0..=255 {
        for to in ["203.0.113.50:80", "[2001:db8::60]:80"] {
            let client = match to.starts_with('[') {
                true => at("[2001:db8:c::7]:20000"),
                false => at("198.51.100.7:20000"),
            };
            let mut frame = Frame::tcp(client, at(to), SYN);
            frame.tos = tos;
            let out = lb.from_client(&frame).frame;
            let outer = match out[12..14] {
                [0x08, 0x00] => out[15],
                _ => out[14] << 4 | out[15] >> 4,
            };
            assert_eq!(outer, tos, "{to}");
            let inner = frame::inner(&out, GUE_PORT).expect("it is a tunnel");
            let inner = Frame::read(&inner).expect("it is whole");
            assert_eq!((inner.tos, inner.ttl), (tos, 63));
        }
    }
}
