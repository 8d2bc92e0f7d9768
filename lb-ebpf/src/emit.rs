//! A verdict as the action that the driver carries out.

#![expect(unsafe_code, reason = "bpf_redirect is a helper of the kernel")]

use aya_ebpf::{bindings::xdp_action, helpers::generated::bpf_redirect};
use lb_common::datapath::Verdict;

use crate::tables;

/// The action of a verdict, for a frame that came in on `ifindex`.
#[inline(always)]
pub(crate) fn action(verdict: Verdict, ifindex: u32) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Transmit if tables::transmits_by_redirect() => redirect(ifindex),
        Verdict::Transmit => xdp_action::XDP_TX,
        Verdict::Redirect(ifindex) => redirect(ifindex),
    }
}

#[inline(always)]
fn redirect(ifindex: u32) -> u32 {
    // SAFETY: the helper takes numbers only and notes the target for when the program ends.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}
