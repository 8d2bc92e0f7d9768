//! Frames on their way into a backend, and what becomes of each.

use std::net::{IpAddr, SocketAddr};

use crate::{
    abi::decap::{GUE_PORT, Reason},
    datapath::Verdict,
    host::frame::{Frame, Transport, arp},
    wire::{eth::EthernetHeader, ip, l4::ACK},
};

/// A frame and its fate with [`HostReceiver::standard`](super::HostReceiver::standard).
#[derive(Clone, Debug)]
pub struct Fixture {
    /// What it shows.
    pub name: String,
    /// The frame as it comes in.
    pub frame: Vec<u8>,
    /// What happens to it.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The frame afterwards.
    pub out: Vec<u8>,
}

/// How a packet is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// IP in IP.
    Ipip,
    /// Directly behind UDP with a checksum.
    Gue,
    /// Directly behind UDP without one.
    GueWithoutChecksum,
}

impl Wrap {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Ipip, Self::Gue, Self::GueWithoutChecksum];

    /// A frame from `from` to `to` with the packet of `inner` in it.
    pub fn around(self, from: IpAddr, to: IpAddr, inner: &Frame) -> Frame {
        let packet = &inner.bytes()[EthernetHeader::LEN..];
        let gue = Frame::udp(SocketAddr::new(from, 0xc123), SocketAddr::new(to, GUE_PORT));
        match self {
            Self::Ipip => {
                let protocol = if inner.from.is_ipv4() {
                    ip::IPV4
                } else {
                    ip::IPV6
                };
                Frame::new(from, to, Transport::Other(protocol))
            }
            Self::Gue => gue,
            Self::GueWithoutChecksum => gue.without_checksum(),
        }
        .payload(packet)
    }

    /// The reason that such a packet is taken for.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Ipip => Reason::TakenIpip,
            Self::Gue | Self::GueWithoutChecksum => Reason::TakenGue,
        }
    }
}

/// A known load balancer and the backend, of each family.
pub const OUTER: [(&str, &str); 2] = [("10.0.9.3", "10.0.1.254"), ("fd00:9::3", "fd00:1::ff")];

/// Packets of clients to services, of each family.
pub fn inner() -> [Frame; 2] {
    let of = |text: &str| text.parse::<SocketAddr>().expect("written here");
    [
        Frame::tcp(of("198.51.100.7:40000"), of("203.0.113.10:80"), ACK)
            .numbers(1000, 2000)
            .payload(b"GET / HTTP/1.1\r\n\r\n")
            .ttl(57),
        Frame::udp(of("[2001:db8:c::7]:40000"), of("[2001:db8:5::10]:53")).ttl(61),
    ]
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("written here")
}

fn taken(name: String, wrap: Wrap, frame: Vec<u8>, out: Vec<u8>) -> Fixture {
    Fixture {
        name,
        frame,
        verdict: Verdict::Pass,
        reason: wrap.reason(),
        out,
    }
}

fn passed(name: impl Into<String>, reason: Reason, frame: Vec<u8>) -> Fixture {
    Fixture {
        name: name.into(),
        out: frame.clone(),
        frame,
        verdict: Verdict::Pass,
        reason,
    }
}

/// Every fixture.
pub fn all() -> Vec<Fixture> {
    let mut all = whole();
    all.extend(congestion());
    all.extend(strange_inner());
    all.extend(strangers());
    all.extend(no_tunnels());
    all.extend(fragments_and_options());
    all.extend(lies());
    all
}

/// Every tunnel that there is, around every family.
fn whole() -> Vec<Fixture> {
    let mut all = Vec::new();
    for (from, to) in OUTER {
        for inner in inner() {
            for wrap in Wrap::ALL {
                let tunnel = wrap.around(address(from), address(to), &inner);
                let name = format!("{} in {wrap:?} from {from}", inner.from);
                all.push(taken(name.clone(), wrap, tunnel.bytes(), inner.bytes()));
                let padded = inner.clone().padding(3).bytes();
                let frame = tunnel.padding(3).bytes();
                all.push(taken(name + ", padded", wrap, frame, padded));
            }
        }
    }
    all
}

