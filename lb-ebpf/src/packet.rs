//! A frame behind the context that the kernel hands to an XDP program.

#![expect(unsafe_code, reason = "headers are lent from the frame by pointer")]

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
};
use lb_common::{datapath::Packet, wire::Header};

/// The frame of one run of the program.
pub(crate) struct XdpPacket {
    ctx: *mut xdp_md,
}

impl XdpPacket {
    /// The frame of `ctx`, which must be the context that the kernel gave to the program.
    #[inline(always)]
    pub(crate) const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    /// A pointer to a header that lies in the frame as a whole.
    #[inline(always)]
    fn place<H: Header>(&self, offset: usize) -> Option<*mut H> {
        // SAFETY: the kernel's context is valid for the whole run.
        let data = unsafe { (*self.ctx).data } as usize;
        // SAFETY: as above.
        let end = unsafe { (*self.ctx).data_end } as usize;
        let start = data + offset;
        (start + size_of::<H>() <= end).then_some(start as *mut H)
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the kernel's context is valid for the whole run.
        (unsafe { bpf_xdp_get_buff_len(self.ctx) }) as u32
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context is valid for the whole run.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn again(&self, place: &u16) -> u16 {
        // SAFETY: a reference, read as the number it refers to.
        unsafe { core::ptr::read_volatile(place) }
    }

    #[inline(always)]
    fn at<H: Header>(&self, offset: usize) -> Option<&H> {
        // SAFETY: in bounds by `place`; a header takes any bytes; frames begin at even addresses and
        // headers lie at even offsets, as their alignment asks; the frame is this run's alone, and `&self` keeps it from being changed while the header is lent.
        self.place(offset).map(|header| unsafe { &*header })
    }

    #[inline(always)]
    fn at_mut<H: Header>(&mut self, offset: usize) -> Option<&mut H> {
        // SAFETY: as in `at`; `&mut self` makes this the only header that is lent.
        self.place(offset).map(|header| unsafe { &mut *header })
    }

    #[inline(always)]
    fn grow_head(&mut self, bytes: usize) -> bool {
        // SAFETY: the kernel's context is valid for the whole run; `&mut self` says that no header
        // is lent while the frame moves.
        (unsafe { bpf_xdp_adjust_head(self.ctx, -(bytes as i32)) }) == 0
    }

    #[inline(always)]
    fn shrink_tail(&mut self, length: usize) -> bool {
        let less = length as i32 - self.length() as i32;
        // SAFETY: as in `grow_head`; the helper refuses what is shorter than an Ethernet header.
        less <= 0 && (unsafe { bpf_xdp_adjust_tail(self.ctx, less) }) == 0
    }

    #[inline(always)]
    fn shrink_head(&mut self, bytes: usize) -> bool {
        // SAFETY: the kernel's context is valid for the whole run. The helper moves the frame's
        // beginning; `&mut self` makes sure that no header is lent meanwhile.
        unsafe { bpf_xdp_adjust_head(self.ctx, bytes as i32) == 0 }
    }
}
