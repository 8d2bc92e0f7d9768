//! A frame in a buffer of its own.

use zerocopy::IntoBytes;

use crate::{
    datapath::Packet,
    wire::{Header, eth::EthernetHeader},
};

/// Room in front of a received frame, as drivers leave it (Linux `XDP_PACKET_HEADROOM`).
pub const HEADROOM: usize = 256;

/// A received frame. Its first byte is aligned to four, as in a driver's buffer.
#[derive(Clone, Debug)]
pub struct HostPacket {
    words: Vec<u32>,
    /// Where the frame begins, and where it ends.
    start: usize,
    end: usize,
    ifindex: u32,
}

impl HostPacket {
    /// A copy of `frame`, as received on the interface `ifindex`.
    pub fn new(frame: &[u8], ifindex: u32) -> Self {
        Self::with_headroom(HEADROOM, frame, ifindex)
    }

    /// A copy of `frame` with so much room in front, a multiple of four.
    pub fn with_headroom(headroom: usize, frame: &[u8], ifindex: u32) -> Self {
        let end = headroom + frame.len();
        let mut words = vec![0u32; end.div_ceil(4)];
        words.as_mut_bytes()[headroom..end].copy_from_slice(frame);
        Self {
            words,
            start: headroom,
            end,
            ifindex,
        }
    }

    /// The frame.
    pub fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[self.start..self.end]
    }
}

impl Packet for HostPacket {
    fn length(&self) -> u32 {
        (self.end - self.start) as u32
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn again(&self, place: &u16) -> u16 {
        *place
    }

    fn at<H: Header>(&self, offset: usize) -> Option<&H> {
        let place = self.bytes().get(offset..offset + size_of::<H>())?;
        H::ref_from_bytes(place).ok()
    }

    fn at_mut<H: Header>(&mut self, offset: usize) -> Option<&mut H> {
        let frame = &mut self.words.as_mut_bytes()[self.start..self.end];
        let place = frame.get_mut(offset..offset + size_of::<H>())?;
        H::mut_from_bytes(place).ok()
    }

    fn grow_head(&mut self, bytes: usize) -> bool {
        match self.start.checked_sub(bytes) {
            Some(start) => {
                self.start = start;
                true
            }
            None => false,
        }
    }

    fn shrink_tail(&mut self, length: usize) -> bool {
        if length < EthernetHeader::LEN || self.start + length > self.end {
            return false;
        }
        self.end = self.start + length;
        true
    }

    fn shrink_head(&mut self, bytes: usize) -> bool {
        if self.start + bytes + EthernetHeader::LEN > self.end {
            return false;
        }
        self.start += bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::l4::Ports;

    #[test]
    fn a_header_is_lent_only_if_it_lies_in_the_frame_as_a_whole() {
        let mut packet = HostPacket::new(&[1, 2, 3, 4, 5, 6, 7], 1);
        assert_eq!(packet.length(), 7);
        assert_eq!(packet.at::<Ports>(2).map(|p| p.source), Some([3, 4]));
        assert!(packet.at::<Ports>(4).is_none());
        assert!(packet.at_mut::<Ports>(4).is_none());
        packet.at_mut::<Ports>(2).expect("it fits").source = [8, 9];
        assert_eq!(packet.bytes(), [1, 2, 8, 9, 5, 6, 7]);
    }

    #[test]
    fn a_frame_is_cut_at_its_tail_and_never_made_longer_there() {
        let frame: Vec<u8> = (0..20).collect();
        let mut packet = HostPacket::new(&frame, 1);
        assert!(!packet.shrink_tail(21));
        assert!(!packet.shrink_tail(13));
        assert!(packet.shrink_tail(16));
        assert_eq!(packet.bytes(), &frame[..16]);
    }

    #[test]
    fn a_frame_grows_at_its_head_as_far_as_there_is_room() {
        let mut packet = HostPacket::with_headroom(8, &[1, 2, 3, 4], 1);
        assert!(packet.grow_head(6));
        assert_eq!(packet.bytes(), [0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        assert!(!packet.grow_head(3));
        assert_eq!(packet.length(), 10);
    }

    #[test]
    fn a_frame_never_loses_its_last_ethernet_header() {
        let frame: Vec<u8> = (0..20).collect();
        let mut packet = HostPacket::new(&frame, 1);
        assert!(!packet.shrink_head(7));
        assert_eq!(packet.bytes(), frame);
        assert!(packet.shrink_head(6));
        assert_eq!(packet.bytes(), &frame[6..]);
    }
}
