//! What can be typed.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use lb_common::abi::decap::GUE_PORT;

use crate::{
    config::{Algorithm, Mode, Protocol, State, XdpMode, raw::Span},
    instance::Instance,
};

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
    /// List flows: which client is with which backend
    #[command(after_help = "Examples:
  lb-user flows --service web --limit 20
  lb-user flows --client 198.51.100.7
  lb-user flows --summary")]
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

/// `service`.
#[derive(Debug, Subcommand)]
pub enum Service {
    /// Add a service
    #[command(after_help = "Examples:
  sudo lb-user service add 203.0.113.10:80/tcp --name web
  sudo lb-user service add '[2001:db8::10]:53/udp' --name dns --algorithm round-robin
  sudo lb-user service add 10.0.0.100:80/tcp --name direct --mode dsr-l2
  sudo lb-user service add 203.0.113.20:80/tcp --name far --mode dsr-ipip")]
    Add(ServiceAdd),
    /// Remove a service with its backends
    #[command(after_help = "Examples:
  sudo lb-user service del web
  sudo lb-user service del 203.0.113.10:80/tcp")]
    Del {
        /// Its name, or its address as in `add`
        service: String,
    },
    /// List services
    #[command(after_help = "Examples:
  lb-user service list
  lb-user service list -o json")]
    List,
    /// Change a service; what is not given stays
    #[command(after_help = "Examples:
  sudo lb-user service set web --algorithm source-hash
  sudo lb-user service set web --address 203.0.113.11 --remove-address 203.0.113.10
  sudo lb-user service set web --established 10m")]
    Set(ServiceChange),
}

/// `service add`.
#[derive(Debug, Args)]
pub struct ServiceAdd {
    /// Its address, port and protocol.
    #[arg(
        value_name = "ADDRESS:PORT/PROTOCOL",
        help = "Its address, port and protocol: 203.0.113.10:80/tcp, [2001:db8::10]:53/udp"
    )]
    pub endpoint: String,
    /// Its name; made from the address if left out
    #[arg(long)]
    pub name: Option<String>,
    /// What it does.
    #[command(flatten)]
    pub options: ServiceOptions,
}

/// `service set`.
#[derive(Debug, Args)]
pub struct ServiceChange {
    /// Its name, or its address as in `add`
    pub service: String,
    /// What changes.
    #[command(flatten)]
    pub options: ServiceOptions,
    /// An address to remove; may be given again
    #[arg(long, value_name = "ADDRESS")]
    pub remove_address: Vec<String>,
    /// Put the address on the interfaces again (undoes --no-address)
    #[arg(long, conflicts_with = "no_address")]
    pub put_address: bool,
}

/// What can be said of a service.
#[derive(Debug, Args)]
pub struct ServiceOptions {
    /// nat: answers come back through here; dsr-l2, dsr-ipip, dsr-gue: backends answer the client
    /// directly, reached on-link by MAC address, or anywhere by IP in IP or GUE
    #[arg(long, value_name = "nat|dsr-l2|dsr-ipip|dsr-gue")]
    pub mode: Option<Mode>,
    /// How a backend is chosen for a new flow
    #[arg(long, value_name = "maglev|round-robin|source-hash")]
    pub algorithm: Option<Algorithm>,
    /// Cells of the lookup table, a prime [default: 65537]
    #[arg(long, value_name = "PRIME")]
    pub slots: Option<u32>,
    /// A further address of the same family; may be given again
    #[arg(long, value_name = "ADDRESS")]
    pub address: Vec<String>,
    /// Leave the address alone: it is on this host, or routed to it, already
    #[arg(long)]
    pub no_address: bool,
    /// Idle time of TCP handshakes [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub half_open: Option<Span>,
    /// Idle time of TCP connections [default: 350s]
    #[arg(long, value_name = "TIME")]
    pub established: Option<Span>,
    /// Idle time of TCP connections after their end [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub closing: Option<Span>,
    /// Idle time of UDP flows [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub udp: Option<Span>,
}

