//! `dsr-l2`: the frame goes to the backend's MAC address, the IP packet stays as it is. The
//! backend owns the service address and answers the client directly.
//!
//! An unresolved backend means a drop: the kernel would take the packet for its own, since the
//! service address may be on the load balancer, and answer the client with a RST.

use super::{Change, Step};
use crate::abi::{Backend, Reason};

/// Decides what happens to a client's packet.
#[inline(always)]
pub(super) fn towards(backend: &Backend, step: &mut Step) -> Result<(), Reason> {
    if !backend.neighbour.is_resolved() {
        return Err(Reason::BackendUnresolved);
    }
    step.change = Change::Nothing;
    step.next = backend.neighbour;
    step.reason = Reason::ToBackend;
    Ok(())
}
