//! Frames made from what they should say, with right checksums and lengths; read back; described.
//!
//! A [`Frame`] is plain fields: whatever a test wants to be different, it sets. Lies (wrong lengths,
//! cut frames) are made by changing the bytes that come out.

mod icmp;
mod read;
mod tunnel;

pub use icmp::too_big;
pub use read::{Checksums, checksums, describe, l3};
pub use tunnel::{Outer, inner};

use std::net::{IpAddr, SocketAddr};

use zerocopy::IntoBytes;

use crate::{
    abi::Mac,
    wire::{
        checksum,
        eth::{self, EthernetHeader},
        ip::{self, ExtensionHeader, Ipv4Header, Ipv6Header},
        l4::{TcpHeader, UdpHeader},
    },
};

/// An Ethernet frame that carries an IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Destination MAC address.
    pub destination: Mac,
    /// Source MAC address.
    pub source: Mac,
    /// VLAN ids, outermost first.
    pub vlans: Vec<u16>,
    /// Source address; of the same family as the destination.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Whether DF is set (IPv4).
    pub dont_fragment: bool,
    /// IPv4 options, a multiple of four bytes, at most 40.
    pub options: Vec<u8>,
    /// IPv6 extension headers but the fragment header: number, and length in units of eight bytes
    /// beyond the first.
    pub extensions: Vec<(u8, u8)>,
    /// The part of a datagram that this is.
    pub fragment: Option<Fragment>,
    /// What comes behind the IP header.
    pub transport: Transport,
    /// What comes behind the transport header.
    pub payload: Vec<u8>,
    /// Bytes behind the packet.
    pub padding: usize,
}

/// A part of a datagram. Parts other than the first have no transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in units of eight bytes.
    pub offset: u16,
    /// Whether further fragments follow.
    pub more: bool,
}

/// What comes behind the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp {
        /// Source port.
        from: u16,
        /// Destination port.
        to: u16,
        /// Whether a checksum is computed; else the field is 0.
        checksum: bool,
    },
    /// An echo request (ping).
    Echo,
    /// Payload of this protocol number.
    Other(u8),
}

/// A TCP header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub from: u16,
    /// Destination port.
    pub to: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Flags, see [`crate::wire::l4`].
    pub flags: u8,
    /// Options, a multiple of four bytes, at most 40.
    pub options: Vec<u8>,
}

impl Frame {
    /// A TCP segment. The addresses are of one family.
    pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Self {
        let tcp = Tcp {
            from: from.port(),
            to: to.port(),
            flags,
            ..Tcp::default()
        };
        Self::new(from.ip(), to.ip(), Transport::Tcp(tcp))
    }

    /// A UDP datagram. The addresses are of one family.
    pub fn udp(from: SocketAddr, to: SocketAddr) -> Self {
        let transport = Transport::Udp {
            from: from.port(),
            to: to.port(),
            checksum: true,
        };
        Self::new(from.ip(), to.ip(), transport).payload(b"datagram")
    }

    /// A TCP segment or UDP datagram, by protocol number.
    pub fn of(protocol: u8, from: SocketAddr, to: SocketAddr, flags: u8) -> Self {
        match protocol {
            ip::TCP => Self::tcp(from, to, flags),
            _ => Self::udp(from, to),
        }
    }

    /// A ping.
    pub fn echo(from: IpAddr, to: IpAddr) -> Self {
        Self::new(from, to, Transport::Echo).payload(b"are you there?")
    }

    /// A packet of any protocol. The addresses are of one family.
    pub fn new(from: IpAddr, to: IpAddr, transport: Transport) -> Self {
        assert_eq!(
            from.is_ipv4(),
            to.is_ipv4(),
            "{from} and {to}: two families"
        );
        Self {
            destination: Mac([2, 0, 0, 0, 0, 1]),
            source: Mac([2, 0, 0, 0, 0, 2]),
            vlans: Vec::new(),
            from,
            to,
            ttl: 64,
            tos: 0,
            dont_fragment: false,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            transport,
            payload: Vec::new(),
            padding: 0,
        }
    }

    /// With these MAC addresses.
    #[must_use]
    pub const fn macs(mut self, source: Mac, destination: Mac) -> Self {
        self.source = source;
        self.destination = destination;
        self
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub const fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With these TCP numbers; other transports have none.
    #[must_use]
    pub const fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        if let Transport::Tcp(tcp) = &mut self.transport {
            tcp.sequence = sequence;
            tcp.acknowledgement = acknowledgement;
        }
        self
    }

    /// With these TCP flags; other transports have none.
    #[must_use]
    pub const fn flags(mut self, flags: u8) -> Self {
        if let Transport::Tcp(tcp) = &mut self.transport {
            tcp.flags = flags;
        }
        self
    }