/// RFC 6040 section 4.2, figure 4.
fn congestion() -> Vec<Fixture> {
    let mut all = Vec::new();
    for (from, to) in OUTER {
        for inner in inner() {
            for marks in 0..16u8 {
                let (outer_ecn, inner_ecn) = (marks >> 2, marks & 3);
                // The DSCPs are other ones, and stay.
                let inner = Frame {
                    tos: 0x28 | inner_ecn,
                    ..inner.clone()
                };
                let tunnel = Wrap::Ipip.around(address(from), address(to), &inner);
                let frame = Frame {
                    tos: 0xb8 | outer_ecn,
                    ..tunnel
                }
                .bytes();
                let ecn = match (outer_ecn, inner_ecn) {
                    (3, 0) => None,
                    (3, _) => Some(3),
                    (1, 2) => Some(1),
                    (_, inner) => Some(inner),
                };
                let name = format!("ECN {inner_ecn} of {} in {outer_ecn} of {from}", inner.from);
                all.push(match ecn {
                    Some(ecn) => {
                        let out = Frame {
                            tos: 0x28 | ecn,
                            ..inner
                        };
                        taken(name, Wrap::Ipip, frame, out.bytes())
                    }
                    None => Fixture {
                        verdict: Verdict::Drop,
                        ..passed(name, Reason::Congestion, frame)
                    },
                });
            }
        }
    }
    all
}

/// What is inside is whole, and otherwise the kernel's business.
fn strange_inner() -> Vec<Fixture> {
    let mut all = Vec::new();
    for (from, to) in OUTER {
        let [v4, v6] = inner();
        for (what, inner) in [
            ("options", v4.clone().irregular()),
            ("a first fragment", v4.clone().fragment(0, true)),
            ("a later fragment", v6.clone().fragment(64, false)),
            ("an extension header", v6.clone().irregular()),
            ("a ping", Frame::echo(v6.from, v6.to)),
            ("a tunnel", Wrap::Ipip.around(v4.from, v4.to, &v6)),
        ] {
            for wrap in [Wrap::Ipip, Wrap::Gue] {
                let frame = wrap.around(address(from), address(to), &inner).bytes();
                let name = format!("{what} in {wrap:?} from {from}");
                all.push(taken(name, wrap, frame, inner.bytes()));
            }
        }
        // Bytes behind the inner packet that the outer header counts: the kernel cuts them off.
        let mut tunnel = Wrap::Ipip.around(address(from), address(to), &v4);
        tunnel.payload.extend([0xee; 5]);
        let out = [v4.bytes(), vec![0xee; 5]].concat();
        let name = format!("more than the inner packet from {from}");
        all.push(taken(name, Wrap::Ipip, tunnel.bytes(), out));
    }
    all
}

/// Tunnels from and for others.
fn strangers() -> Vec<Fixture> {
    let [v4, v6] = inner();
    let mut all = Vec::new();
    for (from, to) in [
        ("10.0.9.16", "10.0.1.254"),
        ("10.0.1.8", "10.0.1.254"),
        ("fd00:9:0:1::1", "fd00:1::ff"),
        ("fd00:1::8", "fd00:1::ff"),
        // Looks like a known one of the other family.
        ("::ffff:10.0.9.3", "fd00:1::ff"),
    ] {
        for wrap in Wrap::ALL {
            let frame = wrap.around(address(from), address(to), &v4).bytes();
            all.push(passed(
                format!("{wrap:?} from {from}"),
                Reason::UnknownSource,
                frame,
            ));
        }
    }
    for (from, to) in [
        ("10.0.9.3", "10.0.1.9"),
        ("10.0.1.7", "10.0.2.5"),
        ("fd00:9::3", "fd00:1::9"),
        ("fd00:1::7", "fd00:2::5"),
    ] {
        for wrap in Wrap::ALL {
            let frame = wrap.around(address(from), address(to), &v6).bytes();
            all.push(passed(
                format!("{wrap:?} to {to}"),
                Reason::OtherHost,
                frame,
            ));
        }
    }
    // Its own addresses on the other network, and one that it has no route to.
    for (from, to) in [
        ("10.0.1.7", "192.0.2.1"),
        ("fd00:1::7", "2001:db8:0:1::1"),
        ("10.0.1.7", "203.0.113.99"),
        ("fd00:1::7", "2001:db8:ffff::1"),
    ] {
        let frame = Wrap::Ipip.around(address(from), address(to), &v6).bytes();
        all.push(taken(
            format!("{from} to {to}"),
            Wrap::Ipip,
            frame,
            v6.bytes(),
        ));
    }
    all
}

