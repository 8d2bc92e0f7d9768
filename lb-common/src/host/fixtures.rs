//! Frames whose fate is written down: what comes in, after what, and what must come out.
//!
//! They hold in [`World::standard`] with empty flow tables, on the host and in the kernel alike.
//! What must come out is built anew from what it should say, not derived by the code under test.

mod tunnels;

use std::net::SocketAddr;

use crate::{
    abi::{Backend, BackendId, Mac, Neighbour, Reason, ServiceId},
    datapath::Verdict,
    host::{
        self, HostFlows,
        frame::{self, Frame, Transport},
        world::{BACKENDS, BACKENDS_MAC, CLIENTS, CLIENTS_MAC, ROUTER_MAC, World, at, neighbour},
    },
    wire::{
        ip::{TCP, UDP},
        l4::{ACK, RST, SYN},
    },
};

/// One frame and its fate.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// What it shows.
    pub name: String,
    /// Frames that come first, each with its interface.
    pub before: Vec<(u32, Vec<u8>)>,
    /// The interface it comes in on.
    pub ifindex: u32,
    /// What comes in.
    pub frame: Vec<u8>,
    /// Where it must go.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// What must come out.
    pub out: Vec<u8>,
}

/// All of them, for [`World::standard`].
pub fn all(world: &World) -> Vec<Fixture> {
    let mut table = Table {
        world,
        fixtures: Vec::new(),
    };
    table.not_ip();
    for v4 in [true, false] {
        table.not_ours(v4);
        table.irregular(v4);
        table.malformed(v4);
        table.nat(v4, TCP);
        table.nat(v4, UDP);
        table.direct(v4);
        table.dsr(v4, TCP);
        table.dsr(v4, UDP);
        table.tunnels(v4, TCP);
        table.tunnels(v4, UDP);
    }
    table.no_service();
    table.fixtures
}

struct Table<'w> {
    world: &'w World,
    fixtures: Vec<Fixture>,
}