/// `backend`.
#[derive(Debug, Subcommand)]
pub enum Backend {
    /// Add a backend to a service
    #[command(after_help = "Examples:
  sudo lb-user backend add web 10.0.1.5:8080
  sudo lb-user backend add web 10.0.1.6:8080 --weight 2
  sudo lb-user backend add direct 10.0.0.5          the service's port
  sudo lb-user backend add far 2001:db8:1::5        dsr-ipip, dsr-gue: either family")]
    Add {
        /// The service's name
        service: String,
        /// The backend's address and port
        #[arg(value_name = "ADDRESS:PORT")]
        address: String,
        /// Its share, relative to the other backends' (0 to 65535)
        #[arg(long, value_name = "N")]
        weight: Option<u16>,
        /// Whether it takes packets from the start
        #[arg(long, value_name = "enabled|draining|disabled")]
        state: Option<State>,
    },
    /// Remove a backend: its flows choose anew
    #[command(after_help = "Examples:
  sudo lb-user backend del web 10.0.1.5:8080")]
    Del {
        /// The service's name
        service: String,
        /// The backend's address and port
        #[arg(value_name = "ADDRESS:PORT")]
        address: String,
    },
    /// List backends, of all services or one
    #[command(after_help = "Examples:
  lb-user backend list
  lb-user backend list web -o json")]
    List {
        /// The service's name
        service: Option<String>,
    },
    /// Change a backend's weight or state
    #[command(after_help = "Examples:
  sudo lb-user backend set web 10.0.1.5:8080 --weight 3
  sudo lb-user backend set web 10.0.1.5:8080 --state draining    keeps the flows it has
  sudo lb-user backend set web 10.0.1.5:8080 --state disabled    keeps open TCP connections only")]
    Set {
        /// The service's name
        service: String,
        /// The backend's address and port
        #[arg(value_name = "ADDRESS:PORT")]
        address: String,
        /// Its share, relative to the other backends' (0 to 65535)
        #[arg(long, value_name = "N")]
        weight: Option<u16>,
        /// Whether it takes packets
        #[arg(long, value_name = "enabled|draining|disabled")]
        state: Option<State>,
    },
}

/// `egress`.
#[derive(Debug, Subcommand)]
pub enum Egress {
    /// Masquerade new connections from a network; services' traffic is never touched
    #[command(after_help = "Examples:
  sudo lb-user egress add 10.0.1.0/24
  sudo lb-user egress add 2001:db8:b::/64 --interface eth0

A table of nftables (inet lb-user-INSTANCE) does it; detach removes it. Left as they are: answers of
services, everything from a service's address or from and to a backend's service port, this host's
own connections, those within the network, and TCP connections that are open already.")]
    Add {
        /// The network, or one address
        #[arg(value_name = "PREFIX")]
        prefix: String,
        /// Out of this interface [default: attached ones that a default route goes out of]
        #[arg(long, value_name = "INTERFACE")]
        interface: Option<String>,
    },
    /// Masquerade connections from a network no more: those that are open break off
    #[command(after_help = "Examples:
  sudo lb-user egress del 10.0.1.0/24")]
    Del {
        /// The network, as in `add`
        #[arg(value_name = "PREFIX")]
        prefix: String,
    },
    /// List networks with what they have carried
    #[command(after_help = "Examples:
  lb-user egress list
  lb-user egress list -o json")]
    List,
}

/// `decap`.
#[derive(Debug, Subcommand)]
pub enum Decap {
    /// Take packets out of IPIP and GUE on an interface, from now on and without an agent
    #[command(after_help = "Examples:
  sudo lb-user decap attach eth0 --from 10.0.0.2 --from 10.0.0.3
  sudo lb-user decap attach eth0 --from 10.0.0.0/28 --from 2001:db8:1::/64
  sudo lb-user decap attach eth0 --from 10.0.0.2 --gue-port 6081
Again on the same interface: a new program, sources and port take the place of the old ones between
two packets, and the counters go on.

Takes off IPv4 and IPv6 inside IPv4 and IPv6 (IPIP), and IP directly behind UDP (GUE variant 1), if the
outer packet is from one of the addresses and for this host. Everything else passes untouched. The
service's address must be on lo, or the kernel throws away what comes out: `lb-user recipe SERVICE`
prints what a backend needs, `lb-user recipe --check FILE` tells what is missing here.

It lasts until `decap detach` or the next start of the machine.")]
    Attach(DecapAttach),
    /// Stop taking packets out of tunnels, on an interface or on all
    #[command(after_help = "Examples:
  sudo lb-user decap detach eth0
  sudo lb-user decap detach          all interfaces of this instance")]
    Detach {
        /// The interface
        interface: Option<String>,
    },
    /// Show where packets are taken out of tunnels, from whom, and what became of them
    #[command(after_help = "Examples:
  sudo lb-user decap status
  sudo lb-user decap status -o json")]
    Status,
}