/// Frames that nobody wrapped.
fn no_tunnels() -> Vec<Fixture> {
    let [v4, v6] = inner();
    let [(from, to), _] = OUTER;
    let tunnel = Wrap::Gue.around(address(from), address(to), &v4);
    let gue = |payload: &[u8]| tunnel.clone().payload(payload).bytes();
    let mut other_port = tunnel.clone();
    if let Transport::Udp { to, .. } = &mut other_port.transport {
        *to = GUE_PORT + 1;
    }
    let mut group = Wrap::Ipip.around(address(from), address(to), &v4);
    group.destination.0 = [1, 0, 0x5e, 0, 0, 1];
    let mut tagged = Wrap::Ipip.around(address(from), address(to), &v4);
    tagged.vlans = vec![10];
    let version_5 = [&[0x55u8][..], &[0; 40]].concat();
    vec![
        passed("TCP", Reason::NotTunnel, v4.bytes()),
        passed("UDP", Reason::NotTunnel, v6.bytes()),
        passed(
            "a ping",
            Reason::NotTunnel,
            Frame::echo(v4.from, v4.to).bytes(),
        ),
        passed(
            "an ICMPv6 ping",
            Reason::NotTunnel,
            Frame::echo(v6.from, v6.to).bytes(),
        ),
        passed("UDP to another port", Reason::NotTunnel, other_port.bytes()),
        passed("for a group of stations", Reason::NotTunnel, group.bytes()),
        passed("VLAN-tagged", Reason::NotIp, tagged.bytes()),
        passed(
            "ARP",
            Reason::NotIp,
            arp(v4.source, [10, 0, 1, 7], [10, 0, 1, 254]),
        ),
        passed("GUE variant 0", Reason::OtherGue, gue(&[0; 24])),
        passed(
            "GUE with a control message",
            Reason::OtherGue,
            gue(&[0x20; 24]),
        ),
        passed("IP version 5 in GUE", Reason::OtherGue, gue(&version_5)),
    ]
}

fn fragments_and_options() -> Vec<Fixture> {
    let [v4, v6] = inner();
    let mut all = Vec::new();
    for (from, to) in OUTER {
        for inner in [&v4, &v6] {
            let ipip = Wrap::Ipip.around(address(from), address(to), inner);
            for (offset, more) in [(0, true), (16, true), (16, false)] {
                let name = format!("fragment {offset} {more} of IPIP from {from}");
                let frame = ipip.clone().fragment(offset, more).bytes();
                all.push(passed(name, Reason::Fragment, frame));
            }
        }
        let gue = Wrap::Gue.around(address(from), address(to), &v4);
        let later = gue.clone().fragment(16, false).bytes();
        all.push(passed(
            format!("later fragment of UDP from {from}"),
            Reason::NotTunnel,
            later,
        ));
    }
    let [(from, to), (from6, to6)] = OUTER;
    let first = Wrap::Gue
        .around(address(from), address(to), &v4)
        .fragment(0, true);
    all.push(passed(
        "first fragment of GUE",
        Reason::Fragment,
        first.bytes(),
    ));
    let ipip = Wrap::Ipip
        .around(address(from), address(to), &v4)
        .irregular();
    all.push(passed("outer options", Reason::Options, ipip.bytes()));
    let tcp = v4.irregular();
    all.push(passed("TCP with options", Reason::NotTunnel, tcp.bytes()));
    let ip6ip6 = Wrap::Ipip
        .around(address(from6), address(to6), &v6)
        .irregular();
    all.push(passed(
        "outer extension header",
        Reason::NotTunnel,
        ip6ip6.bytes(),
    ));
    all
}

