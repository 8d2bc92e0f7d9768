//! `dsr-gue`: outer IP and UDP headers in front of the packet, which stays as it is. The backend takes
//! them off, owns the service address and answers the client directly.
//!
//! GUE variant 1 (draft-ietf-intarea-gue-09 section 4): the packet lies right behind the UDP header,
//! and the first four bits of its own header say whether it is IPv4 or IPv6. The UDP source port is
//! from the dynamic range, 49152 to 65535, and varies by flow: routers spread flows over equal paths
//! and receivers over their queues by it.
//!
//! The UDP checksum is 0, over IPv6 too, as RFC 6935 and RFC 6936 allow for tunnels: one over the
//! payload cannot be had from what XDP may read, the payload has its own (TCP and UDP with
//! pseudo-header), and the outer addresses are checked by the receiver (`--from` of `lb-user decap`).
//! Linux takes it, too: a `fou` socket asks for no checksum over IPv6 (`udp_sock_create6`).
//! A middlebox that drops UDP over IPv6 with checksum 0 is a case for `dsr-ipip`.

use super::{
    Step,
    outer::{self, Kind},
};
use crate::{
    abi::{Backend, Reason},
    datapath::{Packet, Tables, parse::Parsed},
    wire::l4::UdpHeader,
};

/// First port of the dynamic range (RFC 6335 section 6), and the bits that vary in it.
const DYNAMIC: u16 = 0xc000;
const VARYING: u16 = 0x3fff;

/// Decides what happens to a client's packet.
#[inline(always)]
pub(super) fn towards<T: Tables>(
    parsed: &Parsed,
    backend: &Backend,
    tables: &T,
    step: &mut Step,
) -> Result<(), Reason> {
    outer::towards(parsed, backend, Kind::Udp, tables, step)
}

/// Writes the UDP header at `offset`, in front of a payload of `length` bytes.
#[inline(always)]
pub(super) fn put<P: Packet>(
    packet: &mut P,
    offset: usize,
    length: u16,
    step: &Step,
) -> Result<(), Reason> {
    let udp: &mut UdpHeader = packet.at_mut(offset).ok_or(Reason::NoHeadroom)?;
    udp.source = (DYNAMIC | (step.hash >> 48) as u16 & VARYING).to_be_bytes();
    udp.destination = step.port.0;
    udp.length = (UdpHeader::LEN as u16 + length).to_be_bytes();
    udp.checksum = [0; 2];
    Ok(())
}
