//! Packets per second through veth between namespaces, with live frames as the generator.
//!
//! `BPF_F_TEST_XDP_LIVE_FRAMES` sends frames that a program writes and redirects into a lane
//! ([`crate::network`]); generator, load balancer and sink take turns on one CPU, so that their
//! costs add up and nothing is lost, which is asserted: the sink counts the frames that arrive
//! addressed as they should be. The load balancer's counters and the hits of the table floor prove
//! that every packet was of a known flow.
//!
//! What is taken is CPU time: the kernel's own figure for the generator's thread, in which nearly
//! all packets go their whole way, and what the CPU's softirq thread did of it. A clock on the wall
//! would also count what other processes do meanwhile, and how long the kernel takes to give the
//! frames' memory back.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{Flow, Mode, limits},
    datapath::parse::Family,
    wire::ip,
};
use lb_tests::{
    programs::{Client, Globals, Programs},
    wait,
};
use serde::Serialize;

use crate::{
    Options,
    balancer::{self, Balancer, Counts, KNOWN_BACKEND_PORT, KNOWN_PORT, Plan},
    cpu::Softirqs,
    network::{Ends, IN, Lane},
    path::Path,
    report::{Progress, Summary, protocol_name},
};

/// How long the last frames may take to arrive.
const LATE: Duration = Duration::from_secs(5);

/// A line of the result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What forwarded the packets.
    pub(crate) path: String,
    /// `tcp` or `udp`.
    pub(crate) protocol: &'static str,
    /// Flows that packets were spread over; all known.
    pub(crate) flows: u32,
    /// Packets per second, generator included.
    pub(crate) rate: f64,
    /// Nanoseconds per packet, generator included.
    pub(crate) nanos: Summary,
    /// Nanoseconds relative to the redirect floor of the same round.
    pub(crate) to_redirect: Summary,
    /// Nanoseconds relative to the table floor of the same round; only with as many flows.
    pub(crate) to_table: Option<Summary>,
}

/// What forwards in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forwarder {
    /// Nobody: frames end at the load balancer's interface.
    None,
    TransmitFloor,
    RedirectFloor,
    TableFloor,
    Balancer(Mode),
    Kernel,
    Nftables,
}

/// A row being measured.
struct Case {
    forwarder: Forwarder,
    protocol: u8,
    flows: u32,
    lane: Lane,
    /// Writes and sends the frames.
    generator: Programs,
    /// Holds the floors and the sink.
    programs: Programs,
    balancer: Option<Balancer>,
    nanos: Vec<f64>,
}

/// Measures all rows, if any that was asked for is among them: they are judged by each other.
pub(crate) fn run(options: &Options, progress: &Progress) -> Result<Vec<Row>> {
    let many = options.live_flows;
    let wanted = [
        (Forwarder::None, ip::UDP, 1),
        (Forwarder::TransmitFloor, ip::UDP, 1),
        (Forwarder::RedirectFloor, ip::UDP, 1),
        (Forwarder::Balancer(Mode::NAT), ip::UDP, 1),
        (Forwarder::Balancer(Mode::NAT), ip::TCP, 1),
        (Forwarder::Balancer(Mode::DSR_L2), ip::UDP, 1),
        (Forwarder::TableFloor, ip::UDP, many),
        (Forwarder::Balancer(Mode::NAT), ip::UDP, many),
        (Forwarder::Balancer(Mode::NAT), ip::TCP, many),
        (Forwarder::Balancer(Mode::DSR_L2), ip::UDP, many),
        (Forwarder::Kernel, ip::UDP, 1),
        (Forwarder::Nftables, ip::UDP, 1),
        (Forwarder::Nftables, ip::UDP, many),
    ];
    if !wanted
        .iter()
        .any(|(forwarder, ..)| options.asks_for(&format!("live {}", forwarder.name())))
    {
        return Ok(Vec::new());
    }
    let softirqs = Softirqs::of(options.cpu)?;
    let ends = Ends::create()?;
    let mut cases = Vec::new();
    for (number, (forwarder, protocol, flows)) in wanted.into_iter().enumerate() {
        let case = Case::build(&ends, number, forwarder, protocol, flows)
            .with_context(|| forwarder.name())?;
        progress.say(&format!("live frames: made the lane for {}", case.title()));
        cases.push(case);
    }
    for round in 0..=options.runs {
        progress.say(&format!("live frames: round {round} of {}", options.runs));
        for case in &mut cases {
            case.measure(&ends, &softirqs, options.packets)
                .with_context(|| case.title())?;
            if round == 0 {
                // Makes the kernel's flows, warms caches, and is forgotten.
                case.nanos.clear();
            }
        }
    }
    Ok(rows(&cases))
}

