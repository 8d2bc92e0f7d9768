//! `decap`, typed on a backend.

use std::{net::IpAddr, str::FromStr};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use lb_common::abi::decap::GUE_PORT;

use crate::config::XdpMode;

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

#[cfg(test)]
mod tests {
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
}
