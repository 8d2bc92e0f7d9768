//! `cargo xtask bench datapath`: what a packet costs.
//!
//! Two parts: the program alone, in the kernel's test harness ([`harness`]), and packets through
//! veth beside floors and the kernel's own ways ([`live`]). Both prove by counters that the packets
//! took the way that is claimed, and fail if one did not. [`targets`] judges.

mod balancer;
mod cpu;
#[path = "../../../../lb-ebpf/src/bench/flow.rs"]
#[expect(dead_code, reason = "the programs use the rest")]
mod flow;
mod harness;
mod live;
mod network;
mod path;
mod report;
mod targets;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use nix::unistd::geteuid;

use crate::report::{Machine, Progress, Report};

#[derive(Parser)]
#[command(
    name = "bench",
    about = "Measures what a packet costs",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// Nanoseconds per packet in the kernel's test harness, packets per second through veth
    Datapath(Arguments),
}

#[derive(clap::Args)]
struct Arguments {
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Packets per row and round
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..))]
    packets: u32,
    /// Flows in the tables of the harness
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10_000, 1_000_000],
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: Vec<u32>,
    /// Only rows whose titles contain this ("nat, known flow v4 tcp", "live nat")
    #[arg(long, value_name = "TITLE")]
    only: Option<String>,
    /// Few packets and flows: shows that everything runs; the figures mean nothing
    #[arg(long, conflicts_with_all = ["runs", "packets", "flows"])]
    quick: bool,
    /// How results are printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What is measured, and how long.
#[derive(Clone, Debug)]
struct Options {
    runs: u16,
    packets: u32,
    /// In the tables of the harness.
    flows: Vec<u32>,
    /// In the tables of lanes with many flows.
    live_flows: u32,
    only: Option<String>,
    /// Everything runs on this one.
    cpu: usize,
}

impl Options {
    fn asks_for(&self, title: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| title.contains(only.as_str()))
    }

    fn new(arguments: &Arguments, cpu: usize) -> Self {
        let only = arguments.only.clone();
        if arguments.quick {
            return Self {
                runs: 1,
                packets: 20_000,
                flows: vec![1, 1_000],
                live_flows: 1_000,
                only,
                cpu,
            };
        }
        Self {
            runs: arguments.runs,
            packets: arguments.packets,
            flows: arguments.flows.clone(),
            live_flows: 65_536,
            only,
            cpu,
        }
    }
}

fn main() -> ExitCode {
    let Subject::Datapath(arguments) = Cli::parse().subject;
    match datapath(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints. A missed target is a result, not an error.
fn datapath(arguments: &Arguments) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "loading programs and making namespaces needs root: run `cargo xtask bench datapath`"
    );
    let machine = Machine::here()?;
    let options = Options::new(arguments, cpu::stay_on_one()?);
    let progress = Progress::begin();
    let harness = harness::run(&options, &progress)?;
    let live = live::run(&options, &progress)?;
    ensure!(
        !(harness.is_empty() && live.is_empty()),
        "no row has {:?} in its title",
        options.only.unwrap_or_default()
    );
    progress.say("done");
    let targets = if arguments.quick {
        Vec::new()
    } else {
        targets::judge(&harness, &live)
    };
    let report = Report {
        machine,
        targets,
        harness,
        live,
    };
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => println!("{}", report.text()),
    }
    Ok(())
}
