//! `cargo xtask`: sets a machine up, then builds, checks, tests and shows the load balancer.
//!
//! Reading order: [`workspace`] and [`step`] say where things are and how programs are run,
//! [`toolchain`] and [`setup`] what is needed; each other module is one command.

#![expect(dead_code, reason = "the commands that use it come next")]

mod setup;
mod step;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Sets a machine up, builds, checks, tests and shows the load balancer",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need: an eBPF toolchain and Debian packages
    Setup {
        /// Install nothing; list what is there, exit 1 if anything is missing
        #[arg(long)]
        check: bool,
        /// Which eBPF toolchain: Debian's packages or rustup's nightly [default: what fits]
        #[arg(long, value_parser = way, conflicts_with = "check", value_name = "debian|rustup")]
        way: Option<toolchain::Way>,
    },
}

fn way(name: &str) -> Result<toolchain::Way, String> {
    toolchain::Way::named(name).ok_or_else(|| {
        let known = toolchain::Way::ALL.map(toolchain::Way::name).join(" or ");
        format!("must be {known}")
    })
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup { check: true, .. } => setup::check(),
        Command::Setup { check: false, way } => setup::everything(way),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
