//! `cargo xtask bench datapath`: what a packet costs.

mod balancer;
#[path = "../../../../lb-ebpf/src/bench/flow.rs"]
mod flow;
mod harness;
mod report;
mod template;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::report::Progress;

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
    /// Nanoseconds per packet in the kernel's test harness
    Datapath {
        /// Rounds; medians are printed
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
        runs: u16,
        /// Packets per row and round
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..))]
        packets: u32,
        /// Flows in the tables of the harness
        #[arg(long, value_delimiter = ',', default_values_t = [1, 10_000, 1_000_000],
              value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        flows: Vec<u32>,
        /// Only rows of the harness with this in their titles, such as "nat, known flow v4 tcp"
        #[arg(long)]
        only: Option<String>,
        /// How results are printed
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Subject::Datapath {
        runs,
        packets,
        flows,
        only,
        output,
    } = Cli::parse().subject;
    pin()?;
    let progress = Progress::begin();
    let rows = harness::run(
        &harness::Options {
            runs: runs.into(),
            packets,
            flows,
            only,
        },
        &progress,
    )?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Table => {
            let lines = rows.iter().map(|row| {
                vec![
                    row.path.to_owned(),
                    row.family.to_owned(),
                    row.protocol.to_owned(),
                    row.flows.to_string(),
                    format!("{:.0}", row.nanos.median),
                    format!("{:.0}", row.nanos.least),
                    format!("{:.0}", row.nanos.most),
                ]
            });
            println!(
                "{}",
                report::table(
                    &["path", "", "", "flows", "ns/packet", "least", "most"],
                    3,
                    lines
                )
            );
        }
    }
    Ok(())
}

/// Keeps this process, and with it everything that is measured, on one CPU.
fn pin() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(1)?;
    sched_setaffinity(Pid::from_raw(0), &cpu).context("cannot stay on one CPU")
}