/// Bytes of the outer headers, of each family.
const BEHIND: [usize; 2] = [34, 54];

/// Headers that contradict themselves or each other.
fn lies() -> Vec<Fixture> {
    let mut all = Vec::new();
    for ((from, to), behind) in OUTER.into_iter().zip(BEHIND) {
        let [v4, v6] = inner();
        let around = |wrap: Wrap, inner| wrap.around(address(from), address(to), inner).bytes();
        let ipip = [around(Wrap::Ipip, &v4), around(Wrap::Ipip, &v6)];
        let gue = around(Wrap::GueWithoutChecksum, &v4);
        let with = |frame: &[u8], at: usize, bytes: &[u8]| {
            let mut frame = frame.to_vec();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let mut lie = |name: &str, reason, frame| {
            all.push(passed(format!("{name} from {from}"), reason, frame));
        };
        for length in [14, 20, behind - 1, ipip[0].len() - 1] {
            let name = format!("cut to {length} bytes");
            lie(&name, Reason::Malformed, ipip[0][..length].to_vec());
        }
        lie(
            "another version",
            Reason::Malformed,
            with(&ipip[0], 14, &[0x55]),
        );
        lie(
            "UDP shorter than its header",
            Reason::Malformed,
            with(&gue, behind + 4, &[0, 7]),
        );
        lie(
            "UDP longer than the packet",
            Reason::Malformed,
            with(&gue, behind + 4, &[1, 0]),
        );
        let gue_body = gue.len() - behind;
        let short = (gue_body as u16 - 1).to_be_bytes();
        lie(
            "inner longer than UDP",
            Reason::InnerMalformed,
            with(&gue, behind + 4, &short),
        );
        for (inner, name) in [(&ipip[0], "v4"), (&ipip[1], "v6")] {
            let name = |what: &str| format!("inner {name} {what}");
            let reason = Reason::InnerMalformed;
            lie(&name("of version 5"), reason, with(inner, behind, &[0x55]));
            lie(&name("of the other version"), reason, {
                let other = inner[behind] ^ 0x20;
                with(inner, behind, &[other])
            });
        }
        let reason = Reason::InnerMalformed;
        lie(
            "inner header too short",
            reason,
            with(&ipip[0], behind, &[0x44]),
        );
        lie(
            "inner header longer than the packet",
            reason,
            with(&ipip[0], behind + 2, &[0, 19]),
        );
        let total = (ipip[0].len() - behind) as u16 + 1;
        lie(
            "inner longer than outer",
            reason,
            with(&ipip[0], behind + 2, &total.to_be_bytes()),
        );
        let payload = (ipip[1].len() - behind - 40) as u16 + 1;
        lie(
            "inner v6 longer than outer",
            reason,
            with(&ipip[1], behind + 4, &payload.to_be_bytes()),
        );
        for inner in [&v4, &v6] {
            let mut tunnel = Wrap::Ipip.around(address(from), address(to), inner);
            tunnel.payload.truncate(19);
            lie("nothing but the start of a header", reason, tunnel.bytes());
            tunnel.payload.clear();
            lie("nothing inside", reason, tunnel.bytes());
        }
        let nothing = Wrap::Gue
            .around(address(from), address(to), &v4)
            .payload(b"");
        lie("nothing in GUE", reason, nothing.bytes());
    }
    let [(from, to), _] = OUTER;
    let [v4, _] = inner();
    let mut frame = Wrap::Ipip.around(address(from), address(to), &v4).bytes();
    frame[24] ^= 1;
    all.push(passed("outer checksum is wrong", Reason::Malformed, frame));
    all
}
