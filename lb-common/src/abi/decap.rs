//! What the program on a backend and `lb-user decap` share: why packets left, counters, settings.

use crate::abi::{Counter, Port, reason::reasons, shared};

/// Changes whenever a map of the decapsulating program changes its meaning or layout.
pub const VERSION: u32 = 1;

/// Most sources that tunnels are taken from.
pub const SOURCES: u32 = 4096;

/// UDP port of GUE where nothing else is said (RFC-to-be draft-ietf-intarea-gue section 5.9; IANA
/// calls the port `gue`).
pub const GUE_PORT: u16 = 6080;

/// What happened to a packet, whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// Left to the kernel unchanged.
    Passed,
    /// Taken out of its tunnel and given to the kernel.
    Taken,
    /// Gone.
    Dropped,
}

impl Fate {
    /// Its name, as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Taken => "taken",
            Self::Dropped => "dropped",
        }
    }
}

reasons! {
    Reason(Fate):
    /// Neither IPv4 nor IPv6 (ARP, VLAN-tagged frames and others).
    NotIp = 0, Passed, "not-ip";
    /// Neither IP in IP nor UDP to the GUE port, or for a group of stations.
    NotTunnel = 1, Passed, "not-tunnel";
    /// The frame is shorter than its headers say, or an outer header contradicts itself or has a
    /// wrong checksum.
    Malformed = 2, Passed, "malformed";
    /// A fragment of a tunnel packet. Load balancers send them whole and forbid fragments: a router
    /// on the way has cut it, so the path's MTU is smaller than the load balancer believes.
    Fragment = 3, Passed, "fragment";
    /// IPv4 options in front of IP in IP or UDP. No load balancer sends them.
    Options = 4, Passed, "options";
    /// A tunnel packet from an address that no --from names.
    UnknownSource = 5, Passed, "unknown-source";
    /// A tunnel packet for another host, to which this one forwards it.
    OtherHost = 6, Passed, "other-host";
    /// To the GUE port, but IP does not begin behind the UDP header: another variant of GUE.
    OtherGue = 7, Passed, "other-gue";
    /// What is inside the tunnel is no whole IP packet.
    InnerMalformed = 8, Passed, "inner-malformed";
    /// Taken out of IP in IP.
    TakenIpip = 9, Taken, "taken-ipip";
    /// Taken out of GUE.
    TakenGue = 10, Taken, "taken-gue";
    /// A router on the tunnel's way has marked congestion, and the packet inside cannot carry the
    /// mark: it counts as lost, as its sender expects of congestion (RFC 6040 section 4.2).
    Congestion = 11, Dropped, "congestion";
}

impl Reason {
    /// Counters kept: room for reasons to come.
    pub const ROOM: usize = 32;
}

const _: () = assert!(Reason::ALL.len() <= Reason::ROOM);

shared! {
    /// What concerns all packets. Written by `lb-user decap attach`.
    pub struct Settings, 8 bytes {
        /// [`VERSION`] of whoever made the maps.
        pub version: u32,
        /// UDP port of GUE.
        pub gue_port: Port,
        /// Where the program runs, for whoever asks later: 1 in the driver, 2 in the kernel's stack, 3 in
        /// the network card.
        pub place: u8,
        /// Always zero.
        pub reserved: u8,
    }
}

/// What came in, by [`Reason`].
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct Counters {
    /// Indexed by the reason's number.
    pub reasons: [Counter; Reason::ROOM],
}

crate::abi::pod!(Counters, 512);

impl Default for Counters {
    fn default() -> Self {
        Self {
            reasons: [Counter::default(); Reason::ROOM],
        }
    }
}

impl Counters {
    /// The sum of both.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        for (sum, counter) in self.reasons.iter_mut().zip(&other.reasons) {
            *sum = sum.plus(*counter);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_number_a_name_and_an_explanation_of_its_own() {
        for (index, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!(Reason::from_number(reason as u8), Some(reason));
            assert!(reason.explanation().ends_with('.'), "{reason:?}");
            let namesakes = Reason::ALL.iter().filter(|r| r.name() == reason.name());
            assert_eq!(namesakes.count(), 1);
        }
    }
}
