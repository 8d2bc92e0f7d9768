//! Nanoseconds per packet in `BPF_PROG_TEST_RUN`.
//!
//! A harness program writes each packet anew and tail-calls the program under test; the same
//! harness with a program that only returns is taken off. Rounds of all rows are interleaved, so
//! that a neighbour on the machine disturbs all alike. After each run the counters must say that
//! every packet went the way that the row is about.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use lb_common::{
    abi::{Mac, Mode, Neighbour, Reason},
    datapath::parse::Family,
    wire::ip,
};

use crate::{
    balancer::{self, Balancer, KNOWN_BACKEND_PORT, KNOWN_PORT, NEW_PORT, Plan},
    report::{Progress, Summary},
    template::{Opens, Template},
};

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) runs: usize,
    pub(crate) packets: u32,
    pub(crate) flows: Vec<u32>,
    /// Rows with this in their titles; all if none.
    pub(crate) only: Option<String>,
}

/// A line of the result.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Row {
    /// What happened to the packets.
    pub(crate) path: &'static str,
    /// `v4` or `v6`.
    pub(crate) family: &'static str,
    /// `tcp` or `udp`.
    pub(crate) protocol: &'static str,
    /// Flows in the table.
    pub(crate) flows: u32,
    /// Nanoseconds per packet over the empty program.
    pub(crate) nanos: Summary,
}

/// A test run gives its packets to the loopback interface of the network namespace.
const INGRESS: u32 = 1;
/// Where packets go; test runs do not look for it.
const EGRESS: u32 = 2;

const BALANCER_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const BACKEND_MAC: Mac = Mac([2, 0, 0, 0, 0, 3]);

/// What XDP programs tell the driver (Linux `include/uapi/linux/bpf.h`).
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// What a packet is about to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    NotOurs,
    Known,
    New,
    Return,
}

/// A row being measured.
struct Case {
    path: Path,
    plan: Plan,
    /// Index of its balancer.
    balancer: usize,
    harness: Harness,
    /// Of each round: nanoseconds per packet over the empty program.
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
    const TCP: &[Path] = &[Path::NotOurs, Path::Known, Path::New, Path::Return];
    let mut balancers = Vec::new();
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        for (mode, protocol, paths) in [
            (Mode::NAT, ip::TCP, TCP),
            (Mode::NAT, ip::UDP, &[Path::Known]),
            (Mode::DSR_L2, ip::TCP, &[Path::Known]),
        ] {
            let plan = Plan {
                family,
                protocol,
                mode,
                flows,
                ingress: INGRESS,
                backend: neighbour(BACKEND_MAC),
                client: neighbour(CLIENT_MAC),
            };
            let asked = |path: &Path| {
                options
                    .only
                    .as_ref()
                    .is_none_or(|only| title(*path, &plan).contains(only))
            };
            let paths: Vec<Path> = paths.iter().copied().filter(asked).collect();
            if paths.is_empty() {
                continue;
            }
            progress.say(&format!(
                "harness: {flows} flows into the tables of {}",
                title(paths[0], &plan)
            ));
            balancers.push(Balancer::load(plan)?);
            for path in paths {
                cases.push(Case {
                    path,
                    plan,
                    balancer: balancers.len() - 1,
                    harness: Harness::load(path, &plan)?,
                    nanos: Vec::new(),
                });
            }
        }
    }
    for round in 0..=options.runs {
        progress.say(&format!(
            "harness: {flows} flows, round {round} of {}",
            options.runs
        ));
        for case in &mut cases {
            case.measure(&mut balancers, options.packets)?;
            if round == 0 {
                // Warms caches and is forgotten.
                case.nanos.clear();
            }
        }
    }
    for balancer in &balancers {
        balancer.check_flows()?;
    }
    Ok(cases.into_iter().map(Case::row).collect())
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

const fn neighbour(destination: Mac) -> Neighbour {
    Neighbour {
        ifindex: EGRESS,
        destination,
        source: BALANCER_MAC,
    }
}

impl Case {
    /// One run without and one with the program under test.
    fn measure(&mut self, balancers: &mut [Balancer], packets: u32) -> Result<()> {
        let balancer = &mut balancers[self.balancer];
        let empty = self.harness.run_empty(packets)?;
        let (reason, verdict) = self.path.outcome();
        let before = balancer.counts(reason)?;
        let (took, last) = self.harness.run(balancer.program()?.fd()?, packets)?;
        let after = balancer.counts(reason)?;

        let packets = u64::from(packets);
        let name = title(self.path, &self.plan);
        ensure!(
            last == verdict,
            "{name}: the last packet's verdict is {last}, not {verdict}"
        );
        ensure!(
            after.reason - before.reason == packets && after.all - before.all == packets,
            "{name}: {} of {packets} packets left as {}",
            after.reason - before.reason,
            reason.name()
        );
        let deltas = [
            after.known.forward.packets - before.known.forward.packets,
            after.known.back.packets - before.known.back.packets,
            after.new.new_flows - before.new.new_flows,
        ];
        let expected = match self.path {
            Path::NotOurs => [0, 0, 0],
            Path::Known => [packets, 0, 0],
            Path::Return => [0, packets, 0],
            Path::New => [0, 0, packets],
        };
        ensure!(
            deltas == expected && after.known.new_flows == 0,
            "{name}: known flows, answers and new flows are {deltas:?} packets, not {expected:?}"
        );
        self.nanos.push(took - empty);
        Ok(())
    }

