//! A verdict as the action that the driver carries out.

#![expect(unsafe_code, reason = "bpf_redirect is a helper of the kernel")]

use aya_ebpf::{bindings::xdp_action, helpers::generated::bpf_redirect};
use lb_common::datapath::Verdict;

/// The action of a verdict.
#[inline(always)]
pub(crate) fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Transmit => xdp_action::XDP_TX,
        // SAFETY: the helper takes numbers only and notes the target for when the program ends.
        Verdict::Redirect(ifindex) => unsafe { bpf_redirect(ifindex, 0) as u32 },
    }
}