/// The results, each beside the floors of its round.
fn rows(cases: &[Case]) -> Vec<Row> {
    let of = |forwarder| cases.iter().find(|case| case.forwarder == forwarder);
    let redirect = of(Forwarder::RedirectFloor);
    let table = of(Forwarder::TableFloor);
    let ratio = |case: &Case, floor: &Case| {
        let rounds = case.nanos.iter().zip(&floor.nanos);
        Summary::of(&rounds.map(|(a, b)| a / b).collect::<Vec<f64>>())
    };
    let row = |case: &Case| {
        let nanos = Summary::of(&case.nanos);
        Some(Row {
            path: case.forwarder.name().to_owned(),
            protocol: protocol_name(case.protocol),
            flows: case.flows,
            rate: 1e9 / nanos.median,
            nanos,
            to_redirect: ratio(case, redirect?),
            to_table: table
                .filter(|table| table.flows == case.flows)
                .map(|table| ratio(case, table)),
        })
    };
    cases.iter().filter_map(row).collect()
}

impl Forwarder {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "generator and veth alone",
            Self::TransmitFloor => "floor: XDP_TX",
            Self::RedirectFloor => "floor: redirect",
            Self::TableFloor => "floor: redirect and one table lookup",
            Self::Balancer(Mode::NAT) => "nat",
            Self::Balancer(_) => "dsr-l2",
            Self::Kernel => "kernel: IP forwarding",
            Self::Nftables => "kernel: nftables stateful DNAT",
        }
    }

    /// Whether packets reach the sink with a backend's address, not the service's.
    const fn rewrites(self) -> bool {
        matches!(
            self,
            Self::Balancer(Mode::NAT) | Self::Kernel | Self::Nftables
        )
    }
}

impl Case {
    fn build(
        ends: &Ends,
        number: usize,
        forwarder: Forwarder,
        protocol: u8,
        flows: u32,
    ) -> Result<Self> {
        let lane = ends.lane(number)?;
        let plan = Plan {
            family: Family::V4,
            protocol,
            mode: match forwarder {
                Forwarder::Balancer(mode) => mode,
                _ => Mode::NAT,
            },
            flows,
            backend: lane.backend,
            client: lane.client,
        };
        let mut template = Path::Known.template(&plan);
        let backend = balancer::backend_address(Family::V4, 1);
        if forwarder == Forwarder::Kernel {
            template.destination = (backend, KNOWN_BACKEND_PORT);
        }
        let globals = |interface| Globals {
            flows,
            client: Client::Source,
            interface,
            table: match forwarder {
                Forwarder::TableFloor => limits::FLOWS,
                _ => 1,
            },
        };
        let mut case = Self {
            forwarder,
            protocol,
            flows,
            generator: Programs::load(
                &Globals {
                    table: 1,
                    ..globals(lane.source_index)
                },
                &template,
            )?,
            programs: Programs::load(&globals(lane.backend.ifindex), &template)?,
            balancer: None,
            lane,
            nanos: Vec::new(),
        };
        let expected = if forwarder.rewrites() {
            backend
        } else {
            balancer::service_address(Family::V4)
        };
        case.programs.expect(v4(expected)?.octets())?;
        case.programs
            .address(case.lane.backend.destination, case.lane.backend.source)?;
        case.sink(ends)?;
        case.forwarder(&plan)?;
        Ok(case)
    }