/// The client of the fixtures.
fn client(v4: bool, port: u16) -> SocketAddr {
    match v4 {
        true => SocketAddr::new([198, 51, 100, 7].into(), port),
        false => SocketAddr::new([0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7].into(), port),
    }
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

/// A standard service's id and address: the `nat` ones, or the `dsr-l2` ones.
fn service(v4: bool, protocol: u8, dsr: bool) -> (ServiceId, SocketAddr) {
    let (id, socket) = match (v4, protocol, dsr) {
        (true, TCP, false) => (1, "203.0.113.10:80"),
        (true, _, false) => (2, "203.0.113.10:53"),
        (false, TCP, false) => (3, "[2001:db8::10]:80"),
        (false, _, false) => (4, "[2001:db8::10]:53"),
        (true, TCP, true) => (5, "203.0.113.20:80"),
        (true, _, true) => (6, "203.0.113.20:53"),
        (false, TCP, true) => (7, "[2001:db8::20]:80"),
        (false, _, true) => (8, "[2001:db8::20]:53"),
    };
    (ServiceId(id), at(socket))
}

impl Table<'_> {
    fn passes(&mut self, name: impl Into<String>, frame: Vec<u8>, reason: Reason) {
        self.after(
            name,
            Vec::new(),
            CLIENTS,
            frame.clone(),
            Verdict::Pass,
            reason,
            frame,
        );
    }

    fn drops(&mut self, name: impl Into<String>, frame: Vec<u8>, reason: Reason) {
        self.after(
            name,
            Vec::new(),
            CLIENTS,
            frame.clone(),
            Verdict::Drop,
            reason,
            frame,
        );
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a row of the table has as many columns"
    )]
    fn after(
        &mut self,
        name: impl Into<String>,
        before: Vec<(u32, Vec<u8>)>,
        ifindex: u32,
        frame: Vec<u8>,
        verdict: Verdict,
        reason: Reason,
        out: Vec<u8>,
    ) {
        self.fixtures.push(Fixture {
            name: name.into(),
            before,
            ifindex,
            frame,
            verdict,
            reason,
            out,
        });
    }

    /// A client whose first packet to a service goes to the `nth` of its backends, and that
    /// backend's record.
    ///
    /// # Panics
    ///
    /// If a thousand clients all go elsewhere.
    fn reaching(&self, v4: bool, protocol: u8, dsr: bool, nth: u32) -> (SocketAddr, Backend) {
        self.client_of(service(v4, protocol, dsr), protocol, nth)
    }

    /// As [`Self::reaching`], of any service.
    fn client_of(
        &self,
        (service, to): (ServiceId, SocketAddr),
        protocol: u8,
        nth: u32,
    ) -> (SocketAddr, Backend) {
        let first = self
            .world
            .tables
            .backends
            .iter()
            .find(|(_, b)| b.service == service);
        let id = BackendId(first.expect("it has backends").0.0 + nth);
        for n in 0..1000u16 {
            // Round-robin takes turns: earlier clients move the wheel on, and fixtures have none.
            let mut from = client(to.is_ipv4(), 40_000 + n % 25);
            from = other_address(from, n / 25);
            let frame = Frame::of(protocol, from, to, SYN);
            let mut flows = HostFlows::new();
            host::process(&frame.bytes(), CLIENTS, &self.world.tables, &mut flows);
            let found = flows.new.iter().any(|(_, flow)| flow.backend == id);
            if found {
                return (from, self.world.tables.backends[&id]);
            }
        }
        panic!("no client of {to} goes to backend {nth}");
    }

    fn not_ip(&mut self) {
        let arp = frame::arp(ROUTER_MAC, [192, 0, 2, 254], [192, 0, 2, 1]);
        self.passes("ARP passes", arp, Reason::NotIp);
        let mut tagged = Frame::tcp(client(true, 40_000), at("203.0.113.10:80"), SYN);
        tagged.vlans = vec![5];
        self.passes("a VLAN tag passes", tagged.bytes(), Reason::NotIp);
        tagged.vlans = vec![5, 6];
        self.passes("two VLAN tags pass", tagged.bytes(), Reason::NotIp);
        let mut unknown = frame::arp(ROUTER_MAC, [0; 4], [0; 4]);
        unknown[12..14].copy_from_slice(&[0x88, 0xb5]);
        self.passes("an unknown ethertype passes", unknown, Reason::NotIp);
    }

    fn not_ours(&mut self, v4: bool) {
        let (_, to) = service(v4, TCP, false);
        let from = client(v4, 40_000);
        let ip = family(v4);
        self.passes(
            format!("{ip} ping to a service's address passes"),
            Frame::echo(from.ip(), to.ip()).bytes(),
            Reason::OtherProtocol,
        );
        let sctp = Frame::new(from.ip(), to.ip(), Transport::Other(132)).payload(&[0; 32]);
        self.passes(
            format!("{ip} SCTP passes"),
            sctp.bytes(),
            Reason::OtherProtocol,
        );
        let mut other = to;
        other.set_port(22);
        let ssh = Frame::tcp(from, other, SYN);
        self.passes(
            format!("{ip} another port of a service's address passes"),
            ssh.bytes(),
            Reason::NotService,
        );
        self.passes(
            format!("{ip} another port with options passes"),
            ssh.clone().irregular().bytes(),
            Reason::NotService,
        );
        self.passes(
            format!("{ip} a first fragment to another port passes"),
            ssh.fragment(0, true).bytes(),
            Reason::NotService,
        );
        self.passes(
            format!("{ip} the service's port with another protocol passes"),
            Frame::udp(from, to).bytes(),
            Reason::NotService,
        );
        self.passes(
            format!("{ip} a later fragment passes"),
            Frame::udp(from, to)
                .payload(&[7; 32])
                .fragment(64, false)
                .bytes(),
            Reason::LaterFragment,
        );
        let group = Frame::tcp(from, to, SYN).macs(ROUTER_MAC, Mac([0x01, 0, 0x5e, 0, 0, 1]));
        self.passes(
            format!("{ip} to a group of stations passes"),
            group.bytes(),
            Reason::Multicast,
        );
    }

    fn irregular(&mut self, v4: bool) {
        let ip = family(v4);
        for dsr in [false, true] {
            let (_, to) = service(v4, TCP, dsr);
            let syn = Frame::tcp(client(v4, 40_000), to, SYN);
            let why = if v4 {
                Reason::IpOptions
            } else {
                Reason::ExtensionHeaders
            };
            self.drops(
                format!("{ip} options to {to} are dropped"),
                syn.clone().irregular().bytes(),
                why,
            );
            self.drops(
                format!("{ip} a first fragment to {to} is dropped"),
                syn.clone().fragment(0, true).bytes(),
                Reason::FirstFragment,
            );
            self.drops(
                format!("{ip} a first fragment with options to {to} is dropped"),
                syn.irregular().fragment(0, true).bytes(),
                Reason::FirstFragment,
            );
        }
        let (_, to) = service(v4, TCP, false);
        let answer = Frame::tcp(self.backend_socket(v4, TCP), client(v4, 40_000), ACK);
        self.drops(
            format!("{ip} an answer with options is dropped"),
            answer.irregular().bytes(),
            if v4 {
                Reason::IpOptions
            } else {
                Reason::ExtensionHeaders
            },
        );
        if v4 {
            return;
        }
        let mut deep = Frame::tcp(client(v4, 40_000), to, SYN);
        deep.extensions = vec![(0, 0), (60, 1), (43, 0), (60, 2)];
        self.drops(
            "IPv6 four extension headers are followed",
            deep.bytes(),
            Reason::ExtensionHeaders,
        );
        deep.extensions.push((60, 0));
        self.passes(
            "IPv6 a fifth extension header is not followed",
            deep.bytes(),
            Reason::UnknownExtension,
        );
        self.drops(
            "IPv6 an atomic fragment counts as an extension header",
            Frame::tcp(client(v4, 40_000), to, SYN)
                .fragment(0, false)
                .bytes(),
            Reason::ExtensionHeaders,
        );
        let mut late = Frame::tcp(client(v4, 40_000), to, SYN).fragment(9, true);
        late.extensions = vec![(0, 0)];
        self.passes(
            "IPv6 a later fragment behind an extension header passes",
            late.payload(&[1; 8]).bytes(),
            Reason::LaterFragment,
        );
    }

    fn malformed(&mut self, v4: bool) {
        let (_, to) = service(v4, TCP, false);
        let (_, to_udp) = service(v4, UDP, false);
        let ip = family(v4);
        let tcp = Frame::tcp(client(v4, 40_000), to, SYN)
            .payload(b"0123456789")
            .bytes();
        let udp = Frame::udp(client(v4, 40_000), to_udp).bytes();
        let l4 = if v4 { 34 } else { 54 };
        let mut lie = |name: &str, mut frame: Vec<u8>, change: &dyn Fn(&mut Vec<u8>)| {
            change(&mut frame);
            self.passes(format!("{ip} {name} passes"), frame, Reason::Malformed);
        };
        lie("a frame cut in the Ethernet payload", tcp.clone(), &|f| {
            f.truncate(14);
        });
        lie("a frame cut in the IP header", tcp.clone(), &|f| {
            f.truncate(l4 - 1);
        });
        lie("a frame cut in the TCP header", tcp.clone(), &|f| {
            f.truncate(l4 + 19);
        });
        lie("a frame cut in the payload", tcp.clone(), &|f| {
            f.truncate(f.len() - 1);
        });
        lie("a TCP header of less than 20 bytes", tcp.clone(), &|f| {
            f[l4 + 12] = 0x40;
        });
        lie("a TCP header longer than the packet", tcp.clone(), &|f| {
            f[l4 + 12] = 0xf0;
        });
        lie("a UDP length of less than 8", udp.clone(), &|f| {
            f[l4 + 5] = 7;
        });
        lie("a UDP length longer than the packet", udp.clone(), &|f| {
            f[l4 + 5] += 1;
        });
        lie("a wrong IP version", tcp.clone(), &|f| f[14] ^= 0x30);
        if v4 {
            lie("a header length of 16", tcp.clone(), &|f| f[14] = 0x44);
            lie("a total length below the header's", tcp.clone(), &|f| {
                f[16..18].copy_from_slice(&[0, 19]);
            });
            lie("a total length without ports", udp, &|f| {
                f[16..18].copy_from_slice(&[0, 22]);
            });
        } else {
            lie("a payload length beyond 16 bits", tcp.clone(), &|f| {
                f[18..20].copy_from_slice(&[0xff, 0xff]);
            });
            lie("an extension header longer than the packet", tcp, &|f| {
                f[20] = 60;
                f[54..56].copy_from_slice(&[TCP, 200]);
            });
        }
    }

    fn backend_socket(&self, v4: bool, protocol: u8) -> SocketAddr {
        let (id, _) = service(v4, protocol, false);
        let backend = self
            .world
            .tables
            .backends
            .values()
            .find(|b| b.service == id);
        let backend = backend.expect("it has backends");
        SocketAddr::new(backend.address.ip(), backend.port.number())
    }

    fn nat(&mut self, v4: bool, protocol: u8) {
        let (_, to) = service(v4, protocol, false);
        let what = format!("{} protocol {protocol}", family(v4));
        // Round-robin has its first ticket only.
        let reachable: &[u32] = if v4 && protocol == UDP {
            &[]
        } else {
            &[1, 2, 5, 6]
        };
        for &nth in reachable {
            let (from, backend) = self.reaching(v4, protocol, false, nth);
            let socket = SocketAddr::new(backend.address.ip(), backend.port.number());
            let inward = Frame::of(protocol, from, to, SYN)
                .macs(ROUTER_MAC, CLIENTS_MAC)
                .numbers(1000, 0)
                .payload(b"odd number of bytes")
                .padding(3);
            let (hop, verdict, reason) = match nth {
                5 => {
                    let hop = neighbour(BACKENDS, 200);
                    (
                        Some(hop),
                        Verdict::Redirect(BACKENDS),
                        Reason::ToBackendRouted,
                    )
                }
                6 => (None, Verdict::Pass, Reason::ToBackendViaKernel),
                2 => (
                    Some(backend.neighbour),
                    Verdict::Transmit,
                    Reason::ToBackend,
                ),
                _ => {
                    let verdict = Verdict::Redirect(BACKENDS);
                    (Some(backend.neighbour), verdict, Reason::ToBackend)
                }
            };
            let mut outward = Frame::of(protocol, from, socket, SYN)
                .numbers(1000, 0)
                .payload(b"odd number of bytes")
                .padding(3);
            outward = hopped(outward, hop, inward.source, inward.destination);
            self.after(
                format!("{what} to backend {nth}"),
                Vec::new(),
                CLIENTS,
                inward.bytes(),
                verdict,
                reason,
                outward.bytes(),
            );
            self.answers(&what, &inward, &outward, to);
        }
        let (from, backend) = match reachable.first() {
            Some(&nth) => self.reaching(v4, protocol, false, nth),
            None => return,
        };
        let syn = Frame::of(protocol, from, to, SYN);
        self.drops(
            format!("{what} with its last hop used up is dropped"),
            syn.clone().ttl(1).bytes(),
            Reason::TtlExceeded,
        );
        self.without_flow(v4, protocol, &backend, to);
        if protocol == UDP && v4 {
            return;
        }
        if let Some(local) = self
            .world
            .tables
            .locals
            .iter()
            .find(|l| l.ip().is_ipv4() == v4)
        {
            let mut forged = syn;
            forged.from = local.ip();
            self.drops(
                format!("{what} from the load balancer's own address is dropped"),
                forged.bytes(),
                Reason::MartianSource,
            );
        }
    }

    /// The answer to a packet that a backend got, which goes to where the packet came from.
    fn answers(&mut self, what: &str, inward: &Frame, outward: &Frame, service: SocketAddr) {
        let answer = outward.clone().answer(SYN | ACK).padding(0).ttl(60);
        let mut expected = inward.clone().answer(SYN | ACK).padding(0).ttl(59);
        assert_eq!(expected.source_socket(), service);
        expected = expected.macs(CLIENTS_MAC, ROUTER_MAC);
        for ifindex in [CLIENTS, BACKENDS] {
            let verdict = match ifindex {
                CLIENTS => Verdict::Transmit,
                _ => Verdict::Redirect(CLIENTS),
            };
            self.after(
                format!("{what} answer of {} on {ifindex}", answer.source_socket()),
                vec![(CLIENTS, inward.bytes())],
                ifindex,
                answer.bytes(),
                verdict,
                Reason::ToClient,
                expected.bytes(),
            );
        }
    }

    /// What backends send where no flow is known.
    fn without_flow(&mut self, v4: bool, protocol: u8, backend: &Backend, service: SocketAddr) {
        let what = format!("{} protocol {protocol}", family(v4));
        let from = SocketAddr::new(backend.address.ip(), backend.port.number());
        let to = client(v4, 50_000);
        let macs = (Mac([2, 0, 0, 4, 1, 1]), BACKENDS_MAC);
        let answer = Frame::of(protocol, from, to, ACK).macs(macs.0, macs.1);
        let expected = Frame::of(protocol, service, to, ACK)
            .macs(CLIENTS_MAC, ROUTER_MAC)
            .ttl(63);
        self.after(
            format!("{what} answer without a flow goes by the static way back"),
            Vec::new(),
            BACKENDS,
            answer.bytes(),
            Verdict::Redirect(CLIENTS),
            Reason::ToClientRouted,
            expected.bytes(),
        );
        let mut lost = answer.clone();
        lost.to = match v4 {
            true => [100, 64, 0, 1].into(),
            false => [0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 1].into(),
        };
        self.drops(
            format!("{what} answer to where no route leads is dropped"),
            lost.bytes(),
            Reason::ClientUnresolved,
        );
        let local = self
            .world
            .tables
            .locals
            .iter()
            .find(|l| l.ip().is_ipv4() == v4);
        let mut probe = answer.clone();
        probe.to = local.expect("it has an address of each family").ip();
        self.passes(
            format!("{what} from a backend to the load balancer itself passes"),
            probe.bytes(),
            Reason::ToLoadBalancer,
        );
        if protocol == TCP {
            self.passes(
                format!("{what} a connection that the backend opens passes"),
                answer.flags(SYN).bytes(),
                Reason::OpenedByBackend,
            );
        } else {
            let bare = expected.without_checksum();
            let answer = answer.without_checksum();
            if v4 {
                self.after(
                    format!("{what} no checksum stays none"),
                    Vec::new(),
                    BACKENDS,
                    answer.bytes(),
                    Verdict::Redirect(CLIENTS),
                    Reason::ToClientRouted,
                    bare.bytes(),
                );
            }
        }
    }

    fn direct(&mut self, v4: bool) {
        let backend = self.backend_socket(v4, TCP);
        let syn = Frame::tcp(client(v4, 41_000), backend, SYN);
        let ip = family(v4);
        self.passes(
            format!("{ip} to a backend's own address passes"),
            syn.bytes(),
            Reason::DirectToBackend,
        );
        let answer = syn.clone().answer(SYN | ACK).bytes();
        self.after(
            format!("{ip} the answer of a backend spoken to directly passes"),
            vec![(CLIENTS, syn.bytes())],
            BACKENDS,
            answer.clone(),
            Verdict::Pass,
            Reason::DirectFromBackend,
            answer,
        );
    }

    fn dsr(&mut self, v4: bool, protocol: u8) {
        let (_, to) = service(v4, protocol, true);
        let what = format!("{} protocol {protocol} dsr-l2", family(v4));
        let reachable: &[u32] = if !v4 && protocol == TCP {
            &[]
        } else {
            &[1, 2, 6]
        };
        for &nth in reachable {
            let (from, backend) = self.reaching(v4, protocol, true, nth);
            let mut frame = Frame::of(protocol, from, to, SYN)
                .macs(ROUTER_MAC, CLIENTS_MAC)
                .ttl(1);
            if protocol == UDP && v4 {
                frame = frame.without_checksum();
            }
            let name = format!("{what} to backend {nth}");
            if !backend.neighbour.is_resolved() {
                self.drops(name, frame.bytes(), Reason::BackendUnresolved);
                continue;
            }
            let verdict = match backend.neighbour.ifindex {
                CLIENTS => Verdict::Transmit,
                other => Verdict::Redirect(other),
            };
            let Neighbour {
                source,
                destination,
                ..
            } = backend.neighbour;
            let out = frame.clone().macs(source, destination);
            self.after(
                name,
                Vec::new(),
                CLIENTS,
                frame.bytes(),
                verdict,
                Reason::ToBackend,
                out.bytes(),
            );
        }
    }

    fn no_service(&mut self) {
        let from = client(true, 40_000);
        self.drops(
            "a service without backends drops",
            Frame::tcp(from, at("203.0.113.40:80"), SYN).bytes(),
            Reason::NoBackend,
        );
        self.drops(
            "a service that is being removed drops",
            Frame::tcp(from, at("203.0.113.41:80"), SYN).bytes(),
            Reason::NoService,
        );
        self.drops(
            "an answer of a shared backend without flow is dropped",
            Frame::tcp(at("10.0.1.61:80"), from, ACK).bytes(),
            Reason::AmbiguousAnswer,
        );
        let reset = Frame::tcp(at("10.0.1.61:80"), from, RST);
        self.drops(
            "a reset of a shared backend without flow is dropped",
            reset.bytes(),
            Reason::AmbiguousAnswer,
        );
    }
}

