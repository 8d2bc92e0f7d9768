//! Which backend serves a packet: the flow's own if there is one, else what the service's
//! algorithm says.
//!
//! Each algorithm is one file with `pick`, run for a new flow, beside the `build` that fills the
//! table it picks from.

mod choose;
mod hash;
pub mod maglev;
pub mod round_robin;

pub use choose::{Choice, Request, backend};
pub use hash::flow as flow_hash;

use crate::abi::{self, Address, BackendId, Port};

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Maglev hashing over the client's address and port.
    Maglev,
    /// One after the other.
    RoundRobin,
    /// Maglev hashing over the client's address alone.
    SourceHash,
}

impl Algorithm {
    /// The algorithm with this number; none for numbers of other versions.
    #[inline(always)]
    pub fn of(number: abi::Algorithm) -> Option<Self> {
        match number {
            abi::Algorithm::MAGLEV => Some(Self::Maglev),
            abi::Algorithm::ROUND_ROBIN => Some(Self::RoundRobin),
            abi::Algorithm::SOURCE_HASH => Some(Self::SourceHash),
            _ => None,
        }
    }
}

/// A backend that may get slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What the slots will hold.
    pub id: BackendId,
    /// Derived from the backend's address and port alone ([`identity`]), so that every load
    /// balancer builds the same table whatever ids it has given.
    pub identity: u64,
    /// Its share, relative to the others'; 0: no slot.
    pub weight: u32,
}

/// The slots of a service, at most `size` of them; none if no candidate has weight.
///
/// Maglev and source hashing share one table of exactly `size` cells, which must be prime.
/// Round-robin is one turn of the wheel, as long as the weights need.
#[cfg(any(test, feature = "host"))]
pub fn build(algorithm: Algorithm, size: u32, candidates: &[Candidate]) -> Vec<BackendId> {
    let mut weighted: Vec<Candidate> = candidates
        .iter()
        .copied()
        .filter(|c| c.weight > 0)
        .collect();
    weighted.sort_by_key(|c| c.identity);
    if weighted.is_empty() {
        return Vec::new();
    }
    match algorithm {
        Algorithm::RoundRobin => round_robin::build(size, &weighted),
        Algorithm::Maglev | Algorithm::SourceHash => maglev::build(size, &weighted),
    }
}

/// A backend's identity: a hash of its address and port that no node, restart or version changes.
pub fn identity(address: Address, port: Port) -> u64 {
    let mut hash = hash::Fnv::new();
    hash.bytes(&address.0);
    hash.bytes(&port.0);
    hash.finish()
}

/// A service's seed: a hash of its name.
pub fn seed(name: &str) -> u32 {
    let mut hash = hash::Fnv::new();
    hash.bytes(name.as_bytes());
    let whole = hash.finish();
    (whole ^ (whole >> 32)) as u32
}
