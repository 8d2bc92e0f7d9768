//! Frames in tunnels: outer headers made from what they should say, and taken off again.

use std::net::{IpAddr, SocketAddr};

use zerocopy::FromBytes as _;

use super::{
    Frame, Transport, checksums,
    read::{cut, l3},
};
use crate::wire::{checksum, eth, ip, l4::UdpHeader};

/// Outer headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Source address; of the same family as the destination.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// TOS or traffic class.
    pub tos: u8,
    /// Flow label, where the family is IPv6.
    pub label: u32,
    /// UDP source and destination port; none: the packet lies right behind the IP header.
    pub ports: Option<(u16, u16)>,
}

impl Outer {
    /// `frame` with these headers in front of its packet: TTL 64, over IPv4 DF and identification 0,
    /// no UDP checksum. The Ethernet addresses and the padding are the frame's.
    pub fn around(&self, frame: &Frame) -> Vec<u8> {
        self.around_packet(frame, &frame.bytes())
    }

    /// As [`Self::around`], of a frame's bytes: a fragment of `frame`'s.
    pub fn around_packet(&self, frame: &Frame, bytes: &[u8]) -> Vec<u8> {
        let packet = &bytes[frame.l3()..bytes.len() - frame.padding];
        let mut outer = match self.ports {
            Some((from, to)) => Frame::udp(
                SocketAddr::new(self.from, from),
                SocketAddr::new(self.to, to),
            )
            .without_checksum(),
            None => {
                let number = if frame.from.is_ipv4() {
                    ip::IPV4
                } else {
                    ip::IPV6
                };
                Frame::new(self.from, self.to, Transport::Other(number))
            }
        };
        outer = outer
            .macs(frame.source, frame.destination)
            .ttl(64)
            .payload(packet)
            .padding(frame.padding);
        outer.tos = self.tos;
        outer.vlans.clone_from(&frame.vlans);
        let mut bytes = outer.bytes();
        let header = &mut bytes[frame.l3()..];
        if self.from.is_ipv4() {
            header[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
            header[10..12].fill(0);
            let sum = checksum::full(checksum::Delta::NONE, &header[..20]);
            header[10..12].copy_from_slice(&sum);
        } else {
            let [_, label @ ..] = self.label.to_be_bytes();
            header[1] = header[1] & 0xf0 | label[0];
            header[2..4].copy_from_slice(&label[1..]);
        }
        bytes
    }
}

/// The frame inside a frame of IPIP or of GUE to this port, with the Ethernet addresses, the VLAN
/// tags and the padding of the outer one; none if it is no such frame, or if an outer checksum is wrong.
pub fn inner(frame: &[u8], gue_port: u16) -> Option<Vec<u8>> {
    let outer = cut(frame)?;
    if outer.fragment != (0, false) || checksums(frame).ip == Some(false) {
        return None;
    }
    let packet = match outer.protocol {
        ip::IPV4 | ip::IPV6 => outer.body,
        ip::UDP => {
            let (udp, packet) = UdpHeader::read_from_prefix(outer.body).ok()?;
            let is_whole = usize::from(u16::from_be_bytes(udp.length)) == outer.body.len();
            let is_gue = udp.destination == gue_port.to_be_bytes() && udp.checksum == [0, 0];
            (is_whole && is_gue).then_some(packet)?
        }
        _ => return None,
    };
    let ether_type = match (packet.first()? >> 4, outer.protocol) {
        (4, ip::IPV4 | ip::UDP) => eth::IPV4,
        (6, ip::IPV6 | ip::UDP) => eth::IPV6,
        _ => return None,
    };
    let mut bytes = frame[..l3(frame)? - 2].to_vec();
    bytes.extend(ether_type);
    bytes.extend(packet);
    bytes.extend(&frame[frame.len() - outer.padding..]);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::world::at, wire::l4::SYN};

    #[test]
    fn what_is_put_into_a_tunnel_comes_out_again() {
        let frame = Frame::tcp(at("198.51.100.7:40000"), at("203.0.113.10:80"), SYN).padding(2);
        for ports in [None, Some((50_000, 6080))] {
            for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
                let outer = Outer {
                    from: from.parse().expect("an address"),
                    to: to.parse().expect("an address"),
                    tos: 0xb8,
                    label: 0x1_2345,
                    ports,
                };
                let bytes = outer.around(&frame);
                assert_eq!(inner(&bytes, 6080), Some(frame.bytes()), "{outer:?}");
                let is_read = inner(&bytes, 6081).is_some();
                assert_eq!(is_read, ports.is_none(), "another port");
            }
        }
        assert_eq!(inner(&frame.bytes(), 6080), None);
    }
}
