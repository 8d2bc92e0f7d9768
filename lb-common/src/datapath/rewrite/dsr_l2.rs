//! `dsr-l2`: the frame goes to the backend's MAC address, the IP packet stays as it is. The
//! backend owns the service address and answers the client directly.
//!
//! An unresolved backend means a drop: the kernel would take the packet for its own, since the
//! service address may be on the load balancer, and answer the client with a RST.

use crate::{
    abi::{Backend, Reason},
    datapath::{Packet, Sent},
};

/// Sends a client's packet to its backend.
#[inline(always)]
pub(super) fn towards<P: Packet>(packet: &mut P, backend: &Backend) -> Result<Sent, Reason> {
    if !backend.neighbour.is_resolved() {
        return Err(Reason::BackendUnresolved);
    }
    let verdict = super::address(packet, &backend.neighbour)?;
    Ok(Sent {
        verdict,
        reason: Reason::ToBackend,
    })
}