    fn row(self) -> Row {
        Row {
            path: self.path.name(self.plan.mode),
            family: family_name(self.plan.family),
            protocol: protocol_name(self.plan.protocol),
            flows: self.plan.flows,
            nanos: Summary::of(&self.nanos),
        }
    }
}

impl Path {
    const fn name(self, mode: Mode) -> &'static str {
        match (self, mode) {
            (Self::NotOurs, _) => "not ours, passed",
            (Self::Known, Mode::NAT) => "nat, known flow",
            (Self::Known, _) => "dsr-l2, known flow",
            (Self::New, _) => "nat, new flow",
            (Self::Return, _) => "nat, answer",
        }
    }

    /// The reason that each packet must have and the action that the driver must be told.
    const fn outcome(self) -> (Reason, u32) {
        match self {
            Self::NotOurs => (Reason::NotService, XDP_PASS),
            Self::Known | Self::New => (Reason::ToBackend, XDP_REDIRECT),
            Self::Return => (Reason::ToClient, XDP_REDIRECT),
        }
    }

    /// The packets that take it.
    fn template(self, plan: &Plan) -> Template {
        let Plan {
            family, protocol, ..
        } = *plan;
        let client = (balancer::client_address(family, 0), 0x8000);
        let service = |port| (balancer::service_address(family), port);
        let (source_mac, source, destination) = match self {
            // One address beyond the backends: known to nobody.
            Self::NotOurs => (
                CLIENT_MAC,
                client,
                (balancer::backend_address(family, 200), 443),
            ),
            Self::Known => (CLIENT_MAC, client, service(KNOWN_PORT)),
            Self::New => (CLIENT_MAC, client, service(NEW_PORT)),
            Self::Return => {
                let backend = balancer::backend_address(family, 1);
                (BACKEND_MAC, (backend, KNOWN_BACKEND_PORT), client)
            }
        };
        Template {
            destination_mac: BALANCER_MAC,
            source_mac,
            source,
            destination,
            protocol,
            opens: if self == Self::New {
                Opens::Yes
            } else {
                Opens::No
            },
        }
    }
}

/// The harness program, made for one kind of packet.
struct Harness {
    ebpf: Ebpf,
    frame: Vec<u8>,
}

impl Harness {
    fn load(path: Path, plan: &Plan) -> Result<Self> {
        let template = path.template(plan);
        let flows = if path == Path::New { 0 } else { plan.flows };
        let to_client = u8::from(path == Path::Return);
        let mut ebpf = EbpfLoader::new()
            .override_global("FLOWS", &flows, true)
            .override_global("LENGTH", &(template.length() as u32), true)
            .override_global("TO_CLIENT", &to_client, true)
            // Nothing of the harness looks into it.
            .map_max_entries("table", 1)
            .load(lb_user::objects::BENCH)
            .context("cannot load the benchmark's object")?;
        for name in ["harness", "empty"] {
            let program: &mut Xdp = ebpf
                .program_mut(name)
                .context("a program is missing")?
                .try_into()?;
            program
                .load()
                .with_context(|| format!("the kernel refuses program {name}"))?;
        }
        let mut words: Array<&mut MapData, [u64; 10]> = ebpf
            .map_mut("template")
            .context("no map template")?
            .try_into()?;
        words.set(0, template.words()?, 0)?;
        Ok(Self {
            ebpf,
            frame: template.frame()?,
        })
    }

    /// Nanoseconds per packet with the program that only returns.
    fn run_empty(&mut self, packets: u32) -> Result<f64> {
        let empty = self.program("empty")?.fd()?.try_clone()?;
        let (nanos, verdict) = self.run(&empty, packets)?;
        ensure!(
            verdict == XDP_TX,
            "the empty program's verdict is {verdict}"
        );
        Ok(nanos)
    }

    /// Nanoseconds per packet with `program`, and the last packet's verdict.
    fn run(&mut self, program: &ProgramFd, packets: u32) -> Result<(f64, u32)> {
        let mut programs: ProgramArray<&mut MapData> = self
            .ebpf
            .map_mut("programs")
            .context("no map programs")?
            .try_into()?;
        programs
            .set(0, program, 0)
            .context("cannot set the program under test")?;
        let before = self.given()?;
        let result = self.program("harness")?.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            repeat: packets,
            ..TestRunOptions::default()
        })?;
        let given = self.given()? - before;
        ensure!(
            given == u64::from(packets),
            "the harness gave {given} of {packets} packets"
        );
        // The kernel gives the average over all runs of the program.
        Ok((result.duration.as_nanos() as f64, result.return_value))
    }

    fn given(&self) -> Result<u64> {
        let given: Array<&MapData, u64> =
            self.ebpf.map("given").context("no map given")?.try_into()?;
        Ok(given.get(&0, 0)?)
    }

    fn program(&self, name: &str) -> Result<&Xdp> {
        Ok(self
            .ebpf
            .program(name)
            .context("a program is missing")?
            .try_into()?)
    }
}

const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}

const fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        ip::UDP => "udp",
        _ => "tcp",
    }
}
