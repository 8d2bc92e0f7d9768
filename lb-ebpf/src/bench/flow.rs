//! Which flow a packet of the benchmark belongs to: one answer for the program that writes the
//! packets and for the process that fills the tables. Compiled into both.

/// What a flow's client contributes to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// The last four bytes of its address. The whole of an IPv4 address, in 198.18.0.0/15, the
    /// range set aside for benchmarks (RFC 2544 appendix C.2.2).
    pub(crate) address: [u8; 4],
    /// Its port, network byte order; 32768 or above.
    pub(crate) port: [u8; 2],
}

/// The client of flow `index`. Eight flows share an address, and no two flows are the same.
#[inline(always)]
pub(crate) const fn client(index: u32) -> Client {
    let host = (index >> 3) & 0x1_ffff;
    let port = (index & 7) | ((index >> 20) << 3);
    Client {
        address: (0xc612_0000 | host).to_be_bytes(),
        port: (0x8000 | port as u16).to_be_bytes(),
    }
}

/// The flow of packet number `counter`: one of `flows`, in an order that jumps about in tables and
/// meets every flow in any run of three times as many packets (Fibonacci hashing: Knuth, The Art
/// of Computer Programming 3, section 6.4). Where `flows` is 0, a flow that no other packet is of.
#[inline(always)]
pub(crate) const fn pick(counter: u32, flows: u32) -> u32 {
    if flows == 0 {
        return NEW | counter;
    }
    let hash = counter.wrapping_mul(2_654_435_761);
    ((hash as u64 * flows as u64) >> 32) as u32
}

/// Set in the numbers of flows that are met once.
pub(crate) const NEW: u32 = 1 << 31;