/// `decap attach`.
#[derive(Debug, Args)]
pub struct DecapAttach {
    /// The interface that packets from the load balancer come in on
    pub interface: String,
    /// A load balancer's address, or a network of them; may be given again
    #[arg(long, value_name = "ADDRESS[/BITS]")]
    pub from: Vec<Network>,
    /// The UDP port that GUE is sent to
    #[arg(
        long,
        default_value_t = GUE_PORT,
        value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub gue_port: u16,
    /// Where the program runs: in the driver if it can, in the driver or not at all, or generic
    #[arg(long, default_value = "auto", value_name = "auto|driver|skb")]
    pub xdp_mode: XdpMode,
    /// Enter this network namespace (a name of `ip netns`, or a path) before anything else
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// Throw away counters whose layout is another version's
    #[arg(long)]
    pub discard: bool,
}

/// Addresses that begin alike, or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network: IpNet = match text.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().into(),
            Err(_) => text.parse().map_err(|_| {
                "write an address or a network: 10.0.0.2, 10.0.0.0/24, 2001:db8::/64".to_owned()
            })?,
        };
        if network.addr() != network.network() {
            return Err(format!(
                "the address has bits beyond the prefix: write {} or {}",
                network.trunc(),
                network.addr()
            ));
        }
        Ok(Self(network))
    }
}

/// `flows`.
#[derive(Debug, Args)]
pub struct Flows {
    /// Only of this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Only of this backend, with or without its port
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub backend: Option<String>,
    /// Only of this client
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// No more than so many
    #[arg(long, default_value = "1000", value_name = "N")]
    pub limit: usize,
    /// Count flows by service and backend
    #[arg(long, conflicts_with_all = ["service", "backend", "client", "limit"])]
    pub summary: bool,
}

/// `trace`.
#[derive(Debug, Args)]
pub struct Trace {
    /// Source address and port
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket, requires = "dst")]
    #[arg(required_unless_present = "pcap", conflicts_with = "pcap")]
    pub src: Option<SocketAddr>,
    /// Destination address and port, of the same family
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket, requires = "src")]
    #[arg(required_unless_present = "pcap", conflicts_with = "pcap")]
    pub dst: Option<SocketAddr>,
    /// Protocol
    #[arg(
        long,
        default_value = "tcp",
        value_name = "tcp|udp",
        conflicts_with = "pcap"
    )]
    pub proto: Protocol,
    /// TCP flags by their letters, as S, SA, PA, F, R [default: S]
    #[arg(long, value_name = "LETTERS", value_parser = crate::trace::flags)]
    #[arg(conflicts_with = "pcap")]
    pub flags: Option<u8>,
    /// Length of the IP packet in bytes [default: its headers]
    #[arg(long, value_name = "BYTES", conflicts_with = "pcap")]
    pub size: Option<u16>,
    /// TTL or hop limit
    #[arg(long, default_value = "64", value_name = "N", conflicts_with = "pcap")]
    pub ttl: u8,
    /// Without DF (IPv4), as if it may be cut on its way
    #[arg(long, conflicts_with = "pcap")]
    pub no_df: bool,
    /// The interface it comes in on [default: where the kernel would send to its source]
    #[arg(long = "in", value_name = "INTERFACE")]
    pub interface: Option<String>,
    /// Trace each packet of this capture (pcap or pcapng), in order
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// The CPU whose round-robin wheel turns
    #[arg(long, default_value = "0", value_name = "N")]
    pub cpu: u32,
    /// One line for each packet
    #[arg(long)]
    pub brief: bool,
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    let example = "give an address and port, as 198.51.100.7:40000 or [2001:db8::7]:40000";
    text.parse().map_err(|_| example.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn a_network_is_an_address_or_one_with_a_prefix_and_nothing_beyond() {
        let shown = |text: &str| text.parse().map(|Network(network)| network.to_string());
        assert_eq!(shown("10.0.0.2").as_deref(), Ok("10.0.0.2/32"));
        assert_eq!(shown("10.0.0.0/28").as_deref(), Ok("10.0.0.0/28"));
        assert_eq!(shown("2001:db8::2").as_deref(), Ok("2001:db8::2/128"));
        assert_eq!(shown("::/0").as_deref(), Ok("::/0"));
        assert_eq!(shown("::ffff:10.0.0.2").as_deref(), Ok("10.0.0.2/32"));
        for wrong in [
            "10.0.0.2/24",
            "10.0.0.0/33",
            "10.0.0",
            "lb1",
            "",
            "10.0.0.2:80",
        ] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }

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
