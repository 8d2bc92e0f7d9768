//! Frames back to what they say: for tests that answer a frame, check it, or show it.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use zerocopy::FromBytes;

use super::{Frame, Tcp, Transport, pseudo_header};
use crate::{
    abi::Mac,
    wire::{
        checksum,
        eth::{self, EthernetHeader},
        ip::{self, Ipv4Header, Ipv6Header},
        l4::{ACK, FIN, Ports, RST, SYN, TcpHeader, UdpHeader},
    },
};

/// Whether a frame's checksums are right; none where there is no such checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// Of the IPv4 header.
    pub ip: Option<bool>,
    /// Of TCP, UDP, ICMP or ICMPv6. Fragments have none that could be checked, UDP over IPv4 may go without.
    pub transport: Option<bool>,
}

/// An IP packet cut into its parts.
pub(super) struct Cut<'f> {
    from: IpAddr,
    to: IpAddr,
    ttl: u8,
    tos: u8,
    pub(super) protocol: u8,
    /// The IPv4 header, options included; empty for IPv6.
    v4_header: &'f [u8],
    /// Whether routers must not cut it; always so in IPv6.
    dont_fragment: bool,
    /// A fragment's offset and whether more follow.
    pub(super) fragment: (u16, bool),
    extensions: Vec<(u8, u8)>,
    pub(super) body: &'f [u8],
    pub(super) padding: usize,
}

pub(super) fn cut(frame: &[u8]) -> Option<Cut<'_>> {
    let l3 = l3(frame)?;
    let packet = &frame[l3..];
    match [frame[l3 - 2], frame[l3 - 1]] {
        eth::IPV4 => cut_v4(packet),
        eth::IPV6 => cut_v6(packet),
        _ => None,
    }
}

/// Where the packet of a frame begins: behind at most two VLAN tags.
pub fn l3(frame: &[u8]) -> Option<usize> {
    let is_tag = |at: usize| matches!(frame.get(at - 2..at), Some([0x81, 0] | [0x88, 0xa8]));
    let untagged = EthernetHeader::LEN;
    let l3 = [untagged, untagged + 4, untagged + 8]
        .into_iter()
        .find(|&at| !is_tag(at))?;
    (l3 <= frame.len()).then_some(l3)
}

fn cut_v4(packet: &[u8]) -> Option<Cut<'_>> {
    let (header, _) = Ipv4Header::read_from_prefix(packet).ok()?;
    let length = usize::from(header.header_length());
    let total = usize::from(u16::from_be_bytes(header.total_length));
    if header.version() != 4 || length < Ipv4Header::LEN {
        return None;
    }
    Some(Cut {
        from: Ipv4Addr::from(header.source).into(),
        to: Ipv4Addr::from(header.destination).into(),
        ttl: header.ttl,
        tos: header.tos,
        protocol: header.protocol,
        v4_header: packet.get(..length)?,
        dont_fragment: header.dont_fragment(),
        fragment: (header.fragment_offset(), header.more_fragments()),
        extensions: Vec::new(),
        body: packet.get(length..total)?,
        padding: packet.len() - total,
    })
}

fn cut_v6(packet: &[u8]) -> Option<Cut<'_>> {
    let (header, behind) = Ipv6Header::read_from_prefix(packet).ok()?;
    let total = usize::from(u16::from_be_bytes(header.payload_length));
    if header.version() != 6 {
        return None;
    }
    let mut body = behind.get(..total)?;
    let mut protocol = header.next_header;
    let (mut fragment, mut extensions) = ((0, false), Vec::new());
    while let ip::HOP_BY_HOP | ip::ROUTING | ip::DESTINATION_OPTIONS | ip::FRAGMENT = protocol {
        let (extension, _) = ip::ExtensionHeader::read_from_prefix(body).ok()?;
        let length = if protocol == ip::FRAGMENT {
            fragment = (extension.fragment_offset(), extension.more_fragments());
            8
        } else {
            usize::from(extension.header_length())
        };
        extensions.push((protocol, extension.length));
        body = body.get(length..)?;
        protocol = extension.next_header;
        if fragment.0 != 0 {
            break;
        }
    }
    let [a, b, ..] = header.version_class_flow;
    Some(Cut {
        from: Ipv6Addr::from(header.source).into(),
        to: Ipv6Addr::from(header.destination).into(),
        ttl: header.hop_limit,
        tos: a << 4 | b >> 4,
        protocol,
        v4_header: &[],
        dont_fragment: true,
        fragment,
        extensions,
        body,
        padding: behind.len() - total,
    })
}

/// Computes a frame's checksums anew and compares.
pub fn checksums(frame: &[u8]) -> Checksums {
    let Some(cut) = cut(frame) else {
        return Checksums::default();
    };
    let ip = (!cut.v4_header.is_empty())
        .then(|| checksum::full(checksum::Delta::NONE, cut.v4_header) == [0, 0]);
    Checksums {
        ip,
        transport: transport_checksum(&cut),
    }
}

fn transport_checksum(cut: &Cut<'_>) -> Option<bool> {
    if cut.fragment != (0, false) {
        return None;
    }
    let body = match cut.protocol {
        ip::TCP if cut.body.len() >= TcpHeader::LEN => cut.body,
        ip::UDP => {
            let (udp, _) = UdpHeader::read_from_prefix(cut.body).ok()?;
            if udp.checksum == [0, 0] {
                return if cut.from.is_ipv4() {
                    None
                } else {
                    Some(false)
                };
            }
            cut.body
                .get(..usize::from(u16::from_be_bytes(udp.length)))?
        }
        ip::ICMP if cut.from.is_ipv4() => {
            return Some(checksum::full(checksum::Delta::NONE, cut.body) == [0, 0]);
        }
        ip::ICMPV6 if cut.from.is_ipv6() => cut.body,
        _ => return None,
    };
    let pseudo = pseudo_header(cut.from, cut.to, cut.protocol, body.len());
    Some(checksum::full(checksum::sum(&pseudo), body) == [0, 0])
}

