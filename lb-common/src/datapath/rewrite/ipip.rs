//! `dsr-ipip`: an outer IP header in front of the packet, which stays as it is. The backend takes it
//! off, owns the service address and answers the client directly.
//!
//! IPv4 or IPv6 inside IPv4 (RFC 2003, RFC 4213 section 3) or IPv6 (RFC 2473). What the outer header
//! says is in [`super::outer`].

use super::{
    Step,
    outer::{self, Kind},
};
use crate::{
    abi::{Backend, Reason},
    datapath::{Tables, parse::Parsed},
};

/// Decides what happens to a client's packet.
#[inline(always)]
pub(super) fn towards<T: Tables>(
    parsed: &Parsed,
    backend: &Backend,
    tables: &T,
    step: &mut Step,
) -> Result<(), Reason> {
    outer::towards(parsed, backend, Kind::Ip, tables, step)
}