    /// Attaches the sink where frames end.
    fn sink(&mut self, ends: &Ends) -> Result<()> {
        let (netns, interface) = match self.forwarder {
            Forwarder::None => (&self.lane.balancer, IN),
            Forwarder::TransmitFloor => (&ends.source, self.lane.source.as_str()),
            _ => (&ends.sink, self.lane.sink.as_str()),
        };
        netns.run(|| self.programs.attach("sink", interface))
    }

    /// Attaches or sets up what forwards.
    fn forwarder(&mut self, plan: &Plan) -> Result<()> {
        let backend = v4(balancer::backend_address(Family::V4, 1))?;
        let floor = match self.forwarder {
            Forwarder::None => return Ok(()),
            Forwarder::Balancer(_) => {
                let mut balancer = Balancer::load(*plan)?;
                self.lane.balancer.run(|| balancer.attach(IN))?;
                self.balancer = Some(balancer);
                return Ok(());
            }
            Forwarder::Kernel => return self.lane.route(backend),
            Forwarder::Nftables => {
                self.lane.route(backend)?;
                self.lane.balancer.nft(&format!(
                    "table ip bench {{
                        chain prerouting {{
                            type nat hook prerouting priority dstnat;
                            ip daddr {} udp dport {KNOWN_PORT} dnat to {backend}:{KNOWN_BACKEND_PORT}
                        }}
                    }}",
                    balancer::service_address(Family::V4)
                ))?;
                return self
                    .lane
                    .balancer
                    .set_sysctls(&[("net/netfilter/nf_conntrack_udp_timeout", "3600")]);
            }
            Forwarder::TransmitFloor => "transmit_floor",
            Forwarder::RedirectFloor => "redirect_floor",
            Forwarder::TableFloor => {
                let keys = (0..self.flows).map(|index| balancer::flow_key(Family::V4, index));
                self.programs.fill(keys, &Flow::default())?;
                "table_floor"
            }
        };
        let programs = &mut self.programs;
        self.lane.balancer.run(|| programs.attach(floor, IN))
    }

    /// Sends packets and waits for the last of them.
    fn measure(&mut self, ends: &Ends, softirqs: &Softirqs, packets: u32) -> Result<()> {
        let sent = u64::from(packets);
        let counts = self.counts()?;
        let before = self.programs.arrived()?;
        let generator = &mut self.generator;
        let deferred = softirqs.ran()?;
        let each = ends.source.run(|| generator.run_generator(packets))?;
        let programs = &self.programs;
        let arrived = || -> Result<u64> { Ok(programs.arrived()? - before) };
        wait::until_true("the last frames", LATE, || Ok(arrived()? >= sent))
            .with_context(|| format!("{} of {sent} frames arrived", arrived().unwrap_or(0)))?;
        ensure!(
            arrived()? == sent,
            "{} frames arrived of {sent}",
            arrived()?
        );
        if let (Some(before), Some(after)) = (counts, self.counts()?) {
            Path::Known.check(&before, &after, sent)?;
        }
        let deferred = (softirqs.ran()? - deferred).as_secs_f64() / f64::from(packets);
        self.nanos.push((each.as_secs_f64() + deferred) * 1e9);
        Ok(())
    }

    fn counts(&self) -> Result<Option<Counts>> {
        let counts = |balancer: &Balancer| balancer.counts(Path::Known.reason());
        self.balancer.as_ref().map(counts).transpose()
    }

    fn title(&self) -> String {
        let flows = self.flows;
        format!(
            "{} ({}, {flows} flows)",
            self.forwarder.name(),
            protocol_name(self.protocol)
        )
    }
}

fn v4(address: std::net::IpAddr) -> Result<Ipv4Addr> {
    match address {
        std::net::IpAddr::V4(address) => Ok(address),
        std::net::IpAddr::V6(address) => anyhow::bail!("{address} is not IPv4"),
    }
}