impl Frame {
    /// Reads a TCP or UDP packet that is whole and has neither VLAN tags nor options nor extension
    /// headers; none for others.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let (ethernet, _) = EthernetHeader::read_from_prefix(frame).ok()?;
        let cut = cut(frame)?;
        let regular = l3(frame)? == EthernetHeader::LEN
            && cut.fragment == (0, false)
            && cut.extensions.is_empty()
            && matches!(cut.v4_header.len(), 0 | Ipv4Header::LEN);
        if !regular {
            return None;
        }
        let (transport, payload) = transport(&cut)?;
        Some(Self {
            tos: cut.tos,
            dont_fragment: cut.dont_fragment && cut.from.is_ipv4(),
            padding: cut.padding,
            ..Self::new(cut.from, cut.to, transport)
                .macs(Mac(ethernet.source), Mac(ethernet.destination))
                .ttl(cut.ttl)
                .payload(payload)
        })
    }
}

fn transport<'f>(cut: &Cut<'f>) -> Option<(Transport, &'f [u8])> {
    match cut.protocol {
        ip::TCP => {
            let (tcp, _) = TcpHeader::read_from_prefix(cut.body).ok()?;
            let options = cut
                .body
                .get(TcpHeader::LEN..usize::from(tcp.header_length()))?;
            let transport = Transport::Tcp(Tcp {
                from: u16::from_be_bytes(tcp.source),
                to: u16::from_be_bytes(tcp.destination),
                sequence: u32::from_be_bytes(tcp.sequence),
                acknowledgement: u32::from_be_bytes(tcp.acknowledgement),
                flags: tcp.flags,
                options: options.to_vec(),
            });
            Some((transport, &cut.body[usize::from(tcp.header_length())..]))
        }
        ip::UDP => {
            let (udp, _) = UdpHeader::read_from_prefix(cut.body).ok()?;
            let transport = Transport::Udp {
                from: u16::from_be_bytes(udp.source),
                to: u16::from_be_bytes(udp.destination),
                checksum: udp.checksum != [0, 0],
            };
            let end = usize::from(u16::from_be_bytes(udp.length));
            Some((transport, cut.body.get(UdpHeader::LEN..end)?))
        }
        _ => None,
    }
}

/// A frame in words, one line, and its bytes below.
pub fn describe(frame: &[u8]) -> String {
    let mut text = format!("{} bytes", frame.len());
    describe_into(&mut text, frame);
    for (row, bytes) in frame.chunks(32).enumerate().take(6) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        _ = write!(text, "\n  {:04x}  {hex}", row * 32);
    }
    text
}

fn describe_into(text: &mut String, frame: &[u8]) {
    let Ok((ethernet, _)) = EthernetHeader::read_from_prefix(frame) else {
        text.push_str(", no Ethernet header");
        return;
    };
    let [source, destination] = [ethernet.source, ethernet.destination].map(mac);
    _ = write!(text, ", {source} > {destination}");
    let Some(cut) = cut(frame) else {
        let [a, b] = ethernet.ether_type;
        _ = write!(text, ", type {a:02x}{b:02x}, no whole IP packet");
        return;
    };
    let checksums = checksums(frame);
    _ = write!(text, " | {} > {} ttl {}", cut.from, cut.to, cut.ttl);
    if cut.tos != 0 {
        _ = write!(text, " tos {:#04x}", cut.tos);
    }
    if cut.v4_header.len() > Ipv4Header::LEN {
        _ = write!(text, " options {} B", cut.v4_header.len() - Ipv4Header::LEN);
    }
    if !cut.extensions.is_empty() {
        _ = write!(text, " extensions {:?}", cut.extensions);
    }
    if cut.fragment != (0, false) {
        let more = if cut.fragment.1 { "+" } else { "" };
        _ = write!(text, " fragment {}{more}", cut.fragment.0);
    }
    text.push_str(verdict(" header checksum", checksums.ip));
    _ = write!(text, " | protocol {}", cut.protocol);
    if cut.fragment.0 == 0
        && let (ip::TCP | ip::UDP, Ok((ports, _))) =
            (cut.protocol, Ports::read_from_prefix(cut.body))
    {
        let [from, to] = [ports.source, ports.destination].map(u16::from_be_bytes);
        _ = write!(text, " {from} > {to}");
    }
    if let Some((Transport::Tcp(tcp), _)) = transport(&cut) {
        let names = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (ACK, '.')];
        let flags: String = names
            .iter()
            .filter(|(bit, _)| tcp.flags & bit != 0)
            .map(|(_, name)| *name)
            .collect();
        _ = write!(
            text,
            " [{flags}] seq {} ack {}",
            tcp.sequence, tcp.acknowledgement
        );
    }
    text.push_str(verdict(" checksum", checksums.transport));
    _ = write!(
        text,
        " | body {} B padding {} B",
        cut.body.len(),
        cut.padding
    );
}

fn verdict(what: &'static str, right: Option<bool>) -> &'static str {
    match (what, right) {
        (_, None | Some(true)) => "",
        (" checksum", Some(false)) => " CHECKSUM WRONG",
        (_, Some(false)) => " HEADER CHECKSUM WRONG",
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
