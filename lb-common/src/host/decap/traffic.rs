//! Random frames on their way into a backend: most are tunnels, of which many lie.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;

use super::fixtures::Wrap;
use crate::{
    host::frame::{Frame, Transport},
    wire::checksum,
};

/// Where outer packets are from: known and unknown ones.
const FROM: [&str; 10] = [
    "10.0.9.0",
    "10.0.9.15",
    "10.0.1.7",
    "10.0.9.16",
    "10.0.1.6",
    "fd00:9::",
    "fd00:9::ffff",
    "fd00:1::7",
    "fd00:9:0:1::",
    "::ffff:10.0.9.3",
];

/// Where they go: the backend, others, nowhere.
const TO: [&str; 10] = [
    "10.0.1.254",
    "192.0.2.1",
    "10.0.1.254",
    "10.0.2.9",
    "203.0.113.99",
    "fd00:1::ff",
    "2001:db8:0:1::1",
    "fd00:1::ff",
    "fd00:2::9",
    "2001:db8:ffff::1",
];

/// The next frame: at least an Ethernet header.
pub fn frame(rng: &mut Rng) -> Vec<u8> {
    let inner = inner(rng);
    let half = rng.usize(..2) * 5;
    // The first three of each half are what it should be.
    let [from, to] = [FROM, TO].map(|all| {
        let choice = if rng.u8(..8) > 0 {
            rng.usize(..3)
        } else {
            rng.usize(..5)
        };
        all[half + choice].parse::<IpAddr>().expect("written here")
    });
    let wrap = Wrap::ALL[rng.usize(..3)];
    let mut tunnel = wrap.around(from, to, &inner);
    tunnel.tos = rng.u8(..);
    tunnel.ttl = rng.u8(1..);
    if rng.u8(..8) == 0 {
        tunnel.padding = rng.usize(..20);
    }
    match rng.u8(..40) {
        0 => tunnel = tunnel.fragment(rng.u16(..3) * 8, rng.bool()),
        1 => tunnel = tunnel.irregular(),
        2 => return inner.bytes(),
        3 => tunnel.transport = Transport::Other(rng.u8(..)),
        4 => tunnel.payload = (0..rng.usize(..60)).map(|_| rng.u8(..)).collect(),
        5 => tunnel.vlans = vec![rng.u16(..4096)],
        6 => tunnel.destination.0[0] |= 1,
        _ => {}
    }
    let mut frame = tunnel.bytes();
    if rng.u8(..4) == 0 {
        lie(rng, &mut frame);
    }
    frame
}

/// A packet as a client sends it.
fn inner(rng: &mut Rng) -> Frame {
    let (from, to) = if rng.bool() {
        let [from, to] = [rng.u32(..), rng.u32(..)].map(Ipv4Addr::from_bits);
        (IpAddr::V4(from), IpAddr::V4(to))
    } else {
        let [from, to] = [rng.u128(..), rng.u128(..)].map(Ipv6Addr::from_bits);
        (IpAddr::V6(from), IpAddr::V6(to))
    };
    let at = |address, port| SocketAddr::new(address, port);
    let mut inner = match rng.u8(..4) {
        0 | 1 => Frame::tcp(at(from, rng.u16(..)), at(to, rng.u16(..)), rng.u8(..)),
        2 => Frame::udp(at(from, rng.u16(..)), at(to, rng.u16(..))),
        _ => Frame::echo(from, to),
    };
    let length = if rng.u8(..16) == 0 {
        rng.usize(..1400)
    } else {
        rng.usize(..64)
    };
    inner.payload = (0..length).map(|_| rng.u8(..)).collect();
    inner.tos = rng.u8(..);
    inner.ttl = rng.u8(..);
    match rng.u8(..16) {
        0 => inner.irregular(),
        1 => inner.fragment(rng.u16(..3) * 8, rng.bool()),
        _ => inner,
    }
}

/// Changes some bytes of the headers, or cuts the frame; now and then the outer IPv4 checksum is
/// made right again, so that the lie gets further.
fn lie(rng: &mut Rng, frame: &mut Vec<u8>) {
    if rng.u8(..4) == 0 {
        frame.truncate(rng.usize(14..=frame.len()));
        return;
    }
    for _ in 0..rng.u8(1..4) {
        let place = rng.usize(12..frame.len().min(110));
        if rng.bool() {
            frame[place] ^= 1 << rng.u8(..8);
        } else {
            frame[place] = rng.u8(..);
        }
    }
    if rng.bool() && frame.len() >= 34 && frame[14] == 0x45 {
        frame[24..26].fill(0);
        let sum = checksum::full(checksum::Delta::NONE, &frame[14..34]);
        frame[24..26].copy_from_slice(&sum);
    }
}
