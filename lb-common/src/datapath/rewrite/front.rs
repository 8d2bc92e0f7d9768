//! Room for further headers between a frame's VLAN tags and its IP packet.

use crate::{
    abi::Reason,
    datapath::{Packet, parse::Parsed},
    wire::eth::{EthernetHeader, VlanTag},
};

/// Makes room for `head` bytes in front of the packet (at least as many as two VLAN tags have), where
/// what `ether_type` says will lie: at [`Parsed::l3`]. The Ethernet header in front of it has no
/// addresses yet; the VLAN tags are the frame's own.
#[inline(always)]
pub(in crate::datapath) fn extend<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    head: usize,
    ether_type: [u8; 2],
) -> Result<(), Reason> {
    const FIRST: usize = EthernetHeader::LEN;
    const SECOND: usize = FIRST + VlanTag::LEN;
    if !packet.grow_head(head) {
        return Err(Reason::NoHeadroom);
    }
    let l3 = parsed.l3();
    if l3 == FIRST {
        let ethernet: &mut EthernetHeader = packet.at_mut(0).ok_or(Reason::NoHeadroom)?;
        ethernet.ether_type = ether_type;
        return Ok(());
    }
    let before: &EthernetHeader = packet.at(head).ok_or(Reason::NoHeadroom)?;
    let announced = before.ether_type;
    let ethernet: &mut EthernetHeader = packet.at_mut(0).ok_or(Reason::NoHeadroom)?;
    ethernet.ether_type = announced;
    let first: VlanTag = *packet.at(head + FIRST).ok_or(Reason::NoHeadroom)?;
    let place: &mut VlanTag = packet.at_mut(FIRST).ok_or(Reason::NoHeadroom)?;
    place.control = first.control;
    if l3 == SECOND {
        place.ether_type = ether_type;
        return Ok(());
    }
    place.ether_type = first.ether_type;
    let second: &VlanTag = packet.at(head + SECOND).ok_or(Reason::NoHeadroom)?;
    let control = second.control;
    let place: &mut VlanTag = packet.at_mut(SECOND).ok_or(Reason::NoHeadroom)?;
    place.control = control;
    place.ether_type = ether_type;
    Ok(())
}
