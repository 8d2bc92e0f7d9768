//! The ways a packet can take through the load balancer: which packets take it, and what the
//! counters must say afterwards.

use anyhow::{Result, ensure};
use lb_common::abi::{Mode, Reason};

use lb_tests::template::{Opens, Template};

use crate::balancer::{self, Counts, KNOWN_BACKEND_PORT, KNOWN_PORT, NEW_PORT, Plan};

/// A way through the load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// To an address that means nothing to the load balancer.
    NotOurs,
    /// To a service, of a flow that is in the table.
    Known,
    /// To a service, a connection's first packet.
    New,
    /// From a backend, of a flow that is in the table.
    Answer,
}

impl Path {
    /// What is printed.
    pub(crate) const fn name(self, mode: Mode) -> &'static str {
        match (self, mode) {
            (Self::NotOurs, _) => "not ours, passed",
            (Self::Known, Mode::NAT) => "nat, known flow",
            (Self::Known, Mode::DSR_IPIP) => "dsr-ipip, known flow",
            (Self::Known, Mode::DSR_GUE) => "dsr-gue, known flow",
            (Self::Known, _) => "dsr-l2, known flow",
            (Self::New, _) => "nat, new flow",
            (Self::Answer, _) => "nat, answer",
        }
    }

    /// With what reason each packet must leave.
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::NotOurs => Reason::NotService,
            Self::Known | Self::New => Reason::ToBackend,
            Self::Answer => Reason::ToClient,
        }
    }

    /// The packets that take it, between clients, load balancer and backends as in `plan`.
    pub(crate) fn template(self, plan: &Plan) -> Template {
        let Plan {
            family, protocol, ..
        } = *plan;
        let client = (balancer::client_address(family, 0), 0x8000);
        let service = |port| (balancer::service_address(family), port);
        let (from, source, destination) = match self {
            Self::NotOurs => (
                plan.client,
                client,
                (balancer::backend_address(family, 200), 443),
            ),
            Self::Known => (plan.client, client, service(KNOWN_PORT)),
            Self::New => (plan.client, client, service(NEW_PORT)),
            Self::Answer => {
                let backend = balancer::backend_address(family, 1);
                (plan.backend, (backend, KNOWN_BACKEND_PORT), client)
            }
        };
        Template {
            destination_mac: from.source,
            source_mac: from.destination,
            source,
            destination,
            protocol,
            opens: match self {
                Self::New => Opens::Yes,
                _ => Opens::No,
            },
        }
    }

    /// Fails unless each of `packets` packets between the two counts took this way.
    pub(crate) fn check(self, before: &Counts, after: &Counts, packets: u64) -> Result<()> {
        let left = after.reason - before.reason;
        ensure!(
            left == packets && after.all - before.all == packets,
            "{left} of {packets} packets left as {}",
            self.reason().name()
        );
        let counted = [
            after.known.forward.packets - before.known.forward.packets,
            after.known.back.packets - before.known.back.packets,
            after.known.new_flows - before.known.new_flows,
            after.new.new_flows - before.new.new_flows,
        ];
        let expected = match self {
            Self::NotOurs => [0, 0, 0, 0],
            Self::Known => [packets, 0, 0, 0],
            Self::Answer => [0, packets, 0, 0],
            Self::New => [0, 0, 0, packets],
        };
        ensure!(
            counted == expected,
            "forwarded, answers, new flows among known ones, new flows: {counted:?}, not {expected:?}"
        );
        Ok(())
    }
}
