//! A recipe as commands, to be pasted into a root shell of the backend.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::decap::GUE_PORT;

use super::{Need, Recipe};

/// The interface towards the load balancer, in the commands.
const DEVICE: &str = "$dev";

/// The whole recipe: comments and commands, for `sh -e`.
pub fn script(recipe: &Recipe) -> String {
    let Recipe {
        service,
        mode,
        backend,
        balancer,
        needs,
    } = recipe;
    let mut text = format!(
        "# Backend {backend} of service {service} ({mode}). For a root shell there; it lasts until the\n\
         # machine starts again, unless its network configuration says the same.\n"
    );
    let steps: Vec<(String, Vec<String>)> = needs
        .iter()
        .map(|need| (need.why(), need.commands(DEVICE)))
        .collect();
    if steps
        .iter()
        .flat_map(|(_, c)| c)
        .any(|c| c.contains(DEVICE))
    {
        text += &format!(
            "\n# the interface towards the load balancer\n\
             dev=$(ip {} -o route get {balancer} | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p')\n",
            family(*balancer)
        );
    }
    for (why, commands) in steps {
        text += &format!("\n# {why}\n");
        for command in commands {
            text += &format!("{command}\n");
        }
    }
    text
}

impl Need {
    /// What is needed, in a few words.
    pub fn title(&self) -> String {
        match self {
            Self::DefaultRoute { via, mtu: None } => format!("default route via {via}"),
            Self::DefaultRoute {
                via,
                mtu: Some(mtu),
            } => format!("default route via {via}, MTU {mtu}"),
            Self::RoutedBack { balancer, .. } => format!("routers send answers to {balancer}"),
            Self::WayOfItsOwn { balancer } => format!("default route not via {balancer}"),
            Self::ArpSilence => "arp_ignore 1, arp_announce 2".to_owned(),
            Self::LooseReversePath => "rp_filter 0 or 2".to_owned(),
            Self::Address { address } => format!("{} on lo", alone(*address)),
            Self::Advmss { most, .. } => format!("advmss {most} on the default route"),
            Self::Decap { from, .. } => format!("decap from {}", plain(*from)),
            Self::Server { at, protocol } => format!("a server at {at}/{protocol}"),
        }
    }

    /// What it is good for, for a comment of one line.
    pub fn why(&self) -> String {
        match self {
            Self::DefaultRoute { mtu: None, .. } => {
                "answers go through the load balancer, which puts the service's address back".into()
            }
            Self::DefaultRoute { mtu: Some(mtu), .. } => format!(
                "answers go through the load balancer, in packets that fit the way to the clients ({mtu})"
            ),
            Self::RoutedBack { balancer, router } => format!(
                "nothing to do here: {router} and every router behind it must send answers to the \
                 clients through the load balancer, {balancer}"
            ),
            Self::WayOfItsOwn { balancer } => {
                format!("answers go directly: the default route is a router, not {balancer}")
            }
            Self::ArpSilence => {
                "only the load balancer answers ARP for the service's address".into()
            }
            Self::LooseReversePath => {
                "requests may come in on another interface than answers leave by".into()
            }
            Self::Address {
                address: IpAddr::V4(_),
            } => "the service's address".into(),
            Self::Address {
                address: IpAddr::V6(_),
            } => "the service's address: on lo, neighbour discovery does not answer for it".into(),
            Self::Advmss { .. } => {
                "clients send segments that fit into the tunnel: answers to SYNs announce their size".into()
            }
            Self::Decap { .. } => {
                "requests come out of the tunnel (of several load balancers: --from for each)".into()
            }
            Self::Server { at, protocol } => format!("let a server listen at {at}/{protocol}"),
        }
    }

    /// What to type for it, where `device` is the interface towards the load balancer; nothing
    /// where no command can be told.
    pub fn commands(&self, device: &str) -> Vec<String> {
        match self {
            Self::DefaultRoute { via, mtu } => {
                let mtu = mtu.map_or_else(String::new, |mtu| format!(" mtu {mtu}"));
                vec![match via {
                    IpAddr::V4(_) => format!("ip route replace default via {via}{mtu}"),
                    // Before one that a router advertises.
                    IpAddr::V6(_) => {
                        format!("ip -6 route replace default via {via} metric 1{mtu}")
                    }
                }]
            }
            Self::ArpSilence => vec![
                "sysctl -w net.ipv4.conf.all.arp_ignore=1".into(),
                "sysctl -w net.ipv4.conf.all.arp_announce=2".into(),
            ],
            Self::LooseReversePath => {
                vec![format!("sysctl -w \"net/ipv4/conf/{device}/rp_filter=2\"")]
            }
            Self::Address { address } => {
                let nodad = if address.is_ipv6() { " nodad" } else { "" };
                vec![format!("ip addr replace {} dev lo{nodad}", alone(*address))]
            }
            Self::Advmss { ipv4, most } => {
                let ip = if *ipv4 { "ip -4" } else { "ip -6" };
                vec![format!(
                    "{ip} route replace $({ip} route show default | head -n 1 | \
                     sed 's/ advmss [0-9]*//; s/ expires [0-9]*sec//') advmss {most}"
                )]
            }
            Self::Decap { from, gue_port } => {
                let port = match *gue_port {
                    GUE_PORT => String::new(),
                    port => format!(" --gue-port {port}"),
                };
                let from = plain(*from);
                vec![format!(
                    "lb-user decap attach \"{device}\" --from {from}{port}"
                )]
            }
            Self::RoutedBack { .. } | Self::WayOfItsOwn { .. } | Self::Server { .. } => Vec::new(),
        }
    }
}

/// A network, or an address without a prefix if it is one.
pub(super) fn plain(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// The address with the prefix of a lone host.
fn alone(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "-4" } else { "-6" }
}
