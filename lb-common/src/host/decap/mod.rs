//! A backend on the host: what it knows in std collections, what it counted.
//!
//! [`HostReceiver::standard`] is what the backend of [`fixtures`] and [`traffic`] knows.

pub mod fixtures;
pub mod traffic;

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    abi::{
        Address, Port,
        decap::{Counters, GUE_PORT, Reason},
    },
    datapath::{Verdict, parse::Family},
    decap::{self, Receiver},
    host::HostPacket,
};

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The family of its addresses.
    pub family: Family,
    /// Its first address.
    pub address: Address,
    /// Length of its prefix in bits of [`Address`]: for IPv4, 96 more than is usual.
    pub bits: u32,
}

impl Network {
    /// The network of `address` with a prefix of so many bits, counted as its family does.
    pub fn new(address: IpAddr, bits: u32) -> Self {
        let (family, before) = match address {
            IpAddr::V4(_) => (Family::V4, 96),
            IpAddr::V6(_) => (Family::V6, 0),
        };
        Self {
            family,
            address: Address::from(address),
            bits: before + bits,
        }
    }

    fn covers(&self, family: Family, address: &Address) -> bool {
        let different = u128::from_be_bytes(self.address.0) ^ u128::from_be_bytes(address.0);
        family == self.family && different.leading_zeros() >= self.bits
    }
}

/// A backend that takes packets out of tunnels.
#[derive(Clone, Debug)]
pub struct HostReceiver {
    /// Where tunnels are taken from.
    pub sources: Vec<Network>,
    /// The UDP port of GUE.
    pub gue_port: Port,
    /// Its own addresses.
    pub locals: BTreeSet<Address>,
    /// Networks that it forwards to.
    pub routes: Vec<Network>,
    /// What came in.
    pub counters: Counters,
}

impl Default for HostReceiver {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            gue_port: Port::from(GUE_PORT),
            locals: BTreeSet::new(),
            routes: Vec::new(),
            counters: Counters::default(),
        }
    }
}

impl HostReceiver {
    /// A backend with two networks, 10.0.1.254 and fd00:1::ff on the one and 192.0.2.1 and
    /// 2001:db8:0:1::1 on the other, that forwards to others and takes tunnels from 10.0.9.0/28,
    /// 10.0.1.7, fd00:9::/64 and fd00:1::7.
    ///
    /// # Panics
    ///
    /// Never: the addresses are written here.
    pub fn standard() -> Self {
        let network = |text: &str| {
            let (address, bits) = text.split_once('/').expect("a network");
            let address: IpAddr = address.parse().expect("an address");
            Network::new(address, bits.parse().expect("a number"))
        };
        let networks = |all: &[&str]| all.iter().map(|text| network(text)).collect();
        // With the broadcast addresses and, since it is a router, the subnet-router anycast
        // addresses (RFC 4291 section 2.6.1) of its networks.
        let locals = [
            "10.0.1.254",
            "10.0.1.255",
            "192.0.2.1",
            "192.0.2.255",
            "fd00:1::ff",
            "fd00:1::",
            "2001:db8:0:1::1",
            "2001:db8:0:1::",
        ];
        Self {
            sources: networks(&["10.0.9.0/28", "10.0.1.7/32", "fd00:9::/64", "fd00:1::7/128"]),
            locals: locals
                .map(|text| Address::from(text.parse::<IpAddr>().expect("an address")))
                .into(),
            routes: networks(&[
                "10.0.1.0/24",
                "10.0.2.0/24",
                "192.0.2.0/24",
                "198.51.100.0/24",
                "fd00:1::/64",
                "fd00:2::/64",
                "2001:db8:0:1::/64",
                "2001:db8:c::/48",
            ]),
            ..Self::default()
        }
    }
}

impl Receiver for HostReceiver {
    fn is_known(&self, family: Family, source: &Address) -> bool {
        let mut sources = self.sources.iter();
        sources.any(|network| network.covers(family, source))
    }

    fn gue_port(&self) -> Port {
        self.gue_port
    }

    fn sends_on(&self, family: Family, destination: &Address, _ifindex: u32) -> bool {
        let mut routes = self.routes.iter();
        !self.locals.contains(destination)
            && routes.any(|network| network.covers(family, destination))
    }

    fn count(&mut self, reason: Reason, bytes: u32) {
        self.counters.reasons[reason as usize].add(u64::from(bytes));
    }
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// To the stack, or nowhere.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Its bytes afterwards.
    pub frame: Vec<u8>,
}

/// A frame's whole way, as [`decap::process`] in the XDP program.
pub fn process(frame: &[u8], ifindex: u32, receiver: &mut HostReceiver) -> Outcome {
    let mut packet = HostPacket::new(frame, ifindex);
    let (verdict, reason) = decap::process(&mut packet, receiver);
    Outcome {
        verdict,
        reason,
        frame: packet.bytes().to_vec(),
    }
}
