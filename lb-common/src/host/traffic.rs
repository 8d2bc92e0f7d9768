//! Random frames for a [`World`]: conversations that go on, strangers, irregular packets, lies.
//!
//! The same seed gives the same frames, as long as the same outcomes are told back. The shares are
//! chosen so that every verdict and every mode is met by more than one frame in twenty.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use fastrand::Rng;

use crate::{
    abi::{Address, EndpointKey, Mac, Role},
    host::{
        frame::{self, Frame, Transport},
        world::{BACKENDS, BACKENDS_MAC, CLIENTS, CLIENTS_MAC, GUE_PORT, ROUTER_MAC, World},
    },
    wire::{
        ip::{self, TCP, UDP},
        l4::{ACK, FIN, RST, SYN},
    },
};

/// How many forwarded frames are remembered, to be answered.
const MEMORY: usize = 512;

/// How many later fragments wait for their turn.
const WAITING: usize = 64;

/// A source of random frames.
#[derive(Clone, Debug)]
pub struct Traffic {
    rng: Rng,
    sent: VecDeque<Frame>,
    /// Later fragments of datagrams whose first was sent, and the interfaces they come in on.
    rest: VecDeque<(u32, Vec<u8>)>,
}

impl Traffic {
    /// The frames of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            sent: VecDeque::with_capacity(MEMORY),
            rest: VecDeque::with_capacity(WAITING),
        }
    }

    /// The random numbers, for a caller that makes other random choices from the same seed.
    pub const fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Tells that this frame was forwarded: it may get an answer.
    pub fn forwarded(&mut self, frame: &[u8]) {
        let inner = frame::inner(frame, GUE_PORT);
        if let Some(frame) = Frame::read(inner.as_deref().unwrap_or(frame)) {
            if self.sent.len() == MEMORY {
                self.sent.pop_front();
            }
            self.sent.push_back(frame);
        }
    }

    /// The next frame, and the interface that it comes in on.
    pub fn next(&mut self, world: &World) -> (u32, Vec<u8>) {
        let ifindex = *self.choose(&[CLIENTS, CLIENTS, BACKENDS]);
        if self.rng.u8(0..100) < 5
            && let Some(later) = self.rest.pop_front()
        {
            return later;
        }
        let frame = match self.rng.u8(0..100) {
            0..30 => {
                let frame = self.towards_service(world);
                self.dressed(ifindex, frame)
            }
            30..62 => {
                let frame = self.going_on(world);
                self.dressed(ifindex, frame)
            }
            62..70 => {
                let frame = self.backends_answer(world);
                self.dressed(ifindex, frame)
            }
            70..74 => self.towards_backend(world).bytes(),
            74..82 => self.foreign(world),
            82..90 => self.irregular(world).bytes(),
            _ => self.lie(world),
        };
        (ifindex, frame)
    }

    /// A frame as it is, or behind VLAN tags, or with options or extension headers, or only its first
    /// fragment, and then the others follow later.
    fn dressed(&mut self, ifindex: u32, mut frame: Frame) -> Vec<u8> {
        if self.rng.u8(0..16) == 0 {
            frame = frame.tagged(&[7, 0x2008][..self.rng.usize(1..3)]);
        }
        if self.rng.u8(0..12) == 0 {
            if frame.from.is_ipv4() {
                frame.options = vec![1; 4 * self.rng.usize(1..11)];
            }
            for _ in 0..self.rng.u8(1..5) {
                let number = *self.choose(&[ip::HOP_BY_HOP, ip::ROUTING, ip::DESTINATION_OPTIONS]);
                frame.extensions.push((number, self.rng.u8(0..4)));
            }
        }
        if self.rng.u8(0..12) != 0 {
            return frame.bytes();
        }
        let bytes = *self.choose(&[32, 64, 1_400]);
        let mut parts = frame.padding(0).fragments(bytes).into_iter();
        let first = parts.next().expect("a first part");
        for later in parts.take(self.rng.usize(1..3)) {
            if self.rest.len() == WAITING {
                self.rest.pop_front();
            }
            self.rest.push_back((ifindex, later));
        }
        first
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.rng.usize(..from.len())]
    }

    fn endpoint(&mut self, world: &World, role: Role) -> (u8, SocketAddr) {
        let keys: Vec<&EndpointKey> = world
            .tables
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.role == role)
            .map(|(key, _)| key)
            .collect();
        match keys.is_empty() {
            true => (TCP, SocketAddr::new([10, 0, 1, 1].into(), 80)),
            false => {
                let key = **self.choose(&keys);
                (
                    key.protocol,
                    SocketAddr::new(key.address.ip(), key.port.number()),
                )
            }
        }
    }

    /// A client of the same family as `to`: mostly one of a few hundred, sometimes one without a
    /// route back, sometimes the load balancer itself.
    fn client(&mut self, world: &World, to: IpAddr) -> SocketAddr {
        let n = self.rng.u8(1..33);
        let address = match (self.rng.u8(0..32), to.is_ipv4()) {
            (0, _) => self.local(world, to),
            (1..3, true) => [100, 64, 0, n].into(),
            (1..3, false) => [0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, u16::from(n)].into(),
            (_, true) => [198, 51, 100, n].into(),
            (_, false) => [0x2001, 0xdb8, 0xc, 0, 0, 0, 0, u16::from(n)].into(),
        };
        SocketAddr::new(address, 40_000 + self.rng.u16(..16))
    }

    fn local(&mut self, world: &World, family: IpAddr) -> IpAddr {
        let locals: Vec<IpAddr> = world
            .tables
            .locals
            .iter()
            .map(Address::ip)
            .filter(|ip| ip.is_ipv4() == family.is_ipv4())
            .collect();
        match locals.is_empty() {
            true => family,
            false => *self.choose(&locals),
        }
    }

    fn flags(&mut self) -> u8 {
        *self.choose(&[
            SYN,
            SYN,
            ACK,
            ACK,
            ACK,
            ACK | FIN,
            RST,
            RST | ACK,
            SYN | ACK,
            0,
        ])
    }

    fn frame(&mut self, protocol: u8, from: SocketAddr, to: SocketAddr, flags: u8) -> Frame {
        let mut frame = Frame::of(protocol, from, to, flags)
            .numbers(self.rng.u32(..), self.rng.u32(..))
            .macs(ROUTER_MAC, CLIENTS_MAC);
        frame.ttl = *self.choose(&[64, 64, 64, 255, 2, 128]);
        frame.tos = *self.choose(&[0, 0, 0, 0x10, 0xb8, 3]);
        frame.dont_fragment = from.is_ipv4() && self.rng.bool();
        let length = match self.rng.u8(0..20) {
            0 => self.rng.usize(1400..2000),
            1..4 => 0,
            _ => self.rng.usize(0..200),
        };
        frame.payload = (0..length).map(|_| self.rng.u8(..)).collect();
        frame.padding = *self.choose(&[0, 0, 0, 6, 18]);
        match &mut frame.transport {
            Transport::Tcp(tcp) => {
                tcp.options = vec![1; 4 * self.rng.usize(0..4)];
            }
            Transport::Udp { checksum, .. } => *checksum = self.rng.u8(0..4) != 0,
            Transport::Echo | Transport::Other(_) => {}
        }
        frame
    }

    fn towards_service(&mut self, world: &World) -> Frame {
        let (protocol, to) = self.endpoint(world, Role::SERVICE);
        let from = self.client(world, to.ip());
        let flags = self.flags();
        self.frame(protocol, from, to, flags)
    }

    fn backends_answer(&mut self, world: &World) -> Frame {
        let (protocol, from) = self.endpoint(world, Role::BACKEND);
        let to = self.client(world, from.ip());
        let flags = self.flags();
        self.frame(protocol, from, to, flags)
            .macs(Mac([2, 0, 0, 4, 1, 1]), BACKENDS_MAC)
    }

    fn towards_backend(&mut self, world: &World) -> Frame {
        let (protocol, to) = self.endpoint(world, Role::BACKEND);
        let from = self.client(world, to.ip());
        let flags = self.flags();
        self.frame(protocol, from, to, flags)
    }

    /// The next packet of a conversation that was forwarded before.
    fn going_on(&mut self, world: &World) -> Frame {
        if self.sent.is_empty() {
            return self.towards_service(world);
        }
        let before = self.sent[self.rng.usize(..self.sent.len())].clone();
        let was = match &before.transport {
            Transport::Tcp(tcp) => tcp.flags,
            _ => 0,
        };
        let flags = match was & (SYN | ACK) {
            SYN if self.rng.u8(0..8) != 0 => SYN | ACK,
            both if both == SYN | ACK && self.rng.u8(0..8) != 0 => ACK,
            _ => self.flags(),
        };
        let to = before.destination_socket();
        let key = EndpointKey {
            address: to.ip().into(),
            port: to.port().into(),
            protocol: before.protocol(),
            nth: 0,
        };
        let is_service = world
            .tables
            .endpoints
            .get(&key)
            .is_some_and(|endpoint| endpoint.role == Role::SERVICE);
        // A frame that still goes to a service has no answer that comes by: the client goes on.
        let next = match is_service {
            true => before.macs(ROUTER_MAC, CLIENTS_MAC).flags(flags),
            false => before.answer(flags),
        };
        let next = match flags {
            both if both == SYN | ACK => {
                let Transport::Tcp(tcp) = &next.transport else {
                    return next.ttl(64);
                };
                let acknowledgement = tcp.acknowledgement;
                next.numbers(self.rng.u32(..), acknowledgement)
            }
            _ => next,
        };
        next.ttl(64)
    }

    /// Not for a service.
    fn foreign(&mut self, world: &World) -> Vec<u8> {
        let (protocol, to) = self.endpoint(world, Role::SERVICE);
        let from = self.client(world, to.ip());
        match self.rng.u8(0..8) {
            0 => frame::arp(ROUTER_MAC, [192, 0, 2, 254], [192, 0, 2, 1]),
            1 => Frame::echo(from.ip(), to.ip()).bytes(),
            2 => {
                let mut tagged = Frame::of(protocol, from, to, SYN);
                tagged.vlans = vec![7, 8, 9];
                tagged.bytes()
            }
            3 => Frame::of(protocol, from, to, SYN)
                .macs(ROUTER_MAC, Mac([0x33, 0x33, 0, 0, 0, 1]))
                .bytes(),
            4 => Frame::new(from.ip(), to.ip(), Transport::Other(132))
                .payload(&[0; 40])
                .bytes(),
            5 => Frame::of(protocol, from, to, ACK)
                .payload(&[9; 64])
                .fragment(185, self.rng.bool())
                .bytes(),
            6 => {
                let other = if protocol == TCP { UDP } else { TCP };
                Frame::of(other, from, to, SYN).bytes()
            }
            _ => {
                let local = self.local(world, to.ip());
                let to = SocketAddr::new(local, *self.choose(&[22, 443, 8443]));
                self.frame(protocol, from, to, SYN).bytes()
            }
        }
    }

    /// For a service or from a backend, and out of the ordinary.
    fn irregular(&mut self, world: &World) -> Frame {
        let frame = match self.rng.u8(0..3) {
            0 => self.backends_answer(world),
            1 => self.towards_backend(world),
            _ => self.towards_service(world),
        };
        match self.rng.u8(0..6) {
            0 => frame.ttl(self.rng.u8(0..2)),
            1 => frame.fragment(0, true),
            2 if frame.from.is_ipv6() => {
                let mut frame = frame;
                for _ in 0..self.rng.u8(1..7) {
                    let number =
                        *self.choose(&[ip::HOP_BY_HOP, ip::ROUTING, ip::DESTINATION_OPTIONS, 135]);
                    frame.extensions.push((number, self.rng.u8(0..3)));
                }
                frame
            }
            3 if frame.from.is_ipv6() => frame.fragment(0, false),
            4 => frame.irregular().fragment(0, true),
            _ => frame.irregular(),
        }
    }

    /// A frame that contradicts itself, or is none.
    fn lie(&mut self, world: &World) -> Vec<u8> {
        let mut bytes = match self.rng.u8(0..4) {
            0 => self.irregular(world).bytes(),
            1 => self.backends_answer(world).bytes(),
            2 => self.going_on(world).bytes(),
            _ => self.towards_service(world).bytes(),
        };
        match self.rng.u8(0..8) {
            0 => bytes.truncate(self.rng.usize(14..=bytes.len())),
            // The first bytes of the IP header: version, lengths, fragment, protocol.
            1..3 => {
                let place = self.rng.usize(14..24);
                bytes[place] = self.rng.u8(..);
            }
            // The transport header of a packet without options.
            3..5 => {
                let place = self.rng.usize(34..74).min(bytes.len() - 1);
                bytes[place] ^= 1 << self.rng.u8(..8);
            }
            5 => {
                for byte in &mut bytes[14..] {
                    *byte = self.rng.u8(..);
                }
            }
            6 => {
                let place = self.rng.usize(14..bytes.len());
                bytes.insert(place, self.rng.u8(..));
            }
            _ => {
                for _ in 0..self.rng.u8(1..5) {
                    let place = self.rng.usize(12..bytes.len());
                    bytes[place] = self.rng.u8(..);
                }
            }
        }
        bytes
    }
}
