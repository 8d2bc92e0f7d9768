//! Packets that are answered instead of forwarded: those too long for their tunnel.
//!
//! The client is told the longest packet that fits (the way's MTU less the outer headers): by ICMP
//! "fragmentation needed" (RFC 1191 section 4) or ICMPv6 "packet too big" (RFC 4443 section 3.2), from
//! the service's address, with as much of the packet as fits into 576 bytes (RFC 1812 section 4.3.2.3)
//! or 1280. It goes back where the packet came from. Never told are a source that nobody has alone,
//! and clients of a prefix (/24, /56) that was told often enough in this second (RFC 1812 section
//! 4.3.2.8, RFC 4443 section 2.4 (f)).
//!
//! An IPv4 packet without DF ought to be cut (RFC 2003 section 5 lets the tunnel's entry do that before
//! or after it encapsulates). XDP cannot make two frames of one, and the kernel's stack must never see
//! the packet, for it would take it for its own. So it is answered as one with DF and counted by a
//! reason of its own, as katran does; IPVS, which lives in the stack, cuts. A host that gets the
//! message sends smaller packets, or cuts them itself.
//!
//! Runs as a program of its own, with a stack of its own, after [`super::process`] has left its
//! decision in working memory: it happens to one packet in many thousands.

use super::{
    Flows, Packet, Tables, Verdict,
    parse::{self, Family, Parsed},
    rewrite::{self, front},
};
use crate::{
    abi::{Address, Answered, Reason, Ticks},
    wire::{
        checksum::Delta,
        eth,
        icmp::{self, IcmpHeader, Word},
        ip::{self, Ipv4Header, Ipv6Header},
    },
};

/// Longest ICMP packet with an IPv4 packet in it (RFC 1812 section 4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest ICMPv6 packet: what every way carries (RFC 8200 section 5).
const LONGEST_V6: usize = 1280;

/// Shortest packets that every way carries (RFC 791 section 3.2, RFC 8200 section 5): less is never
/// asked of a client.
const LEAST_V4: u16 = 68;
const LEAST_V6: u16 = 1280;

/// TTL and hop limit of an answer.
const TTL: u8 = 64;
/// TOS and traffic class: internetwork control (RFC 1812 section 4.3.2.5).
const TOS: u8 = 0xc0;

/// What a packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Longest packet that fits, in bytes.
    pub mtu: u16,
    /// Its counter if it is answered.
    pub reason: Reason,
}

/// Answers a packet. Counts it, answered or not.
#[inline(always)]
pub fn answer<P: Packet, T: Tables, F: Flows>(
    packet: &mut P,
    parsed: &Parsed,
    answer: &Answer,
    tables: &T,
    flows: &mut F,
) -> (Verdict, Reason) {
    let (ifindex, length) = (packet.ifindex(), packet.length());
    let (verdict, reason) = match too_big(packet, parsed, answer.mtu, tables, flows) {
        Ok(verdict) => (verdict, answer.reason),
        Err(reason) => (Verdict::Drop, reason),
    };
    flows.count(ifindex, reason, length);
    (verdict, reason)
}

/// Makes the packet into a message that one of `mtu` bytes would fit.
#[inline(always)]
fn too_big<P: Packet, T: Tables, F: Flows>(
    packet: &mut P,
    parsed: &Parsed,
    mtu: u16,
    tables: &T,
    flows: &mut F,
) -> Result<Verdict, Reason> {
    if !is_one_host(&parsed.source, parsed.family) || !is_due(&parsed.source, tables, flows) {
        return Err(Reason::TooBigSuppressed);
    }
    let from = parse::neighbour(packet).map_err(|_| Reason::NoHeadroom)?;
    match parsed.family {
        Family::V4 => v4(packet, parsed, mtu)?,
        Family::V6 => v6(packet, parsed, mtu)?,
    }
    rewrite::address(packet, &from, tables).map_err(|_| Reason::NoHeadroom)
}

/// Whether an address is one that a single host on the network can have.
#[inline(always)]
fn is_one_host(source: &Address, family: Family) -> bool {
    match family {
        Family::V4 => !matches!(source.v4_bytes()[0], 0 | 127 | 224..),
        Family::V6 => {
            let words: &[u32; 4] = zerocopy::transmute_ref!(source);
            source.0[0] != 0xff && (words[0] | words[1] | words[2]) != 0
        }
    }
}

/// Whether the clients of this one's prefix may be told something now; if so, that is noted.
#[inline(always)]
fn is_due<T: Tables, F: Flows>(client: &Address, tables: &T, flows: &mut F) -> bool {
    let most = tables.answers_per_second();
    let now = flows.now();
    let prefix = prefix(client);
    let Some(answered) = flows.answered(&prefix) else {
        let first = Answered {
            since: now,
            count: 1,
        };
        flows.insert_answered(&prefix, first);
        return most != 0;
    };
    if answered.since.age(now).0 >= Ticks::PER_SECOND {
        answered.since = now;
        answered.count = 0;
    }
    if answered.count >= most {
        return false;
    }
    answered.count += 1;
    true
}

