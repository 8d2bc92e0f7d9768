//! Why a packet left the way it did: one list that gives each reason its number, its counter, its
//! name and its explanation.

use crate::abi::shared;

/// What happened to a packet, whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// Not ours: left to the kernel unchanged.
    Passed,
    /// Sent on.
    Forwarded,
    /// Gone.
    Dropped,
    /// Turned into an answer to whoever sent it.
    Answered,
}

impl Fate {
    /// Its name, as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Forwarded => "forwarded",
            Self::Dropped => "dropped",
            Self::Answered => "answered",
        }
    }
}

/// Declares a list of reasons, whose fates are of the type in parentheses.
macro_rules! reasons {
    ($list:ident($fates:ident): $($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $fate:ident, $name:literal;)+) => {
        /// Why a packet left the way it did. The number is the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $list { $($(#[doc = $doc])+ $variant = $number,)+ }

        impl $list {
            /// Every reason, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// What happens to such a packet.
            pub const fn fate(self) -> $fates {
                match self { $(Self::$variant => $fates::$fate),+ }
            }

            /// Its name in counters, JSON and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What it means and what can be done, in a sentence or two.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),+ }
            }

            /// The reason with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

pub(crate) use reasons;

reasons! {
    Reason(Fate):
    /// Neither IPv4 nor IPv6 (ARP, frames with more than two VLAN tags and others).
    NotIp = 0, Passed, "not-ip";
    /// The frame is shorter than its headers say, or a header contradicts itself.
    Malformed = 1, Passed, "malformed";
    /// A frame for a group of stations (multicast or broadcast MAC address).
    Multicast = 2, Passed, "multicast";
    /// Neither TCP nor UDP: ICMP, ICMPv6 and others.
    OtherProtocol = 3, Passed, "other-protocol";
    /// A fragment other than the first: it has no ports, and its first fragment was not sent on in the
    /// last 30 seconds.
    LaterFragment = 4, Passed, "later-fragment";
    /// More IPv6 extension headers than are followed, or one that hides the ports.
    UnknownExtension = 5, Passed, "unknown-extension";
    /// Neither to a service nor from a backend of one.
    NotService = 6, Passed, "not-service";
    /// To a backend's own address and port: a conversation that did not go through the service.
    DirectToBackend = 7, Passed, "direct-to-backend";
    /// A backend's answer in a conversation opened with the backend itself.
    DirectFromBackend = 8, Passed, "direct-from-backend";
    /// From a backend to an address of the load balancer itself.
    ToLoadBalancer = 9, Passed, "to-load-balancer";
    /// A connection that a backend opens from its service port: not an answer.
    OpenedByBackend = 10, Passed, "opened-by-backend";
    /// Sent to a backend.
    ToBackend = 11, Forwarded, "to-backend";
    /// Sent to a backend by the kernel's routing table: the agent has not resolved its next hop.
    ToBackendRouted = 12, Forwarded, "to-backend-routed";
    /// Rewritten for a backend and handed to the kernel to resolve the next hop and send it.
    ToBackendViaKernel = 13, Forwarded, "to-backend-via-kernel";
    /// An answer, sent to the neighbour the flow came from.
    ToClient = 14, Forwarded, "to-client";
    /// An answer, sent by the kernel's routing table: no flow entry says where the client is.
    ToClientRouted = 15, Forwarded, "to-client-routed";
    /// The service has no backend that takes new flows.
    NoBackend = 16, Dropped, "no-backend";
    /// The service's record is missing: it is just being removed.
    NoService = 17, Dropped, "no-service";
    /// The MAC address of the backend (dsr-l2), or of the next hop towards it (dsr-ipip, dsr-gue), is
    /// not known. The agent is resolving it; if this goes on, there is no route to the backend, or it
    /// or its gateway does not answer ARP/ND.
    BackendUnresolved = 18, Dropped, "backend-unresolved";
    /// No next hop for an answer: the client's gateway is not resolved, or there is no route.
    ClientUnresolved = 19, Dropped, "client-unresolved";
    /// TTL or hop limit used up.
    TtlExceeded = 20, Dropped, "ttl-exceeded";
    /// To a service, from an address of the load balancer itself: forged.
    MartianSource = 21, Dropped, "martian-source";
    /// An answer from another backend than the one the flow is with now: a late packet.
    StaleAnswer = 22, Dropped, "stale-answer";
    /// An answer without flow entry from a backend that several services share: whose it is cannot
    /// be told.
    AmbiguousAnswer = 23, Dropped, "ambiguous-answer";
    /// The client already talks to this backend from the same port through another service that
    /// shares it: the backend could not tell the two apart.
    ConversationTaken = 24, Dropped, "conversation-taken";
    /// The frame has no room in front for the outer header (dsr-ipip, dsr-gue): the driver leaves less
    /// than 48 bytes of headroom.
    NoHeadroom = 25, Dropped, "no-headroom";
    /// Too long for the tunnel to the backend: the client was told the longest packet that fits, by ICMP
    /// ("fragmentation needed") or ICMPv6 ("packet too big").
    TooBig = 26, Answered, "too-big";
    /// Too long for the tunnel and without DF: XDP cannot cut it, so it is gone, and the client was told
    /// the longest packet that fits all the same.
    TooBigWithoutDf = 27, Answered, "too-big-without-df";
    /// Too long for the tunnel, and the client was not told: others of its prefix (/24, /56) were told
    /// too often in this second, its address is none that can be answered, or it is a fragment other than
    /// the first.
    TooBigSuppressed = 28, Dropped, "too-big-suppressed";
}

impl Reason {
    /// Counters kept for an interface: room for reasons to come.
    pub const ROOM: usize = 64;
}

const _: () = assert!(Reason::ALL.len() <= Reason::ROOM);

shared! {
    /// Packets and the bytes of their frames.
    pub struct Counter, 16 bytes {
        /// Number of packets.
        pub packets: u64,
        /// Bytes from the Ethernet header to the end of the frame, as received.
        pub bytes: u64,
    }
}

impl Counter {
    /// Counts one packet.
    #[inline(always)]
    pub fn add(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
    }

    /// The sum of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }
}

shared! {
    /// What a service or a backend has carried.
    pub struct Traffic, 40 bytes {
        /// From clients towards the backend.
        pub forward: Counter,
        /// Answers on their way to clients (`nat` only: DSR answers are not seen).
        pub back: Counter,
        /// Flows given to it.
        pub new_flows: u64,
    }
}

impl Traffic {
    /// The sum of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            forward: self.forward.plus(other.forward),
            back: self.back.plus(other.back),
            new_flows: self.new_flows + other.new_flows,
        }
    }
}

/// What came in on one interface, by [`Reason`].
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
pub struct InterfaceCounters {
    /// Indexed by the reason's number.
    pub reasons: [Counter; Reason::ROOM],
}

crate::abi::pod!(InterfaceCounters, 1024);

impl Default for InterfaceCounters {
    fn default() -> Self {
        Self {
            reasons: [Counter::default(); Reason::ROOM],
        }
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
            assert_eq!(
                Reason::ALL
                    .iter()
                    .filter(|r| r.name() == reason.name())
                    .count(),
                1
            );
        }
        assert_eq!(Reason::from_number(Reason::ROOM as u8 - 1), None);
    }
}
