//! The frames that tests are made of are what they say, as another implementation reads them; and
//! no frame, however cut, makes the data path read beyond its end or change what is not ours.

use etherparse::{SlicedPacket, TransportSlice, err::packet::SliceError};
use lb_common::{
    abi::Fate,
    host::{
        Balancer, fixtures,
        frame::{self, Frame, checksums},
        traffic::Traffic,
        world::{CLIENTS, GUE_PORT, World},
    },
};

/// Reads a frame with etherparse and compares its checksums with computed ones.
fn verify(frame: &[u8]) -> Result<(), SliceError> {
    let sliced = SlicedPacket::from_ethernet(frame)?;
    let (source, destination) = match &sliced.net {
        Some(etherparse::NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (header.source.to_vec(), header.destination.to_vec())
        }
        Some(etherparse::NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            (header.source.to_vec(), header.destination.to_vec())
        }
        _ => return Ok(()),
    };
    let v4 = || -> Option<([u8; 4], [u8; 4])> {
        Some((
            source.clone().try_into().ok()?,
            destination.clone().try_into().ok()?,
        ))
    };
    let v6 = || -> Option<([u8; 16], [u8; 16])> {
        Some((
            source.clone().try_into().ok()?,
            destination.clone().try_into().ok()?,
        ))
    };
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let header = tcp.to_header();
            let sum = match (v4(), v6()) {
                (Some((a, b)), _) => header.calc_checksum_ipv4_raw(a, b, tcp.payload()),
                (_, Some((a, b))) => header.calc_checksum_ipv6_raw(a, b, tcp.payload()),
                _ => unreachable!("an address has four bytes or sixteen"),
            };
            assert_eq!(Ok(header.checksum), sum);
        }
        Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
            let header = udp.to_header();
            let sum = match (v4(), v6()) {
                (Some((a, b)), _) => header.calc_checksum_ipv4_raw(a, b, udp.payload()),
                (_, Some((a, b))) => header.calc_checksum_ipv6_raw(a, b, udp.payload()),
                _ => unreachable!("an address has four bytes or sixteen"),
            };
            assert_eq!(Ok(header.checksum), sum);
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let header = icmp.header();
            let sum = header.icmp_type.calc_checksum(icmp.payload());
            assert_eq!(header.checksum, sum);
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let (a, b) = v6().expect("an IPv6 header is in front of it");
            assert!(icmp.is_checksum_valid(a, b));
        }
        _ => {}
    }
    Ok(())
}

#[test]
fn another_implementation_finds_the_same_checksums() {
    let world = World::standard();
    let mut verified = 0;
    for fixture in fixtures::all(&world) {
        for frame in [&fixture.frame, &fixture.out] {
            let whole = checksums(frame);
            if whole.transport == Some(true) && whole.ip != Some(false) {
                verify(frame).expect("it reads the frame");
                verified += 1;
            }
        }
    }
    assert!(verified > 100, "{verified}");
}

#[test]
fn another_implementation_agrees_on_what_was_rewritten() {
    let mut lb = Balancer::new(World::standard());
    let mut traffic = Traffic::new(3);
    let (mut verified, mut tunnelled) = (0, 0);
    for _ in 0..20_000 {
        let (ifindex, frame) = traffic.next(&lb.world);
        let before = checksums(&frame);
        let outcome = lb.receive(ifindex, &frame);
        if frame == outcome.frame {
            continue;
        }
        traffic.forwarded(&outcome.frame);
        // It takes only hop-by-hop options that come first.
        let is_read = SlicedPacket::from_ethernet(&frame).is_ok();
        if is_read && before.transport == Some(true) && before.ip != Some(false) {
            verify(&outcome.frame).expect("it reads the frame");
            verified += 1;
            if let Some(inner) = frame::inner(&outcome.frame, GUE_PORT) {
                verify(&inner).expect("it reads the inner frame");
                tunnelled += 1;
            }
        }
    }
    assert!(verified > 5_000, "{verified}");
    assert!(tunnelled > 2_000, "{tunnelled}");
}

#[test]
fn a_frame_that_is_read_is_written_back_alike() {
    let world = World::standard();
    let mut read = 0;
    for fixture in fixtures::all(&world) {
        if checksums(&fixture.out).transport != Some(true) {
            continue;
        }
        if let Some(frame) = Frame::read(&fixture.out) {
            assert_eq!(frame.bytes(), fixture.out, "{}", fixture.name);
            read += 1;
        }
    }
    assert!(read > 50, "{read}");
}

#[test]
fn a_frame_cut_anywhere_passes_untouched() {
    let world = World::standard();
    for fixture in fixtures::all(&world) {
        // Behind the packet there is padding, of which a frame may have less.
        let padding = Frame::read(&fixture.frame).map_or(0, |frame| frame.padding);
        let whole = fixture.frame.len() - padding;
        for length in 0..whole {
            let mut lb = Balancer::new(world.clone());
            let cut = &fixture.frame[..length];
            let outcome = lb.receive(CLIENTS, cut);
            assert_eq!(
                outcome.reason.fate(),
                Fate::Passed,
                "{} {length}",
                fixture.name
            );
            assert_eq!(outcome.frame, cut);
            assert!(lb.flows.new.is_empty());
        }
    }
}
