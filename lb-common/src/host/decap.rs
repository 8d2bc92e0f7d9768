//! A backend on the host: what it knows in std collections, what it counted.

use std::collections::BTreeSet;

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
