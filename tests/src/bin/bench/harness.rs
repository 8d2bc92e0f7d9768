//! Nanoseconds per packet in `BPF_PROG_TEST_RUN`.
//!
//! A harness program writes each packet anew and tail-calls the program under test; the same
//! harness with a program that only returns is taken off. Rounds of all rows are interleaved, so
//! that a neighbour on the machine disturbs all alike. After each run the counters must say that
//! every packet went the way that the row is about.

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{Mac, Mode, Neighbour},
    datapath::parse::Family,
    wire::ip,
};
use lb_tests::programs::{Client, Globals, Programs};
use serde::Serialize;

use crate::{
    Options,
    balancer::{Balancer, Plan},
    path::Path,
    report::{Progress, Summary, family_name, protocol_name},
};

/// A line of the result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What happened to the packets.
    pub(crate) path: &'static str,
    /// `v4` or `v6`.
    pub(crate) family: &'static str,
    /// `tcp` or `udp`.
    pub(crate) protocol: &'static str,
    /// Flows in the table.
    pub(crate) flows: u32,
    /// Nanoseconds per packet over the empty program; for [`EMPTY`], of the harness with it.
    pub(crate) nanos: Summary,
}

/// The path of the floor's rows.
const EMPTY: &str = "harness, empty XDP_TX (taken off below)";

/// A test run gives its packets to the loopback interface of the network namespace.
const INGRESS: u32 = 1;
/// Where packets to backends go; test runs do not look for it.
const EGRESS: u32 = 2;

const BALANCER_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const BACKEND_MAC: Mac = Mac([2, 0, 0, 0, 0, 3]);

/// What XDP programs tell the driver (Linux `include/uapi/linux/bpf.h`).
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// A row being measured.
struct Case {
    path: Path,
    plan: Plan,
    /// Index of its balancer.
    balancer: usize,
    programs: Programs,
    /// Of each round: nanoseconds per packet, of the empty program and of the one under test.
    empty: Vec<f64>,
    nanos: Vec<f64>,
}

/// Measures every row that was asked for.
pub(crate) fn run(options: &Options, progress: &Progress) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &flows in &options.flows {
        rows.extend(group(flows, options, progress)?);
    }
    Ok(rows)
}

/// All rows with as many flows in the tables.
fn group(flows: u32, options: &Options, progress: &Progress) -> Result<Vec<Row>> {
    let (mut balancers, mut cases) = load(flows, options, progress)?;
    for round in 0..=options.runs {
        progress.say(&format!(
            "harness: {flows} flows, round {round} of {}",
            options.runs
        ));
        for case in &mut cases {
            case.measure(&mut balancers[case.balancer], options.packets)
                .with_context(|| title(case.path, &case.plan))?;
            if round == 0 {
                // Warms caches and is forgotten.
                case.empty.clear();
                case.nanos.clear();
            }
        }
    }
    for balancer in &balancers {
        balancer.check_flows()?;
    }
    Ok(floors(&cases, flows)
        .into_iter()
        .chain(cases.iter().map(Case::row))
        .collect())
}

/// The balancers with as many flows in their tables, and the rows that run through them.
fn load(flows: u32, options: &Options, progress: &Progress) -> Result<(Vec<Balancer>, Vec<Case>)> {
    const TCP: &[Path] = &[Path::NotOurs, Path::Known, Path::New, Path::Answer];
    let mut balancers = Vec::new();
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        for (mode, protocol, paths) in [
            (Mode::NAT, ip::TCP, TCP),
            (Mode::NAT, ip::UDP, &[Path::Known]),
            (Mode::DSR_L2, ip::TCP, &[Path::Known]),
            (Mode::DSR_IPIP, ip::TCP, &[Path::Known]),
            (Mode::DSR_GUE, ip::TCP, &[Path::Known]),
        ] {
            let plan = Plan {
                family,
                protocol,
                mode,
                flows,
                backend: neighbour(EGRESS, BACKEND_MAC),
                client: neighbour(INGRESS, CLIENT_MAC),
            };
            let paths: Vec<Path> = paths
                .iter()
                .copied()
                .filter(|&path| options.asks_for(&title(path, &plan)))
                .collect();
            if paths.is_empty() {
                continue;
            }
            progress.say(&format!(
                "harness: {flows} flows into the tables for {}",
                title(paths[0], &plan)
            ));
            balancers.push(Balancer::load(plan)?);
            for path in paths {
                cases.push(Case {
                    path,
                    plan,
                    balancer: balancers.len() - 1,
                    programs: Programs::load(&globals(path, flows), &path.template(&plan))?,
                    empty: Vec::new(),
                    nanos: Vec::new(),
                });
            }
        }
    }
    Ok((balancers, cases))
}

/// The harness itself with the empty program, one row for each family: what the others are over.
fn floors(cases: &[Case], flows: u32) -> Vec<Row> {
    let floor = |family| {
        let same = cases.iter().filter(|case| case.plan.family == family);
        let nanos: Vec<f64> = same.flat_map(|case| case.empty.clone()).collect();
        (!nanos.is_empty()).then(|| Row {
            path: EMPTY,
            family: family_name(family),
            protocol: "any",
            flows,
            nanos: Summary::of(&nanos),
        })
    };
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(floor)
        .collect()
}

/// By which a row is asked for.
fn title(path: Path, plan: &Plan) -> String {
    format!(
        "{} {} {}",
        path.name(plan.mode),
        family_name(plan.family),
        protocol_name(plan.protocol)
    )
}

fn globals(path: Path, flows: u32) -> Globals {
    Globals {
        flows: if path == Path::New { 0 } else { flows },
        client: match path {
            Path::Answer => Client::Destination,
            _ => Client::Source,
        },
        interface: 0,
        table: 0,
    }
}

const fn neighbour(ifindex: u32, destination: Mac) -> Neighbour {
    Neighbour {
        ifindex,
        destination,
        source: BALANCER_MAC,
    }
}

impl Case {
    /// One run without and one with the program under test.
    fn measure(&mut self, balancer: &mut Balancer, packets: u32) -> Result<()> {
        let empty = self.programs.program("empty")?.fd()?.try_clone()?;
        let before = self.programs.given()?;
        let floor = self.programs.run_harness(&empty, packets)?;
        ensure!(
            floor.verdict == XDP_TX,
            "the empty program's verdict is {}",
            floor.verdict
        );

        let reason = self.path.reason();
        let counts = balancer.counts(reason)?;
        let ran = self
            .programs
            .run_harness(balancer.program()?.fd()?, packets)?;
        let given = self.programs.given()? - before;
        ensure!(
            given == 2 * u64::from(packets),
            "the harness made {given} packets in two runs of {packets}"
        );
        self.path
            .check(&counts, &balancer.counts(reason)?, packets.into())?;
        let verdict = match self.path {
            Path::NotOurs => XDP_PASS,
            Path::Known | Path::New => XDP_REDIRECT,
            Path::Answer => XDP_TX,
        };
        ensure!(
            ran.verdict == verdict,
            "the last packet's verdict is {}, not {verdict}",
            ran.verdict
        );
        let nanos = |each: std::time::Duration| each.as_secs_f64() * 1e9;
        self.empty.push(nanos(floor.each));
        self.nanos.push(nanos(ran.each) - nanos(floor.each));
        Ok(())
    }

    fn row(&self) -> Row {
        Row {
            path: self.path.name(self.plan.mode),
            family: family_name(self.plan.family),
            protocol: protocol_name(self.plan.protocol),
            flows: self.plan.flows,
            nanos: Summary::of(&self.nanos),
        }
    }
}