    /// With DF set, where the family is IPv4.
    #[must_use]
    pub const fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// With this payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// As the part of a datagram at `offset` (in units of eight bytes).
    #[must_use]
    pub const fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { offset, more });
        self
    }

    /// With IPv4 options, or one more IPv6 extension header where the family is IPv6.
    #[must_use]
    pub fn irregular(mut self) -> Self {
        if self.from.is_ipv4() {
            self.options = vec![1, 1, 1, 0];
        } else {
            self.extensions.push((ip::DESTINATION_OPTIONS, 0));
        }
        self
    }

    /// Without a UDP checksum.
    #[must_use]
    pub const fn without_checksum(mut self) -> Self {
        if let Transport::Udp { checksum, .. } = &mut self.transport {
            *checksum = false;
        }
        self
    }

    /// With so many bytes behind the packet.
    #[must_use]
    pub const fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The other direction: addresses, ports and MACs exchanged, numbers as if all had arrived.
    #[must_use]
    pub fn answer(mut self, flags: u8) -> Self {
        core::mem::swap(&mut self.source, &mut self.destination);
        core::mem::swap(&mut self.from, &mut self.to);
        match &mut self.transport {
            Transport::Tcp(tcp) => {
                core::mem::swap(&mut tcp.from, &mut tcp.to);
                let next = tcp
                    .sequence
                    .wrapping_add(u32::from(tcp.flags & 3 != 0))
                    .wrapping_add(self.payload.len() as u32);
                tcp.sequence = tcp.acknowledgement;
                tcp.acknowledgement = next;
                tcp.flags = flags;
            }
            Transport::Udp { from, to, .. } => core::mem::swap(from, to),
            Transport::Echo | Transport::Other(_) => {}
        }
        self
    }

    /// Source address and port; port 0 where there is none.
    pub const fn source_socket(&self) -> SocketAddr {
        SocketAddr::new(self.from, self.ports().0)
    }

    /// Destination address and port; port 0 where there is none.
    pub const fn destination_socket(&self) -> SocketAddr {
        SocketAddr::new(self.to, self.ports().1)
    }

    const fn ports(&self) -> (u16, u16) {
        match &self.transport {
            Transport::Tcp(tcp) => (tcp.from, tcp.to),
            Transport::Udp { from, to, .. } => (*from, *to),
            Transport::Echo | Transport::Other(_) => (0, 0),
        }
    }

    /// IP protocol number of the transport.
    pub const fn protocol(&self) -> u8 {
        match &self.transport {
            Transport::Tcp(_) => ip::TCP,
            Transport::Udp { .. } => ip::UDP,
            Transport::Echo if self.from.is_ipv4() => 1,
            Transport::Echo => 58,
            Transport::Other(number) => *number,
        }
    }

    /// Where its packet begins: behind the VLAN tags.
    pub const fn l3(&self) -> usize {
        EthernetHeader::LEN + 4 * self.vlans.len()
    }

    /// With these VLAN tags, outermost first.
    #[must_use]
    pub fn tagged(mut self, vlans: &[u16]) -> Self {
        self.vlans = vlans.to_vec();
        self
    }

    /// Its parts of at most `bytes` bytes (a multiple of eight) behind the IP header, first part
    /// first.
    ///
    /// # Panics
    ///
    /// If it is longer than a datagram can be.
    pub fn fragments(&self, bytes: usize) -> Vec<Vec<u8>> {
        let whole = self.transport_bytes();
        let count = whole.len().div_ceil(bytes);
        (0..count)
            .map(|nth| {
                let from = nth * bytes;
                let part = &whole[from..whole.len().min(from + bytes)];
                let offset = u16::try_from(from / 8).expect("no datagram is longer");
                let frame = self.clone().fragment(offset, nth + 1 < count);
                frame.with_body(part)
            })
            .collect()
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let body = match self.fragment {
            Some(fragment) if fragment.offset != 0 => self.payload.clone(),
            _ => self.transport_bytes(),
        };
        self.with_body(&body)
    }

    /// The frame with this behind its IP header.
    fn with_body(&self, body: &[u8]) -> Vec<u8> {
        let mut bytes = self.destination.0.to_vec();
        bytes.extend(self.source.0);
        for vlan in &self.vlans {
            bytes.extend([0x81, 0x00]);
            bytes.extend(vlan.to_be_bytes());
        }
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes.extend(eth::IPV4);
                bytes.extend(self.v4(from.octets(), to.octets(), body.len()));
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                bytes.extend(eth::IPV6);
                bytes.extend(self.v6(from.octets(), to.octets(), body.len()));
            }
            _ => unreachable!("`new` refuses two families"),
        }
        bytes.extend(body);
        bytes.resize(bytes.len() + self.padding, 0xa5);
        bytes
    }

    fn v4(&self, source: [u8; 4], destination: [u8; 4], body: usize) -> Vec<u8> {
        let length = Ipv4Header::LEN + self.options.len();
        let fragment = self
            .fragment
            .map_or(0, |f| f.offset | if f.more { 0x2000 } else { 0 });
        let header = Ipv4Header {
            version_ihl: 0x40 | (length / 4) as u8,
            tos: self.tos,
            total_length: ((length + body) as u16).to_be_bytes(),
            identification: [0x12, 0x34],
            fragment: (fragment | u16::from(self.dont_fragment) << 14).to_be_bytes(),
            ttl: self.ttl,
            protocol: self.protocol(),
            checksum: [0; 2],
            source,
            destination,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(&self.options);
        let sum = checksum::full(checksum::Delta::NONE, &bytes);
        bytes[10..12].copy_from_slice(&sum);
        bytes
    }

    fn v6(&self, source: [u8; 16], destination: [u8; 16], body: usize) -> Vec<u8> {
        let mut headers: Vec<(u8, Vec<u8>)> = self
            .extensions
            .iter()
            .map(|&(number, length)| {
                let mut bytes = vec![0u8; (usize::from(length) + 1) * 8];
                bytes[1] = length;
                (number, bytes)
            })
            .collect();
        if let Some(Fragment { offset, more }) = self.fragment {
            let header = ExtensionHeader {
                next_header: 0,
                length: 0,
                fragment: (offset << 3 | u16::from(more)).to_be_bytes(),
                rest: [0x12, 0x34, 0x56, 0x78],
            };
            headers.push((ip::FRAGMENT, header.as_bytes().to_vec()));
        }
        let mut next = self.protocol();
        for (number, bytes) in headers.iter_mut().rev() {
            bytes[0] = next;
            next = *number;
        }
        let behind: usize = headers.iter().map(|(_, bytes)| bytes.len()).sum();
        let header = Ipv6Header {
            version_class_flow: [0x60 | self.tos >> 4, self.tos << 4, 0x0a, 0xbc],
            payload_length: ((behind + body) as u16).to_be_bytes(),
            next_header: next,
            hop_limit: self.ttl,
            source,
            destination,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(headers.into_iter().flat_map(|(_, bytes)| bytes));
        bytes
    }

    /// Transport header and payload, with the checksum.
    fn transport_bytes(&self) -> Vec<u8> {
        let mut bytes = match &self.transport {
            Transport::Tcp(tcp) => tcp_header(tcp),
            Transport::Udp { from, to, .. } => UdpHeader {
                source: from.to_be_bytes(),
                destination: to.to_be_bytes(),
                length: ((UdpHeader::LEN + self.payload.len()) as u16).to_be_bytes(),
                checksum: [0; 2],
            }
            .as_bytes()
            .to_vec(),
            Transport::Echo => vec![
                if self.from.is_ipv4() { 8 } else { 128 },
                0,
                0,
                0,
                0,
                1,
                0,
                1,
            ],
            Transport::Other(_) => Vec::new(),
        };
        bytes.extend(&self.payload);
        let pseudo = match (&self.transport, self.from) {
            (Transport::Echo, IpAddr::V4(_)) => Vec::new(),
            _ => pseudo_header(self.from, self.to, self.protocol(), bytes.len()),
        };
        let sum = checksum::full(checksum::sum(&pseudo), &bytes);
        match &self.transport {
            Transport::Tcp(_) => bytes[16..18].copy_from_slice(&sum),
            Transport::Udp { checksum: true, .. } => {
                let sum = if sum == [0, 0] { [0xff, 0xff] } else { sum };
                bytes[6..8].copy_from_slice(&sum);
            }
            Transport::Echo => bytes[2..4].copy_from_slice(&sum),
            Transport::Udp { .. } | Transport::Other(_) => {}
        }
        bytes
    }
}

fn tcp_header(tcp: &Tcp) -> Vec<u8> {
    let length = TcpHeader::LEN + tcp.options.len();
    let header = TcpHeader {
        source: tcp.from.to_be_bytes(),
        destination: tcp.to.to_be_bytes(),
        sequence: tcp.sequence.to_be_bytes(),
        acknowledgement: tcp.acknowledgement.to_be_bytes(),
        data_offset: ((length / 4) << 4) as u8,
        flags: tcp.flags,
        window: [0xff, 0xff],
        checksum: [0; 2],
        urgent: [0; 2],
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(&tcp.options);
    bytes
}

/// What TCP and UDP checksums cover besides the segment (RFC 9293 section 3.1, RFC 8200 section
/// 8.1).
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// An ARP request: who has `target`, tell `sender`.
pub fn arp(source: Mac, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let ethernet = EthernetHeader {
        destination: [0xff; 6],
        source: source.0,
        ether_type: [0x08, 0x06],
    };
    let mut bytes = ethernet.as_bytes().to_vec();
    bytes.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(source.0);
    bytes.extend(sender);
    bytes.extend([0; 6]);
    bytes.extend(target);
    bytes.resize(60, 0);
    bytes
}
