//! Goes through a frame from its beginning and names its fields.
//!
//! Of a packet inside another one the inner fields have the plain names, and the outer ones are
//! called so: what a tunnel mode puts in front is what is new.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    abi::Mac,
    wire::{
        eth::{self, EthernetHeader},
        ip::{self, ExtensionHeader, Ipv4Header, Ipv6Header},
        l4::{TcpHeader, UdpHeader},
    },
};
use zerocopy::FromBytes;

use super::fields::{FLAGS, mac, protocol};

/// Protocol numbers of an IP packet inside another one (RFC 2003, RFC 4213).
const INSIDE: [u8; 2] = [4, 41];

/// VLAN tags: IEEE 802.1Q and 802.1ad.
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// A part of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    pub(super) text: String,
}

/// The innermost IP packet.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) from: (IpAddr, Option<u16>),
    pub(super) to: (IpAddr, Option<u16>),
    pub(super) what: String,
    pub(super) length: usize,
    pub(super) ttl: u8,
}

/// Goes through a frame from its beginning.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub(super) fields: Vec<Field>,
    pub(super) packet: Option<Packet>,
}

impl Walk {
    fn field(&mut self, name: &str, bytes: &[u8], text: String) {
        self.fields.push(Field {
            name: name.to_owned(),
            bytes: bytes.to_vec(),
            text,
        });
    }

