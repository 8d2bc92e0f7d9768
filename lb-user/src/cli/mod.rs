//! What can be typed: the commands here, what goes with them in a file for each kind of task.

mod change;
mod decap;
mod look;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    config::{XdpMode, raw::Span},
    instance::Instance,
};

pub use change::{Backend, Egress, Service, ServiceAdd, ServiceChange, ServiceOptions};
pub use decap::{Decap, DecapAttach, Network};
pub use look::{Flows, Trace};

/// An L4 load balancer that forwards packets in XDP and keeps the client's address.
#[derive(Debug, Parser)]
#[command(
    name = "lb-user",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "A first service:
  sudo lb-user attach eth1
  sudo lb-user service add 203.0.113.10:80/tcp --name web
  sudo lb-user backend add web 10.0.1.5:8080
  sudo lb-user status"
)]
pub struct Cli {
    /// Which agent: each has a socket, a state folder and pins of its own
    #[arg(long, global = true, default_value = "default", value_name = "NAME")]
    pub instance: Instance,
    /// How to print what is read
    #[arg(
        short,
        long,
        global = true,
        default_value = "table",
        value_name = "FORM"
    )]
    pub output: Form,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to print what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people
    Table,
    /// For programs: stable
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach to interfaces; starts the agent in the background if none runs
    #[command(after_help = "Examples:
  sudo lb-user attach eth1
  sudo lb-user attach eth1 eth2 --xdp-mode driver
  sudo lb-user attach eth1 --netns lb --instance a")]
    Attach(Attach),
    /// Detach from interfaces; without names from all, and the agent ends
    #[command(after_help = "Examples:
  sudo lb-user detach eth2
  sudo lb-user detach          everything: addresses, program, settings, pins, agent")]
    Detach {
        /// Interfaces
        #[arg(value_name = "INTERFACE")]
        interfaces: Vec<String>,
    },
    /// Run the agent in the foreground, as systemd starts it
    #[command(after_help = "Examples:
  sudo lb-user run
  sudo lb-user run --config /etc/lb-user/lb.toml")]
    Run(Run),
    /// Add, remove, list and change services
    #[command(subcommand)]
    Service(Service),
    /// Add, remove, list and change backends
    #[command(subcommand)]
    Backend(Backend),
    /// Masquerade connections that backends open themselves
    #[command(subcommand)]
    Egress(Egress),
    /// Print what backends need in their service's mode, or check on a backend what is missing
    #[command(after_help = "Examples:
  lb-user recipe web                          commands for each backend of web
  lb-user recipe web 10.0.1.5                 of one
  lb-user recipe web -o json > web.json       to take to the backends
  lb-user recipe --check web.json             there: what is missing (exit code 1), and what mends it
  ssh lb lb-user recipe web -o json | lb-user recipe --check -

--check needs no agent and changes nothing.")]
    Recipe {
        /// The service's name
        #[arg(required_unless_present = "check")]
        service: Option<String>,
        /// Only this backend, with or without its port
        #[arg(value_name = "ADDRESS[:PORT]")]
        backend: Option<String>,
        /// Check this machine against a recipe; - is standard input
        #[arg(long, value_name = "FILE", conflicts_with_all = ["service", "backend"])]
        check: Option<PathBuf>,
    },
    /// On a backend: take packets out of tunnels (dsr-ipip, dsr-gue) and give them to the kernel
    #[command(subcommand)]
    Decap(Decap),
    /// Show interfaces, services and backends with their state
    #[command(after_help = "Examples:
  lb-user status
  lb-user status -o json")]
    Status,
    /// Show packets and bytes
    #[command(after_help = "Examples:
  lb-user stats
  lb-user stats --watch        rates, every second")]
    Stats {
        /// Show rates, again and again
        #[arg(short, long)]
        watch: bool,
        /// Time between two looks
        #[arg(long, default_value = "1s", requires = "watch", value_name = "TIME")]
        interval: Span,
    },
    /// List flows, which client is with which backend; or forget some
    #[command(after_help = "Examples:
  lb-user flows --service web --limit 20
  lb-user flows --client 198.51.100.7
  lb-user flows --summary
  sudo lb-user flows --flush --service web --backend 10.0.1.5")]
    Flows(Flows),
    /// List the reasons for which packets pass, are forwarded or dropped, with their counts
    #[command(after_help = "Examples:
  lb-user reasons
  lb-user reasons -o json")]
    Reasons,
    /// Show what would happen to a packet, step by step, and why; changes nothing
    #[command(after_help = "Examples:
  sudo lb-user trace --src 198.51.100.7:40000 --dst 203.0.113.10:80
  sudo lb-user trace --src 198.51.100.7:40000 --dst 203.0.113.10:80 --flags A --size 1500
  sudo lb-user trace --src 10.0.1.5:8080 --dst 198.51.100.7:40000 --flags SA --in eth2
  sudo lb-user trace --src '[2001:db8::7]:5353' --dst '[2001:db8::10]:53' --proto udp -o json
  sudo lb-user trace --pcap file.pcap --in eth1 --brief

