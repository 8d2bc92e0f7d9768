//! What changes the configuration: services, backends and egress.

use clap::{Args, Subcommand};

use crate::config::{Algorithm, Mode, State, raw::Span};

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