/// The first address of a client's prefix: /24, or /56.
#[inline(always)]
fn prefix(client: &Address) -> Address {
    let mut words: [u32; 4] = zerocopy::transmute!(*client);
    if client.is_v4() {
        words[3] &= u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
    } else {
        words[1] &= u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
        words[2] = 0;
        words[3] = 0;
    }
    zerocopy::transmute!(words)
}

#[inline(always)]
fn v4<P: Packet>(packet: &mut P, parsed: &Parsed, mtu: u16) -> Result<(), Reason> {
    const HEAD: usize = Ipv4Header::LEN + IcmpHeader::LEN;
    let quoted = quote(packet, parsed, HEAD, LONGEST_V4, eth::IPV4)?;
    let header: &mut Ipv4Header = packet.at_mut(parsed.l3()).ok_or(Reason::NoHeadroom)?;
    header.version_ihl = 0x45;
    header.tos = TOS;
    header.total_length = ((HEAD + quoted) as u16).to_be_bytes();
    header.identification = [0; 2];
    header.fragment = [0x40, 0];
    header.ttl = TTL;
    header.protocol = ip::ICMP;
    header.source = parsed.destination.v4_bytes();
    header.destination = parsed.source.v4_bytes();
    header.checksum = header.computed_checksum();
    let [high, low] = mtu.max(LEAST_V4).to_be_bytes();
    let message = IcmpHeader {
        kind: icmp::UNREACHABLE,
        code: icmp::FRAGMENTATION_NEEDED,
        checksum: [0; 2],
        rest: [0, 0, high, low],
    };
    put(
        packet,
        parsed.l3() + Ipv4Header::LEN,
        message,
        quoted,
        LONGEST_V4 - HEAD,
        Delta::NONE,
    )
}

#[inline(always)]
fn v6<P: Packet>(packet: &mut P, parsed: &Parsed, mtu: u16) -> Result<(), Reason> {
    const HEAD: usize = Ipv6Header::LEN + IcmpHeader::LEN;
    let quoted = quote(packet, parsed, HEAD, LONGEST_V6, eth::IPV6)?;
    let length = ((IcmpHeader::LEN + quoted) as u16).to_be_bytes();
    let header: &mut Ipv6Header = packet.at_mut(parsed.l3()).ok_or(Reason::NoHeadroom)?;
    header.version_class_flow = [0x60 | TOS >> 4, TOS << 4, 0, 0];
    header.payload_length = length;
    header.next_header = ip::ICMPV6;
    header.hop_limit = TTL;
    header.source = parsed.destination.0;
    header.destination = parsed.source.0;
    // RFC 8200 section 8.1: addresses, length and next header come first.
    let pseudo_header = Delta::NONE
        .plus8(&parsed.destination.0)
        .plus8(&parsed.source.0)
        .plus(length)
        .plus([0, ip::ICMPV6]);
    let [high, low] = mtu.max(LEAST_V6).to_be_bytes();
    let message = IcmpHeader {
        kind: icmp::PACKET_TOO_BIG,
        code: 0,
        checksum: [0; 2],
        rest: [0, 0, high, low],
    };
    put(
        packet,
        parsed.l3() + Ipv6Header::LEN,
        message,
        quoted,
        LONGEST_V6 - HEAD,
        pseudo_header,
    )
}

/// Makes room for `head` bytes in front of the packet and cuts off what makes it longer than
/// `longest`. Returns the bytes of the packet that are left, a multiple of four.
#[inline(always)]
fn quote<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    head: usize,
    longest: usize,
    ether_type: [u8; 2],
) -> Result<usize, Reason> {
    let quoted = usize::from(parsed.length).min(longest - head) & !3;
    front::extend(packet, parsed, head, ether_type)?;
    if !packet.shrink_tail(parsed.l3() + head + quoted) {
        return Err(Reason::NoHeadroom);
    }
    Ok(quoted)
}

/// Writes the message's header at `offset`, behind its IP header, with the checksum over it, over
/// `quoted` bytes behind it (of at most `most`), and over what was summed up before.
#[inline(always)]
fn put<P: Packet>(
    packet: &mut P,
    offset: usize,
    message: IcmpHeader,
    quoted: usize,
    most: usize,
    before: Delta,
) -> Result<(), Reason> {
    let mut sum = before
        .plus([message.kind, message.code])
        .plus([message.rest[0], message.rest[1]])
        .plus([message.rest[2], message.rest[3]]);
    for word in 0..most / Word::LEN {
        let place = word * Word::LEN;
        if place >= quoted {
            break;
        }
        let word: &Word = packet
            .at(offset + IcmpHeader::LEN + place)
            .ok_or(Reason::NoHeadroom)?;
        sum = sum.plus(word.first).plus(word.last);
    }
    let place: &mut IcmpHeader = packet.at_mut(offset).ok_or(Reason::NoHeadroom)?;
    *place = message;
    place.checksum = sum.checksum();
    Ok(())
}
