//! The backend's side of tunnels, on the host.

use etherparse::{NetSlice, SlicedPacket};
use lb_common::{
    abi::decap::{Fate, Reason},
    datapath::Verdict,
    host::{
        decap::{HostReceiver, fixtures, process, traffic},
        frame,
    },
};

#[test]
fn every_fixture_meets_its_fate() {
    let mut met = vec![0; Reason::ALL.len()];
    for fixture in fixtures::all() {
        let mut receiver = HostReceiver::standard();
        let got = process(&fixture.frame, 1, &mut receiver);
        assert!(
            (got.verdict, got.reason) == (fixture.verdict, fixture.reason)
                && got.frame == fixture.out,
            "{}\nin      {}\nwanted  {:?} {:?} {}\ngot     {:?} {:?} {}",
            fixture.name,
            frame::describe(&fixture.frame),
            fixture.verdict,
            fixture.reason,
            frame::describe(&fixture.out),
            got.verdict,
            got.reason,
            frame::describe(&got.frame),
        );
        for &reason in Reason::ALL {
            let counter = receiver.counters.reasons[reason as usize];
            let once = u64::from(reason == fixture.reason);
            assert_eq!(counter.packets, once, "{} {reason:?}", fixture.name);
            assert_eq!(counter.bytes, once * fixture.frame.len() as u64);
        }
        met[fixture.reason as usize] += 1;
    }
    for &reason in Reason::ALL {
        assert!(met[reason as usize] > 0, "no fixture is {reason:?}");
    }
}

/// Another implementation takes the packet out of its tunnel, and finds the same.
#[test]
fn what_is_taken_out_is_what_was_wrapped() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut receiver = HostReceiver::standard();
    let mut taken = 0;
    for _ in 0..50_000 {
        let frame = traffic::frame(&mut rng);
        let got = process(&frame, 1, &mut receiver);
        match got.reason.fate() {
            Fate::Passed => assert_eq!(got.frame, frame, "{:?}", got.reason),
            Fate::Dropped => assert_eq!(got.verdict, Verdict::Drop),
            Fate::Taken => {
                taken += 1;
                assert_eq!(got.verdict, Verdict::Pass);
                assert_same(&frame, &got.frame, got.reason);
            }
        }
    }
    assert!(taken > 15_000, "only {taken} were taken");
}

fn assert_same(frame: &[u8], out: &[u8], reason: Reason) {
    assert_eq!(frame[..12], out[..12], "the MAC addresses stay");
    let outer = SlicedPacket::from_ethernet(frame).expect("the outer packet");
    let wrapped = match (&outer.net, reason) {
        (Some(NetSlice::Ipv4(ip)), Reason::TakenIpip) => ip.payload().payload,
        (Some(NetSlice::Ipv6(ip)), Reason::TakenIpip) => ip.payload().payload,
        (Some(NetSlice::Ipv4(ip)), _) => &ip.payload().payload[8..],
        (Some(NetSlice::Ipv6(ip)), _) => &ip.payload().payload[8..],
        (net, _) => panic!("{net:?}"),
    };
    // All of it, but for the ECN field, and with it the checksum.
    let version = wrapped[0] >> 4;
    let (mut inside, mut came) = (wrapped.to_vec(), out[14..14 + wrapped.len()].to_vec());
    for packet in [&mut inside, &mut came] {
        match version {
            4 => {
                packet[1] &= !3;
                packet[10..12].fill(0);
            }
            _ => packet[1] &= !0x30,
        }
    }
    assert_eq!(inside, came);
    assert_eq!(
        out[12..14],
        if version == 4 { [8, 0] } else { [0x86, 0xdd] }
    );
    if version == 4 {
        // As right or as wrong as it was.
        let [before, after] = [&wrapped[..20], &out[14..34]].map(|header| {
            let header = etherparse::Ipv4HeaderSlice::from_slice(header).ok()?;
            let header = header.to_header();
            Some(header.header_checksum == header.calc_header_checksum())
        });
        if wrapped[0] == 0x45 {
            assert_eq!(before, after);
        }
    }
}