It runs the program's own code over the live maps, which it only reads. A packet of a service is
told with the flow it is of, the slot and backend that it gets, and the next choice; its entry may
be made the next moment by a real packet. Round-robin has a wheel on every CPU: see --cpu.")]
    Trace(Trace),
    /// Print the whole configuration
    #[command(after_help = "Examples:
  lb-user export > lb.toml
  lb-user export -o json")]
    Export,
    /// Put the configuration of a file in place of the one there is; prints what changes first
    #[command(after_help = "Examples:
  sudo lb-user apply -f lb.toml --dry-run
  sudo lb-user apply -f lb.toml
  lb-user export | sed s/10.0.1.5/10.0.1.7/ | sudo lb-user apply -f -")]
    Apply {
        /// The file; - is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Print what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what happened lately: new flows and drops (sampled), next hops that are missing
    #[command(after_help = "Examples:
  lb-user events
  lb-user events --follow -o json")]
    Events {
        /// Go on until interrupted
        #[arg(short, long)]
        follow: bool,
    },
}

/// `attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// Interfaces
    #[arg(required = true, value_name = "INTERFACE")]
    pub interfaces: Vec<String>,
    /// Where the program runs: in the driver if it can, in the driver or not at all, or generic
    #[arg(long, default_value = "auto", value_name = "auto|driver|skb")]
    pub xdp_mode: XdpMode,
    /// How a new agent is started.
    #[command(flatten)]
    pub host: Host,
}

/// `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Start from this file, not from the state folder
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How it is started.
    #[command(flatten)]
    pub host: Host,
    /// Attach to these interfaces too (given by attach)
    #[arg(long, value_name = "INTERFACE", hide = true)]
    pub attach: Vec<String>,
    /// How to attach to them
    #[arg(long, default_value = "auto", value_name = "MODE", hide = true)]
    pub xdp_mode: XdpMode,
    /// Leave the terminal's session
    #[arg(long, hide = true)]
    pub background: bool,
}

/// What an agent may do to its host.
#[derive(Clone, Debug, Default, Args)]
pub struct Host {
    /// Enter this network namespace (a name of `ip netns`, or a path) before anything else
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// Change no kernel setting; fail with the lines to type if one is missing
    #[arg(long)]
    pub no_sysctl: bool,
    /// Put no service address on any interface
    #[arg(long)]
    pub no_address: bool,
    /// Throw away maps whose layout is another version's, with their flows
    #[arg(long)]
    pub discard: bool,
    /// Log rare packets (aya-log) to the agent's log
    #[arg(long)]
    pub log_packets: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_examples() {
        let mut cli = Cli::command();
        cli.build();
        cli.clone().debug_assert();
        let commands = |of: &clap::Command| -> Vec<clap::Command> {
            let all = of.get_subcommands().filter(|c| c.get_name() != "help");
            all.cloned().collect()
        };
        let mut open = commands(&cli);
        while let Some(command) = open.pop() {
            let inner = commands(&command);
            if inner.is_empty() {
                let help = command.get_after_help().map(ToString::to_string);
                assert!(
                    help.unwrap_or_default().contains("lb-user"),
                    "{} has no example",
                    command.get_name()
                );
            }
            open.extend(inner);
        }
    }
}
