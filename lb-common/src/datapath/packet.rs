//! A frame, as the data path sees it.

use crate::wire::Header;

/// A received frame, from its Ethernet header to its end.
///
/// Headers are lent and so cannot outlive a change of the frame. The XDP program and the host
/// implement it; nothing else in the data path touches bytes.
pub trait Packet {
    /// Bytes from the Ethernet header to the end of the frame.
    fn length(&self) -> u32;

    /// Index of the interface it came in on.
    fn ifindex(&self) -> u32;

    /// The number at `place`, read from memory again: neither the compiler nor the verifier knows
    /// more of it than its type says, and so they follow one way from here on, not one for each
    /// value that was put there.
    fn again(&self, place: &u16) -> u16;

    /// The header at `offset`; none if the frame ends before the header does.
    fn at<H: Header>(&self, offset: usize) -> Option<&H>;

    /// The header at `offset`, to change it; none if the frame ends before the header does.
    fn at_mut<H: Header>(&mut self, offset: usize) -> Option<&mut H>;

    /// Lets the frame begin `bytes` earlier: what was at 0 is at `bytes` then, and what comes in
    /// front is whatever lay there. False if there is no room, and nothing has changed.
    #[must_use]
    fn grow_head(&mut self, bytes: usize) -> bool;

    /// Cuts the frame to its first `length` bytes. False if it is not that long, and nothing has
    /// changed.
    #[must_use]
    fn shrink_tail(&mut self, length: usize) -> bool;

    /// Lets the frame begin `bytes` later: what was at `bytes` is at 0 then. False if that leaves no
    /// Ethernet header, and nothing has changed.
    #[must_use]
    fn shrink_head(&mut self, bytes: usize) -> bool;
}
