//! What is asked: about flows, and about a packet.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::Args;

use crate::config::Protocol;

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
    /// Forget them instead: the next packet of each chooses a backend anew
    #[arg(long, conflicts_with_all = ["limit", "summary"])]
    pub flush: bool,
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
