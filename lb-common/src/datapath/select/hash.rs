//! Hashes: one for names and addresses in the agent, one for packets in the program.
//!
//! Both are part of the contract between load balancers (the same packet picks the same backend on
//! each), so a change here is a change of `ABI_VERSION`.

use crate::{
    abi::{Address, Port},
    datapath::parse::{Parsed, Part},
};

/// FNV-1a, 64 bits (RFC 9923), with a finishing mix so that all bits depend on all input.
pub(super) struct Fnv(u64);

impl Fnv {
    pub(super) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(super) const fn finish(&self) -> u64 {
        mix(self.0)
    }
}

/// The 64-bit finaliser of MurmurHash3: every input bit flips every output bit with probability
/// one half. Multiplications and shifts only, each one BPF instruction.
#[inline(always)]
pub(super) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

/// The hash of a client's address, and of its port and protocol where the algorithm counts them
/// (else 0), under a service's seed. `attempt` makes further independent choices for one packet.
#[inline(always)]
pub(super) fn client(seed: u32, address: &Address, port: Port, protocol: u8, attempt: u32) -> u64 {
    let [a, b] = halves(address);
    let rest = (u64::from(seed) << 32)
        | (u64::from(port.number()) << 16)
        | (u64::from(protocol) << 8)
        | u64::from(attempt as u8);
    mix(mix(a ^ 0x9e37_79b9_7f4a_7c15).wrapping_add(b) ^ mix(rest))
}

/// The hash of a packet's flow, the same on every load balancer: for what spreads flows over
/// receivers' queues and over equal paths, not for the choice of a backend. Fragments, of which
/// only the first has ports, are one flow for each client.
#[inline(always)]
pub fn flow(parsed: &Parsed) -> u64 {
    if parsed.part != Part::Whole {
        return client(0, &parsed.source, Port::default(), 0, 0xff);
    }
    let port = u32::from(parsed.destination_port.number());
    client(
        port,
        &parsed.source,
        parsed.source_port,
        parsed.protocol,
        0xff,
    )
}

/// `hash` scaled to `0..size`, by its upper bits: a multiplication instead of a division.
#[inline(always)]
pub(super) const fn scale(hash: u64, size: u32) -> u32 {
    (((hash >> 32) * size as u64) >> 32) as u32
}

#[inline(always)]
fn halves(address: &Address) -> [u64; 2] {
    let a = &address.0;
    [
        u64::from_le_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]),
        u64::from_le_bytes([a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]]),
    ]
}
