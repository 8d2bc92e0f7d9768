//! ICMP messages about frames.

use std::net::IpAddr;

use super::{Frame, Transport};
use crate::{
    host::frame::pseudo_header,
    wire::{checksum, ip},
};

/// The answer to a packet that is too long: the longest that fits is `mtu` bytes. Addresses and MACs
/// are the frame's, exchanged; as much of the packet as fits into 576 bytes, or 1280, is quoted.
pub fn too_big(frame: &Frame, mtu: u16) -> Vec<u8> {
    let mut packet = frame.clone().padding(0).bytes();
    packet.drain(..frame.l3());
    let [high, low] = mtu.to_be_bytes();
    let (head, number, longest) = match frame.from {
        IpAddr::V4(_) => ([3, 4], ip::ICMP, 576 - 20 - 8),
        IpAddr::V6(_) => ([2, 0], ip::ICMPV6, 1280 - 40 - 8),
    };
    packet.truncate(longest.min(packet.len()) / 4 * 4);
    let mut message = vec![head[0], head[1], 0, 0, 0, 0, high, low];
    message.extend(&packet);
    let pseudo = match frame.from {
        IpAddr::V4(_) => Vec::new(),
        IpAddr::V6(_) => pseudo_header(frame.to, frame.from, number, message.len()),
    };
    let sum = checksum::full(checksum::sum(&pseudo), &message);
    message[2..4].copy_from_slice(&sum);
    let mut answer = Frame::new(frame.to, frame.from, Transport::Other(number))
        .macs(frame.destination, frame.source)
        .ttl(64)
        .payload(&message);
    answer.tos = 0xc0;
    answer.vlans.clone_from(&frame.vlans);
    answer.dont_fragment = frame.from.is_ipv4();
    let mut bytes = answer.bytes();
    let header = &mut bytes[frame.l3()..];
    if frame.from.is_ipv4() {
        header[4..6].fill(0);
        header[10..12].fill(0);
        let sum = checksum::full(checksum::Delta::NONE, &header[..20]);
        header[10..12].copy_from_slice(&sum);
    } else {
        header[2..4].fill(0);
    }
    bytes
}