/// A routed frame with the MACs of its next hop; one left to the kernel keeps all.
fn hopped(frame: Frame, hop: Option<Neighbour>, source: Mac, destination: Mac) -> Frame {
    match hop {
        Some(hop) => frame.macs(hop.source, hop.destination).ttl(63),
        None => frame.macs(source, destination),
    }
}

/// The client `n` addresses further.
fn other_address(client: SocketAddr, n: u16) -> SocketAddr {
    let address = match client.ip() {
        std::net::IpAddr::V4(v4) => {
            std::net::Ipv4Addr::from_bits(v4.to_bits() + u32::from(n)).into()
        }
        std::net::IpAddr::V6(v6) => {
            std::net::Ipv6Addr::from_bits(v6.to_bits() + u128::from(n)).into()
        }
    };
    SocketAddr::new(address, client.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixture_holds_on_the_host() {
        let world = World::standard();
        let fixtures = all(&world);
        assert!(fixtures.len() > 100, "{}", fixtures.len());
        for fixture in fixtures {
            let mut flows = HostFlows::new();
            for (ifindex, frame) in &fixture.before {
                host::process(frame, *ifindex, &world.tables, &mut flows);
            }
            let got = host::process(&fixture.frame, fixture.ifindex, &world.tables, &mut flows);
            assert!(
                (got.verdict, got.reason) == (fixture.verdict, fixture.reason)
                    && got.frame == fixture.out,
                "{}: {:?} {:?}, not {:?} {:?}\nin   {}\nout  {}\nnot  {}",
                fixture.name,
                got.verdict,
                got.reason,
                fixture.verdict,
                fixture.reason,
                frame::describe(&fixture.frame),
                frame::describe(&got.frame),
                frame::describe(&fixture.out),
            );
        }
    }
}
