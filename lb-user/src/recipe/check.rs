//! Looking, on the backend, which of its needs are met. No agent is needed, and nothing is changed.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use serde::Serialize;

use super::{Need, Recipe, listening, shell};
use crate::kernel::decap::Decap;
use crate::network::{DefaultRoute, InterfaceAddress, Link, Network, sysctl::Settings};

/// A need, and what there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The service.
    pub service: String,
    /// What is needed.
    pub need: String,
    /// What it is good for.
    pub why: String,
    /// Whether it is met; null where that cannot be seen from the backend.
    pub met: Option<bool>,
    /// What there is.
    pub found: String,
    /// What to type; empty if the need is met, or [`why`](Self::why) says what is to be done.
    pub mend: Vec<String>,
}

/// Looks at this machine with the eyes of each recipe that is for it. Tunnels are taken off by the
/// program that is pinned below `pins`.
///
/// # Errors
///
/// When none is for this machine, or the kernel does not answer.
pub async fn check(recipes: &[Recipe], pins: &Path) -> Result<Vec<Checked>> {
    let network = Network::open().await?;
    let machine = Machine {
        pins: pins.to_owned(),
        links: network.links().await?,
        addresses: network.addresses().await?,
        routes: [
            network.default_routes(IpAddr::from([0; 4])).await?,
            network.default_routes(IpAddr::from([0; 16])).await?,
        ]
        .concat(),
    };
    let is_here = |address: IpAddr| machine.addresses.iter().any(|a| a.address == address);
    let here = recipes.iter().filter(|r| is_here(r.backend.ip()));
    let mut checked = Vec::new();
    for recipe in here {
        let hop = network.resolve(recipe.balancer).await?;
        let towards = hop.and_then(|hop| machine.link(hop.ifindex));
        let towards = towards.with_context(|| {
            format!(
                "there is no route from here to the load balancer, {}",
                recipe.balancer
            )
        })?;
        for need in &recipe.needs {
            let (met, found) = machine.look(need, towards)?;
            let mend = match met {
                Some(true) | None => Vec::new(),
                Some(false) => mend(need, &machine, towards),
            };
            checked.push(Checked {
                service: recipe.service.clone(),
                need: need.title(),
                why: need.why(),
                met,
                found,
                mend,
            });
        }
    }
    let backends: Vec<String> = recipes.iter().map(|r| r.backend.to_string()).collect();
    ensure!(
        !checked.is_empty(),
        "this machine is none of the recipe's backends ({}): run the check on one of them",
        backends.join(", ")
    );
    Ok(checked)
}

/// What there is on this machine.
struct Machine {
    pins: PathBuf,
    links: Vec<Link>,
    addresses: Vec<InterfaceAddress>,
    /// Of both families, the best of each first.
    routes: Vec<DefaultRoute>,
}

impl Machine {
    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The default route that counts.
    fn route(&self, like: IpAddr) -> Option<&DefaultRoute> {
        self.routes
            .iter()
            .find(|route| route.is_ipv4 == like.is_ipv4())
    }