    fn rest(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.field("payload", bytes, format!("{} bytes", bytes.len()));
        }
    }

    /// The whole of a frame.
    pub(super) fn frame(&mut self, frame: &[u8]) {
        let Ok((ethernet, mut rest)) = EthernetHeader::read_from_prefix(frame) else {
            return self.rest(frame);
        };
        let EthernetHeader {
            destination,
            source,
            mut ether_type,
        } = ethernet;
        self.field("destination MAC", &destination, mac(Mac(destination)));
        self.field("source MAC", &source, mac(Mac(source)));
        let mut tags = 0;
        while let (true, [a, b, c, d, ..]) = (TAGS.contains(&ether_type), rest) {
            let id = u16::from_be_bytes([*a, *b]) & 0x0fff;
            tags += 1;
            let name = match tags {
                1 => "VLAN".to_owned(),
                more => format!("VLAN {more}"),
            };
            self.field(&name, &[*a, *b], id.to_string());
            ether_type = [*c, *d];
            rest = &rest[4..];
        }
        match ether_type {
            eth::IPV4 => self.v4(rest),
            eth::IPV6 => self.v6(rest),
            _ => self.rest(rest),
        }
    }

    fn v4(&mut self, packet: &[u8]) {
        let Ok((header, _)) = Ipv4Header::read_from_prefix(packet) else {
            return self.rest(packet);
        };
        let length = usize::from(header.header_length());
        let total = usize::from(u16::from_be_bytes(header.total_length));
        let (Some(options), Some(body)) = (
            packet.get(Ipv4Header::LEN..length),
            packet.get(length..total),
        ) else {
            return self.rest(packet);
        };
        let source = Ipv4Addr::from(header.source);
        let destination = Ipv4Addr::from(header.destination);
        self.field("length", &header.total_length, total.to_string());
        self.field("TOS", &[header.tos], format!("{:#04x}", header.tos));
        let id = u16::from_be_bytes(header.identification);
        self.field("identification", &header.identification, id.to_string());
        self.field("TTL", &[header.ttl], header.ttl.to_string());
        self.checksum("header checksum", header.checksum);
        self.field("source address", &header.source, source.to_string());
        self.field(
            "destination address",
            &header.destination,
            destination.to_string(),
        );
        if !options.is_empty() {
            self.field("options", options, format!("{} bytes", options.len()));
        }
        self.packet = Some(Packet {
            from: (source.into(), None),
            to: (destination.into(), None),
            what: match (header.fragment_offset(), header.more_fragments()) {
                (0, false) => protocol(header.protocol),
                (0, true) => format!("{} (first fragment)", protocol(header.protocol)),
                (offset, _) => {
                    format!("{} (fragment at {})", protocol(header.protocol), offset * 8)
                }
            },
            length: total,
            ttl: header.ttl,
        });
        if header.fragment_offset() != 0 {
            return self.rest(body);
        }
        self.body(header.protocol, body);
    }

    fn v6(&mut self, packet: &[u8]) {
        let Ok((header, behind)) = Ipv6Header::read_from_prefix(packet) else {
            return self.rest(packet);
        };
        let payload = usize::from(u16::from_be_bytes(header.payload_length));
        let Some(mut body) = behind.get(..payload) else {
            return self.rest(packet);
        };
        let source = Ipv6Addr::from(header.source);
        let destination = Ipv6Addr::from(header.destination);
        let [a, b, ..] = header.version_class_flow;
        let class = a << 4 | b >> 4;
        self.field("length", &header.payload_length, payload.to_string());
        self.field("traffic class", &[class], format!("{class:#04x}"));
        self.field(
            "hop limit",
            &[header.hop_limit],
            header.hop_limit.to_string(),
        );
        self.field("source address", &header.source, source.to_string());
        self.field(
            "destination address",
            &header.destination,
            destination.to_string(),
        );
        let mut next = header.next_header;
        let mut offset = 0;
        while let ip::HOP_BY_HOP | ip::ROUTING | ip::DESTINATION_OPTIONS | ip::FRAGMENT = next {
            let Ok((extension, _)) = ExtensionHeader::read_from_prefix(body) else {
                break;
            };
            let mut length = usize::from(extension.header_length());
            if next == ip::FRAGMENT {
                (offset, length) = (extension.fragment_offset(), ExtensionHeader::LEN);
            }
            let Some(rest) = body.get(length..) else {
                break;
            };
            (next, body) = (extension.next_header, rest);
            if offset != 0 {
                break;
            }
        }
        self.packet = Some(Packet {
            from: (source.into(), None),
            to: (destination.into(), None),
            what: match offset {
                0 => protocol(next),
                offset => format!("{} (fragment at {})", protocol(next), offset * 8),
            },
            length: Ipv6Header::LEN + payload,
            ttl: header.hop_limit,
        });
        if offset != 0 {
            return self.rest(body);
        }
        self.body(next, body);
    }

    fn body(&mut self, number: u8, body: &[u8]) {
        match number {
            ip::TCP => self.tcp(body),
            ip::UDP => self.udp(body),
            _ if INSIDE.contains(&number) => self.inside(body),
            _ => self.rest(body),
        }
    }

    /// A packet inside the one that was read so far.
    fn inside(&mut self, packet: &[u8]) {
        for field in &mut self.fields {
            if !field.name.ends_with("MAC") {
                field.name = format!("outer {}", field.name);
            }
        }
        match packet.first() {
            Some(first) if first >> 4 == 6 => self.v6(packet),
            _ => self.v4(packet),
        }
    }

    fn tcp(&mut self, body: &[u8]) {
        let Ok((tcp, rest)) = TcpHeader::read_from_prefix(body) else {
            return self.rest(body);
        };
        self.ports(tcp.source, tcp.destination);
        let sequence = u32::from_be_bytes(tcp.sequence);
        let acknowledgement = u32::from_be_bytes(tcp.acknowledgement);
        self.field("sequence", &tcp.sequence, sequence.to_string());
        self.field(
            "acknowledgement",
            &tcp.acknowledgement,
            acknowledgement.to_string(),
        );
        let names: Vec<&str> = FLAGS
            .iter()
            .filter(|(bit, ..)| tcp.flags & bit != 0)
            .map(|(.., name)| *name)
            .collect();
        let names = match names.as_slice() {
            [] => "no flags".to_owned(),
            names => names.join(" "),
        };
        self.field("flags", &[tcp.flags], names.clone());
        self.checksum("checksum", tcp.checksum);
        let options = usize::from(tcp.header_length()).saturating_sub(TcpHeader::LEN);
        let (options, payload) = rest.split_at(options.min(rest.len()));
        if !options.is_empty() {
            let hex: String = options.iter().map(|byte| format!("{byte:02x}")).collect();
            self.field("TCP options", options, hex);
        }
        self.rest(payload);
        if let Some(packet) = &mut self.packet {
            packet.what = format!("{} {names}", packet.what);
        }
    }

    fn udp(&mut self, body: &[u8]) {
        let Ok((udp, payload)) = UdpHeader::read_from_prefix(body) else {
            return self.rest(body);
        };
        self.ports(udp.source, udp.destination);
        let length = u16::from_be_bytes(udp.length);
        self.field("UDP length", &udp.length, length.to_string());
        self.checksum("checksum", udp.checksum);
        if is_packet(payload) {
            return self.inside(payload);
        }
        self.rest(payload);
    }

    fn ports(&mut self, source: [u8; 2], destination: [u8; 2]) {
        let [from, to] = [source, destination].map(u16::from_be_bytes);
        self.field("source port", &source, from.to_string());
        self.field("destination port", &destination, to.to_string());
        if let Some(packet) = &mut self.packet {
            (packet.from.1, packet.to.1) = (Some(from), Some(to));
        }
    }

    fn checksum(&mut self, name: &str, bytes: [u8; 2]) {
        let value = u16::from_be_bytes(bytes);
        self.field(name, &bytes, format!("{value:#06x}"));
    }
}

/// Whether a UDP payload is an IP packet, whole and nothing else: that of a tunnel (GUE variant 1,
/// whatever its port).
fn is_packet(payload: &[u8]) -> bool {
    let length = match payload {
        [0x45..=0x4f, _, a, b, ..] => usize::from(u16::from_be_bytes([*a, *b])),
        [0x60..=0x6f, _, _, _, a, b, ..] => {
            Ipv6Header::LEN + usize::from(u16::from_be_bytes([*a, *b]))
        }
        _ => return false,
    };
    length == payload.len() && length >= Ipv4Header::LEN
}
