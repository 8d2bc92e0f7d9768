//! The agent's view of the host's network: addresses, routes, neighbours, settings, notifications.
//!
//! ```text
//! lb ── e1 10.9.0.1/24, fd09::1/64 ───── e1 .2, ::2 ── near ── (10.9.9.0/24, fd09:9::/64 behind it)
//! ```

use std::{
    collections::BTreeSet,
    future::Future,
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lb_common::abi::Mac;
use lb_tests::{netns::Netns, wait};
use lb_user::network::{Changed, Network, NextHop, Placed, Reachability, sysctl};

struct Pair {
    lb: Netns,
    near: Netns,
    ifindex: u32,
}

impl Pair {
    fn create() -> Result<Self> {
        let lb = Netns::create("net-lb")?;
        let near = Netns::create("net-near")?;
        lb.ip(&format!(
            "link add e1 type veth peer name e1 netns {}",
            near.name()
        ))?;
        lb.ip("addr add 10.9.0.1/24 dev e1\naddr add fd09::1/64 dev e1 nodad\nlink set e1 up")?;
        near.ip("addr add 10.9.0.2/24 dev e1\naddr add fd09::2/64 dev e1 nodad\nlink set e1 up")?;
        lb.ip("route add 10.9.9.0/24 via 10.9.0.2\nroute add fd09:9::/64 via fd09::2")?;
        let ifindex = u32::try_from(lb.link("e1")?.ifindex())?;
        Ok(Self { lb, near, ifindex })
    }

    /// Runs `work` inside the load balancer's namespace on a runtime of its own.
    fn inside<T: Send, F: Future<Output = Result<T>>>(
        &self,
        work: impl FnOnce() -> F + Send,
    ) -> Result<T> {
        self.lb.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(work())
        })
    }

    fn hop(&self, address: &str) -> NextHop {
        NextHop {
            ifindex: self.ifindex,
            address: ip(address),
        }
    }

    fn near_mac(&self) -> Result<Mac> {
        Ok(Mac(self.near.mac("e1")?))
    }

    /// The line of `ip neigh` about an address; empty if there is none.
    fn neigh(&self, address: &str) -> Result<String> {
        let all = self.lb.tool("ip neigh show")?;
        Ok(all
            .lines()
            .find(|line| line.split(' ').next() == Some(address))
            .unwrap_or_default()
            .to_owned())
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Looks until `look` gives a value.
async fn until<T, F: Future<Output = Result<Option<T>>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> Result<T> {
    let deadline = Instant::now() + wait::LONG;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_service_address_stands_alone_at_once_and_goes_again() -> Result<()> {
    let pair = Pair::create()?;
    let e1 = pair.ifindex;
    pair.inside(|| async move {
        let network = Network::open().await?;
        for address in ["203.0.113.10", "2001:db8::10"] {
            let address = ip(address);
            ensure!(network.add_address(e1, address).await? == Placed::Added);
            ensure!(network.add_address(e1, address).await? == Placed::WasThere);
            let placed = network.addresses().await?;
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            ensure!(
                placed
                    .iter()
                    .any(|a| a.ifindex == e1 && a.address == address && a.prefix == prefix),
                "{placed:?}"
            );
        }
        // With whatever prefix it was there before.
        ensure!(network.add_address(e1, ip("10.9.0.1")).await? == Placed::WasThere);
        Ok(())
    })?;

    let shown = pair.lb.tool("ip -6 addr show dev e1")?;
    let line = shown
        .lines()
        .find(|line| line.contains("2001:db8::10/128"))
        .context("the address is not shown")?;
    ensure!(
        line.contains("nodad") && line.contains("deprecated") && !line.contains("tentative"),
        "{line}"
    );
    let routes = pair.lb.tool("ip route show")?;
    ensure!(!routes.contains("203.0.113.10"), "{routes}");

    pair.inside(|| async move {
        let network = Network::open().await?;
        for address in ["203.0.113.10", "2001:db8::10"] {
            network.remove_address(e1, ip(address)).await?;
            network.remove_address(e1, ip(address)).await?;
            let left = network.addresses().await?;
            ensure!(left.iter().all(|a| a.address != ip(address)), "{left:?}");
        }
        ensure!(network.add_address(9999, ip("203.0.113.10")).await.is_err());
        Ok(())
    })
}

#[test]
fn the_next_hop_is_the_destination_or_its_gateway() -> Result<()> {
    let pair = Pair::create()?;
    pair.lb.ip("route add unreachable 10.9.8.0/24\n\
         route add 10.9.7.0/24 nexthop via 10.9.0.2 dev e1 nexthop via 10.9.0.3 dev e1\n\
         route add 10.9.6.0/24 via 10.9.0.6 table 77")?;
    let cases = [
        ("10.9.0.7", Some("10.9.0.7")),
        ("10.9.9.7", Some("10.9.0.2")),
        ("fd09::7", Some("fd09::7")),
        ("fd09:9::7", Some("fd09::2")),
        // No route; a route that says so; an address of this host.
        ("192.0.2.1", None),
        ("2001:db8::1", None),
        ("10.9.8.1", None),
        ("10.9.0.1", None),
    ];
    let expected: Vec<_> = cases
        .iter()
        .map(|(to, hop)| (ip(to), hop.map(|hop| pair.hop(hop))))
        .collect();
    let either = [pair.hop("10.9.0.2"), pair.hop("10.9.0.3")];
    let gateways: BTreeSet<NextHop> = ["10.9.0.2", "10.9.0.3", "10.9.0.6", "fd09::2"]
        .map(|gateway| pair.hop(gateway))
        .into();
    let e1 = pair.ifindex;
    pair.inside(|| async move {
        let network = Network::open().await?;
        for (to, hop) in expected {
            ensure!(
                network.resolve(to).await? == hop,
                "{to}: {:?}",
                network.resolve(to).await?
            );
        }
        let multipath = network.resolve(ip("10.9.7.1")).await?.context("no hop")?;
        ensure!(either.contains(&multipath), "{multipath:?}");

        let found = network.gateways(&BTreeSet::from([e1])).await?;
        ensure!(found == gateways, "{found:?}");
        ensure!(network.gateways(&BTreeSet::from([1])).await?.is_empty());
        Ok(())
    })
}

#[test]
fn neighbours_are_kept_resolved_and_let_go() -> Result<()> {
    let pair = Pair::create()?;
    let mac = pair.near_mac()?;
    let hops = BTreeSet::from([pair.hop("10.9.0.2"), pair.hop("fd09::2")]);
    let wanted = hops.clone();
    pair.inside(|| async move {
        let mut network = Network::open().await?;
        let refused = network.keep_resolved(&wanted).await?;
        ensure!(refused.is_empty(), "{refused:?}");
        let links = network.links().await?;
        for hop in wanted {
            let found = until("a resolved neighbour", || async {
                let found = network.neighbours().await?.frame_addresses(hop, &links);
                Ok(found.is_resolved().then_some(found))
            })
            .await?;
            ensure!(
                found.destination == mac && found.ifindex == hop.ifindex,
                "{found:?}"
            );
            let own = links.iter().find(|l| l.index == hop.ifindex);
            ensure!(own.and_then(|l| l.mac) == Some(found.source), "{found:?}");
        }
        Ok(())
    })?;
    for address in ["10.9.0.2", "fd09::2"] {
        let line = pair.neigh(address)?;
        ensure!(line.contains("managed"), "{line}");
    }

    // The agent was killed; its successor wants one of them only.
    let wanted = BTreeSet::from([pair.hop("fd09::2")]);
    pair.inside(|| async move {
        let mut network = Network::open().await?;
        network.keep_resolved(&wanted).await?;
        Ok(())
    })?;
    let line = pair.neigh("10.9.0.2")?;
    ensure!(!line.contains("managed"), "{line}");
    ensure!(pair.neigh("fd09::2")?.contains("managed"));

    pair.inside(|| async move {
        let mut network = Network::open().await?;
        network.keep_resolved(&hops).await?;
        network.release_neighbours().await
    })?;
    ensure!(!pair.lb.tool("ip neigh show")?.contains("managed"));
    Ok(())
}

#[test]
fn a_neighbour_that_changes_its_mac_is_followed() -> Result<()> {
    let pair = Pair::create()?;
    pair.lb.set_sysctls(&[
        ("net/ipv4/neigh/e1/base_reachable_time_ms", "500"),
        ("net/ipv4/neigh/e1/retrans_time_ms", "50"),
        ("net/ipv4/neigh/e1/delay_first_probe_time", "1"),
    ])?;
    let hop = pair.hop("10.9.0.2");
    let near = &pair.near;
    let before = pair.near_mac()?;
    pair.inside(|| async move {
        let mut network = Network::open().await?;
        network.keep_resolved(&BTreeSet::from([hop])).await?;
        let is = async |mac: Mac| {
            until("the neighbour's MAC address", || async {
                let known = network.neighbour(hop).await?;
                Ok((known == Some(Reachability::Resolved(mac))).then_some(()))
            })
            .await
        };
        is(before).await?;
        near.ip("link set e1 address 02:00:00:00:09:02")?;
        is(Mac([2, 0, 0, 0, 9, 2])).await
    })
}

#[test]
fn an_administrators_entry_is_never_touched() -> Result<()> {
    let pair = Pair::create()?;
    pair.lb
        .ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:55 dev e1 nud permanent")?;
    let hop = pair.hop("10.9.0.2");
    pair.inside(|| async move {
        let mut network = Network::open().await?;
        network.keep_resolved(&BTreeSet::from([hop])).await?;
        network.ask(hop).await?;
        let known = network.neighbour(hop).await?;
        ensure!(
            known == Some(Reachability::Permanent(Mac([2, 0, 0, 0, 0, 0x55]))),
            "{known:?}"
        );
        network.release_neighbours().await
    })?;
    let line = pair.neigh("10.9.0.2")?;
    ensure!(
        line.contains("PERMANENT") && !line.contains("managed"),
        "{line}"
    );
    Ok(())
}

#[test]
fn changes_are_told_by_kind() -> Result<()> {
    let pair = Pair::create()?;
    let lb = &pair.lb;
    type IsTold = fn(&Changed) -> bool;
    let cases: [(&str, IsTold); 4] = [
        ("addr add 10.9.0.99/32 dev e1", |c| c.addresses),
        ("route add 10.9.5.0/24 via 10.9.0.2", |c| c.routes),
        ("neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev e1", |c| {
            c.neighbours
        }),
        ("link set e1 mtu 1400", |c| c.links),
    ];
    pair.inside(|| async move {
        let network = Network::open().await?;
        for (line, is_told) in cases {
            let mut changes = network.changes()?;
            lb.ip(line)?;
            let told = tokio::time::timeout(wait::LONG, async {
                loop {
                    if is_told(&changes.next().await?) {
                        return Ok::<_, anyhow::Error>(());
                    }
                }
            });
            told.await
                .with_context(|| format!("not told of `{line}`"))??;
        }
        Ok(())
    })
}

#[test]
fn more_changes_than_fit_are_told_as_everything() -> Result<()> {
    let pair = Pair::create()?;
    let lb = &pair.lb;
    pair.inside(|| async move {
        let network = Network::open().await?;
        let mut changes = network.changes()?;
        // Nobody reads meanwhile: the runtime has one thread, and it is here. More than the
        // largest buffer holds.
        let mut routes = String::new();
        for i in 0..20_000 {
            routes.push_str(&format!(
                "route add 10.{}.{}.0/24 via 10.9.0.2\n",
                100 + i / 200,
                i % 200
            ));
        }
        lb.ip(&routes)?;
        let everything = Changed {
            links: true,
            neighbours: true,
            addresses: true,
            routes: true,
        };
        let deadline = Instant::now() + wait::LONG;
        loop {
            let told = tokio::time::timeout_at(deadline.into(), changes.next())
                .await
                .context("an overrun was not told")??;
            if told == everything {
                return Ok(());
            }
        }
    })
}

/// Every setting of the namespace that the agent may change.
fn settings(netns: &Netns) -> Result<Vec<(String, String)>> {
    let listed = netns.finish(
        Command::new("sysctl").args(["-a", "-r", r"^net\.ipv[46]\.(ip_forward|conf\.)"]),
        wait::LONG,
    )?;
    let mut settings: Vec<(String, String)> = listed
        .text()?
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .filter(|(key, _)| {
            ["forward", "accept_ra", "redirects"]
                .iter()
                .any(|word| key.contains(word))
        })
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    settings.sort_unstable();
    ensure!(settings.len() > 10, "{settings:?}");
    Ok(settings)
}

#[test]
fn kernel_settings_are_put_back_with_their_side_effects() -> Result<()> {
    let pair = Pair::create()?;
    pair.lb.ip("link add e0.5 type veth peer name e0p")?;
    pair.lb.set_sysctls(&[
        ("net/ipv4/conf/e0.5/forwarding", "1"),
        ("net/ipv4/conf/all/send_redirects", "1"),
        ("net/ipv4/conf/e1/send_redirects", "1"),
        ("net/ipv6/conf/e1/accept_ra", "1"),
        ("net/ipv6/conf/e0p/accept_ra", "0"),
    ])?;
    let before = settings(&pair.lb)?;
    let needs = sysctl::Needs {
        interfaces: vec!["e1".into(), "e0.5".into()],
        ipv4: true,
        ipv6: true,
    };

    let changed = pair.lb.run(|| {
        let kernel = sysctl::Settings::default();
        let missing = kernel.missing(&needs)?;
        let lines: Vec<String> = missing.iter().map(sysctl::Missing::command).collect();
        for line in [
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv6.conf.e1.accept_ra=2",
            "sysctl -w net/ipv4/conf/e0.5/send_redirects=0",
        ] {
            ensure!(lines.iter().any(|l| l == line), "{lines:?}");
        }
        let place = |part: &str| lines.iter().position(|line| line.contains(part));
        ensure!(
            place("accept_ra") < place("ipv6.conf.all.forwarding"),
            "{lines:?}"
        );
        let changed = kernel.set(&needs)?;
        ensure!(kernel.missing(&needs)?.is_empty());
        // Set already: nothing to remember a second time.
        ensure!(kernel.set(&needs)?.is_empty());
        Ok(changed)
    })?;
    ensure!(pair.lb.sysctl("net/ipv6/conf/e1/accept_ra")? == "2");
    ensure!(pair.lb.sysctl("net/ipv6/conf/e0p/accept_ra")? == "0");
    ensure!(pair.lb.sysctl("net/ipv4/conf/e1/forwarding")? == "1");

    pair.lb
        .run(|| sysctl::Settings::default().restore(&changed))?;
    let after = settings(&pair.lb)?;
    for (was, is) in before.iter().zip(&after) {
        ensure!(was == is, "{was:?} became {is:?}");
    }
    ensure!(before.len() == after.len());
    Ok(())
}

#[test]
fn what_somebody_has_changed_since_is_left_alone() -> Result<()> {
    let pair = Pair::create()?;
    pair.lb
        .set_sysctls(&[("net/ipv6/conf/e1/accept_ra", "1")])?;
    let needs = sysctl::Needs {
        interfaces: vec!["e1".into()],
        ipv4: false,
        ipv6: true,
    };
    let changed = pair.lb.run(|| sysctl::Settings::default().set(&needs))?;
    pair.lb
        .set_sysctls(&[("net/ipv6/conf/e1/accept_ra", "0")])?;
    pair.lb
        .run(|| sysctl::Settings::default().restore(&changed))?;
    ensure!(pair.lb.sysctl("net/ipv6/conf/e1/accept_ra")? == "0");
    ensure!(pair.lb.sysctl("net/ipv6/conf/all/forwarding")? == "0");
    Ok(())
}

#[test]
fn an_unknown_interface_is_one_line_that_names_the_known_ones() -> Result<()> {
    let pair = Pair::create()?;
    let line = pair.inside(|| async {
        let network = Network::open().await?;
        match network.link("e7").await {
            Ok(link) => bail!("{link:?}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    })?;
    ensure!(
        line.contains("no interface e7") && line.contains("e1"),
        "{line}"
    );
    Ok(())
}
