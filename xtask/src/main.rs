//! `cargo xtask`: sets a machine up, then builds, checks, tests and shows the load balancer.
//!
//! Reading order: [`workspace`] and [`step`] say where things are and how programs are run,
//! [`toolchain`] and [`setup`] what is needed; each other module is one command or a few alike.

mod check;
mod program;
mod setup;
mod step;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Sets a machine up, builds, checks, tests and shows the load balancer",
    after_help = EXAMPLES,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Every command first installs what it needs and does not find; sudo is used only for that and to
run what was built. Logs are kept below target/xtask.

Examples:
  cargo xtask demo                        watch the load balancer forward HTTP requests
  cargo xtask test                        every rung of the tests
  cargo xtask test net nat                the network tests with 'nat' in their names
  cargo xtask test kernel -- --nocapture  the kernel tests with everything they print
  cargo xtask fuzz 60                     random frames for a minute
  cargo xtask check                       format, lints, documentation: as CI does";

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
    /// Build lb-user as it is shipped, with its XDP program inside, and print its path
    Build,
    /// Check format, lints (host and BPF) and documentation
    Check,
    /// Run the tests of one rung, or of all
    Test {
        /// Which tests
        #[arg(value_enum, default_value_t = test::Rung::All)]
        rung: test::Rung,
        /// Only those with this in their names
        filter: Option<String>,
        /// Passed to each test program
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Send random frames through the data path on the host
    Fuzz {
        /// For how long
        #[arg(default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
    /// Build a small network of namespaces, forward HTTP requests through it, show what happened
    Demo {
        /// Leave the network up and say how to enter it
        #[arg(long)]
        keep: bool,
    },
    /// Measure what a packet costs
    Bench {
        /// What to measure
        #[arg(value_enum)]
        subject: Subject,
        /// Passed to the bench program
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Subject {
    /// Nanoseconds per packet in the kernel's test harness, packets per second through veth
    Datapath,
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
        Command::Build => program::build(),
        Command::Check => check::run(),
        Command::Test {
            rung,
            filter,
            arguments,
        } => test::run(rung, filter.as_deref(), &arguments),
        Command::Fuzz { seconds } => program::fuzz(seconds),
        Command::Demo { keep } => {
            let arguments: &[String] = if keep { &["--keep".to_owned()] } else { &[] };
            program::demo(arguments)
        }
        Command::Bench {
            subject: Subject::Datapath,
            arguments,
        } => {
            let subject = ["datapath".to_owned()];
            program::bench(&[&subject, arguments.as_slice()].concat())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_filter_and_arguments_reach_the_tests() {
        let cli = Cli::try_parse_from(["xtask", "test", "net", "nat", "--", "--nocapture"]);
        let Ok(Cli {
            command:
                Command::Test {
                    rung,
                    filter,
                    arguments,
                },
        }) = cli
        else {
            panic!("not a test command");
        };
        assert_eq!(rung, test::Rung::Net);
        assert_eq!(filter.as_deref(), Some("nat"));
        assert_eq!(arguments, ["--nocapture"]);
    }
}