    /// Whether the need is met, and what there is.
    fn look(&self, need: &Need, towards: &Link) -> Result<(Option<bool>, String)> {
        Ok(match need {
            Need::DefaultRoute { via, mtu } => {
                let route = self.route(*via);
                let fits = |route: &DefaultRoute| {
                    let most = route.mtu.unwrap_or(towards.mtu);
                    route.gateway == Some(*via) && mtu.is_none_or(|mtu| most <= mtu)
                };
                (Some(route.is_some_and(fits)), self.described(route))
            }
            Need::RoutedBack { .. } => (None, "not to be seen from here".to_owned()),
            Need::WayOfItsOwn { balancer } => {
                let route = self.route(*balancer);
                let is_own = route.is_some_and(|r| r.gateway != Some(*balancer));
                (Some(is_own), self.described(route))
            }
            Need::ArpSilence => {
                let ignore = effective("arp_ignore", towards)?;
                let announce = effective("arp_announce", towards)?;
                (
                    Some(ignore >= 1 && announce == 2),
                    format!("{ignore}, {announce}"),
                )
            }
            Need::LooseReversePath => {
                let filter = effective("rp_filter", towards)?;
                (Some(filter != 1), filter.to_string())
            }
            Need::Address { address } => {
                let on: Vec<&str> = self.on(*address).map(|link| &*link.name).collect();
                let is_silent = !on.is_empty() && !on.contains(&&*towards.name);
                let found = match &*on {
                    [] => "not there".to_owned(),
                    names if is_silent => format!("on {}", names.join(" and ")),
                    _ => format!("on {}, which answers for it", towards.name),
                };
                (Some(is_silent), found)
            }
            Need::Advmss { ipv4, most } => {
                let route = self.routes.iter().find(|route| route.is_ipv4 == *ipv4);
                let announced = route.map(|route| {
                    let headers = if *ipv4 { 40 } else { 60 };
                    let mtu = self.link(route.ifindex).map(|link| link.mtu);
                    let mtu = route.mtu.or(mtu).unwrap_or_default();
                    route.advmss.unwrap_or(mtu.saturating_sub(headers))
                });
                match announced {
                    Some(announced) => (Some(announced <= *most), announced.to_string()),
                    None => (Some(false), self.described(None)),
                }
            }
            Need::Decap { from, gue_port } => self.decap(*from, *gue_port, towards),
            Need::Server { at, protocol } => match listening::at(*at, *protocol) {
                Some(socket) => (Some(true), format!("listens at {socket}")),
                None => (Some(false), "nobody listens".to_owned()),
            },
        })
    }

    /// Whether packets from `from` are taken out of tunnels on an interface, and what is.
    fn decap(&self, from: IpNet, gue_port: u16, towards: &Link) -> (Option<bool>, String) {
        let state = match Decap::open(&self.pins).and_then(|decap| decap.state(&towards.name)) {
            Ok(Some(state)) if state.ifindex == towards.index => state,
            Ok(_) => return (Some(false), format!("not attached to {}", towards.name)),
            Err(error) => return (Some(false), format!("{error:#}")),
        };
        let is_taken = state.sources.iter().any(|known| known.contains(&from));
        let known: Vec<String> = state.sources.iter().map(|&s| shell::plain(s)).collect();
        let found = format!("from {}, GUE port {}", known.join(", "), state.gue_port);
        (Some(is_taken && state.gue_port == gue_port), found)
    }

    /// The interfaces that have an address.
    fn on(&self, address: IpAddr) -> impl Iterator<Item = &Link> {
        let on = self.addresses.iter().filter(move |a| a.address == address);
        on.filter_map(|a| self.link(a.ifindex))
    }

    fn described(&self, route: Option<&DefaultRoute>) -> String {
        let Some(route) = route else {
            return "no default route".to_owned();
        };
        let via = match route.gateway {
            Some(gateway) => format!("via {gateway}"),
            None => format!("dev {}", self.link(route.ifindex).map_or("?", |l| &l.name)),
        };
        let mtu = route.mtu.map(|mtu| format!(", MTU {mtu}"));
        via + &mtu.unwrap_or_default()
    }
}

/// What to type where a need is not met; nothing where that cannot be told.
fn mend(need: &Need, machine: &Machine, towards: &Link) -> Vec<String> {
    let mut commands = Vec::new();
    if let Need::Address { address } = need {
        let loud = machine
            .addresses
            .iter()
            .filter(|a| a.address == *address && a.ifindex == towards.index);
        commands.extend(
            loud.map(|held| format!("ip addr del {address}/{} dev {}", held.prefix, towards.name)),
        );
    }
    commands.extend(need.commands(&towards.name));
    commands
}

/// The value of a setting that counts for an interface: the larger of its own and that of `all`
/// (Linux Documentation/networking/ip-sysctl.rst).
fn effective(name: &str, interface: &Link) -> Result<u8> {
    let settings = Settings::default();
    let read = |of: &str| -> Result<u8> {
        let key = format!("ipv4/conf/{of}/{name}");
        let value = settings.read(&key)?;
        value.parse().with_context(|| format!("{key} is {value:?}"))
    };
    Ok(read("all")?.max(read(&interface.name)?))
}
