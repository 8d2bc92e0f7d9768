//! A frame as named fields, so that two frames can be compared in words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    abi::Mac,
    wire::{
        eth::{self, EthernetHeader},
        ip::{self, ExtensionHeader, Ipv4Header, Ipv6Header},
        l4::{TcpHeader, UdpHeader},
    },
};
use serde::Serialize;
use zerocopy::FromBytes;

/// Protocol numbers of an IP packet inside another one (RFC 2003, RFC 4213).
const INSIDE: [u8; 2] = [4, 41];

/// VLAN tags: IEEE 802.1Q and 802.1ad.
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// TCP flags by their letters, as tcpdump prints them.
const FLAGS: [(u8, char, &str); 8] = [
    (0x02, 'S', "SYN"),
    (0x01, 'F', "FIN"),
    (0x04, 'R', "RST"),
    (0x08, 'P', "PSH"),
    (0x20, 'U', "URG"),
    (0x40, 'E', "ECE"),
    (0x80, 'W', "CWR"),
    (0x10, 'A', "ACK"),
];

/// The TCP flags that `text` names: letters as `S`, `SA`, `PA`; `.` is `A`.
///
/// # Errors
///
/// When a letter names none.
pub fn flags(text: &str) -> Result<u8, String> {
    let mut flags = 0;
    for letter in text.chars() {
        let letter = match letter.to_ascii_uppercase() {
            '.' => 'A',
            letter => letter,
        };
        let known = FLAGS.iter().find(|(_, known, _)| *known == letter);
        let (bit, ..) = known.ok_or("use letters of SFRPUEWA, as SA for SYN and ACK")?;
        flags |= bit;
    }
    Ok(flags)
}

/// A part of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    bytes: Vec<u8>,
    text: String,
}

/// A field that a packet left with other bytes than it came with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its name.
    pub field: String,
    /// Its value before; null if it was not there.
    pub before: Option<String>,
    /// Its value afterwards; null if it is gone.
    pub after: Option<String>,
}

/// What differs between two frames, in the order of the bytes of the second.
pub(super) fn changes(before: &[u8], after: &[u8]) -> Vec<Change> {
    let (before, after) = (fields(before), fields(after));
    let mut changes = Vec::new();
    for field in &after {
        let old = before.iter().find(|old| old.name == field.name);
        if old.is_none_or(|old| old.bytes != field.bytes) {
            changes.push(Change {
                field: field.name.clone(),
                before: old.map(|old| old.text.clone()),
                after: Some(field.text.clone()),
            });
        }
    }
    for old in before {
        if !after.iter().any(|field| field.name == old.name) {
            changes.push(Change {
                field: old.name,
                before: Some(old.text),
                after: None,
            });
        }
    }
    changes
}

/// A frame's MAC addresses: destination, source.
pub(super) fn macs(frame: &[u8]) -> Option<(Mac, Mac)> {
    let (ethernet, _) = EthernetHeader::read_from_prefix(frame).ok()?;
    Some((Mac(ethernet.destination), Mac(ethernet.source)))
}

/// A MAC address in its usual notation.
pub(super) fn mac(Mac(bytes): Mac) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// The packet in a frame, in one line.
pub(super) fn line(frame: &[u8]) -> String {
    let mut walk = Walk::default();
    walk.frame(frame);
    let Some(packet) = walk.packet else {
        return match EthernetHeader::read_from_prefix(frame) {
            Ok((EthernetHeader { ether_type, .. }, _)) => format!(
                "{} bytes of type {:#06x}, no whole IP packet",
                frame.len(),
                u16::from_be_bytes(ether_type)
            ),
            Err(_) => format!("{} bytes, no Ethernet header", frame.len()),
        };
    };
    let Packet {
        from,
        to,
        what,
        length,
        ttl,
    } = packet;
    let end = |(address, port): (IpAddr, Option<u16>)| match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    format!(
        "{} > {}, {what}, {length} bytes, TTL {ttl}",
        end(from),
        end(to)
    )
}

fn fields(frame: &[u8]) -> Vec<Field> {
    let mut walk = Walk::default();
    walk.frame(frame);
    walk.fields
}

/// The innermost IP packet.
#[derive(Debug)]
struct Packet {
    from: (IpAddr, Option<u16>),
    to: (IpAddr, Option<u16>),
    what: String,
    length: usize,
    ttl: u8,
}

/// Goes through a frame from its beginning.
#[derive(Debug, Default)]
struct Walk {
    fields: Vec<Field>,
    packet: Option<Packet>,
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

    fn frame(&mut self, frame: &[u8]) {
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
        while let (true, [a, b, c, d, ..]) = (TAGS.contains(&ether_type), rest) {
            let id = u16::from_be_bytes([*a, *b]) & 0x0fff;
            self.field("VLAN", &[*a, *b], id.to_string());
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
            _ if INSIDE.contains(&number) => {
                // What was read so far is the outer packet.
                for field in &mut self.fields {
                    if !field.name.ends_with("MAC") {
                        field.name = format!("outer {}", field.name);
                    }
                }
                match number {
                    41 => self.v6(body),
                    _ => self.v4(body),
                }
            }
            _ => self.rest(body),
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

/// A protocol's name, or its number.
pub(super) fn protocol(number: u8) -> String {
    match number {
        ip::TCP => "TCP".to_owned(),
        ip::UDP => "UDP".to_owned(),
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        number => format!("protocol {number}"),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::host::{frame::Frame, world::at};

    use super::*;

    #[test]
    fn letters_are_flags() {
        assert_eq!(flags("S"), Ok(0x02));
        assert_eq!(flags("sa"), Ok(0x12));
        assert_eq!(flags("S."), Ok(0x12));
        assert_eq!(flags(""), Ok(0));
        assert!(flags("SX").is_err());
    }

    #[test]
    fn only_what_differs_is_named() {
        let frame = Frame::udp(at("198.51.100.7:4000"), at("203.0.113.10:53"));
        let mut other = frame.clone().ttl(63);
        other.to = "10.0.1.5".parse().unwrap();
        let changes = changes(&frame.bytes(), &other.bytes());
        let names: Vec<&str> = changes.iter().map(|change| &*change.field).collect();
        let expected = ["TTL", "header checksum", "destination address", "checksum"];
        assert_eq!(names, expected);
        assert_eq!(changes[2].before.as_deref(), Some("203.0.113.10"));
        assert_eq!(changes[2].after.as_deref(), Some("10.0.1.5"));
    }

    #[test]
    fn a_packet_inside_another_has_the_plain_names() {
        let inner = Frame::tcp(at("198.51.100.7:4000"), at("203.0.113.10:80"), 0x02).bytes();
        let outer = Frame::new(
            "10.0.1.1".parse().unwrap(),
            "10.0.1.5".parse().unwrap(),
            lb_common::host::frame::Transport::Other(4),
        )
        .payload(&inner[14..])
        .bytes();
        assert_eq!(
            line(&outer),
            "198.51.100.7:4000 > 203.0.113.10:80, TCP SYN, 40 bytes, TTL 64"
        );
        let added = changes(&inner, &outer);
        assert!(
            added.iter().all(|c| c.field.starts_with("outer ")),
            "{added:?}"
        );
    }

    #[test]
    fn what_is_no_packet_is_said_to_be_none() {
        assert_eq!(line(&[1, 2, 3]), "3 bytes, no Ethernet header");
        let arp = lb_common::host::frame::arp(Mac([2; 6]), [10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(line(&arp), "60 bytes of type 0x0806, no whole IP packet");
    }
}
