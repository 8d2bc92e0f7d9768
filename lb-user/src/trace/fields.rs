//! A frame as named fields, so that two frames can be compared in words.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::Mac,
    wire::{eth::EthernetHeader, ip},
};
use serde::Serialize;
use zerocopy::FromBytes;

use super::walk::{Field, Packet, Walk};

/// TCP flags by their letters, as tcpdump prints them.
pub(super) const FLAGS: [(u8, char, &str); 8] = [
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
    use lb_common::host::{
        frame::{Frame, Transport},
        world::at,
    };

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
        let (from, to) = (at("10.0.1.1:50000"), at("10.0.1.5:6080"));
        let inner = Frame::tcp(at("[2001:db8::7]:4000"), at("[2001:db8::10]:80"), 0x02).bytes();
        let ipip = Frame::new(from.ip(), to.ip(), Transport::Other(41)).payload(&inner[14..]);
        let gue = Frame::udp(from, to).payload(&inner[14..]);
        for outer in [ipip.bytes(), gue.bytes()] {
            assert_eq!(
                line(&outer),
                "[2001:db8::7]:4000 > [2001:db8::10]:80, TCP SYN, 60 bytes, TTL 64"
            );
            let added = changes(&inner, &outer);
            assert!(!added.is_empty());
            assert!(
                added.iter().all(|c| c.field.starts_with("outer ")),
                "{added:?}"
            );
        }
    }

    #[test]
    fn what_is_no_packet_is_said_to_be_none() {
        assert_eq!(line(&[1, 2, 3]), "3 bytes, no Ethernet header");
        let arp = lb_common::host::frame::arp(Mac([2; 6]), [10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(line(&arp), "60 bytes of type 0x0806, no whole IP packet");
    }
}
