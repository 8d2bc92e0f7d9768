//! The table as nft is told of it, and its counters as nft tells of them.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use anyhow::Result;
use ipnet::IpNet;
use serde::Deserialize;

use super::{Carried, Counted, Rules, Source};

/// Everything nft is told: the table that may be there goes, the new one comes, at once.
pub(super) fn script(table: &str, rules: &Rules, carried: &BTreeMap<IpNet, Carried>) -> String {
    let mut text = format!("add table inet {table}\ndelete table inet {table}\n");
    let body = || -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let out = &mut text;
        writeln!(out, "table inet {table} {{")?;
        for (set, kind) in [("backends4", "ipv4_addr"), ("backends6", "ipv6_addr")] {
            writeln!(out, "set {set} {{ type {kind} . inet_proto . inet_service")?;
            let elements: Vec<String> = rules
                .backends
                .iter()
                .filter(|(address, _)| address.is_ipv4() == (kind == "ipv4_addr"))
                .map(|(address, protocol)| {
                    format!("{} . {protocol} . {}", address.ip(), address.port())
                })
                .collect();
            if !elements.is_empty() {
                writeln!(out, "elements = {{ {} }}", elements.join(", "))?;
            }
            writeln!(out, "}}")?;
        }
        for Source { prefix, .. } in &rules.sources {
            let Carried { new, out: to, back } = carried.get(prefix).copied().unwrap_or_default();
            for (kind, Counted { packets, bytes }) in [("new", new), ("out", to), ("back", back)] {
                let name = counter(kind, *prefix);
                writeln!(out, "counter {name} {{ packets {packets} bytes {bytes} }}")?;
            }
        }
        // `out` and `masquerade` are words of nft.
        writeln!(out, "chain way_out {{")?;
        writeln!(
            out,
            "type nat hook postrouting priority srcnat; policy accept;"
        )?;
        exceptions(out, rules)?;
        for Source { prefix, interfaces } in &rules.sources {
            let family = family(*prefix);
            if interfaces.is_empty() {
                // A shorter prefix is not meant instead.
                writeln!(out, "{family} saddr {prefix} accept")?;
                continue;
            }
            let names: Vec<String> = interfaces.iter().map(|name| format!("{name:?}")).collect();
            writeln!(
                out,
                "{family} saddr {prefix} {family} daddr != {prefix} oifname {{ {} }} counter name {} masquerade",
                names.join(", "),
                counter("new", *prefix)
            )?;
            writeln!(out, "{family} saddr {prefix} accept")?;
        }
        writeln!(out, "}}")?;
        // Behind the first: here a connection's first packet has been masqueraded, too.
        writeln!(out, "chain counts {{")?;
        writeln!(
            out,
            "type filter hook postrouting priority srcnat + 1; policy accept;"
        )?;
        writeln!(out, "ct status & snat == 0 accept")?;
        for Source { prefix, .. } in &rules.sources {
            let source = format!("ct original {} saddr {prefix}", family(*prefix));
            for (direction, kind) in [("original", "out"), ("reply", "back")] {
                let name = counter(kind, *prefix);
                writeln!(
                    out,
                    "{source} ct direction {direction} counter name {name} accept"
                )?;
            }
        }
        writeln!(out, "}}\n}}")?;
        Ok(text)
    };
    text += &body().expect("a string takes everything");
    text
}

/// What is never masqueraded.
fn exceptions(out: &mut String, rules: &Rules) -> std::fmt::Result {
    writeln!(out, "fib saddr type local accept")?;
    for (family, set) in [("ip", "backends4"), ("ip6", "backends6")] {
        let services: Vec<String> = rules
            .services
            .iter()
            .filter(|address| address.is_ipv4() == (family == "ip"))
            .map(IpAddr::to_string)
            .collect();
        if !services.is_empty() {
            writeln!(out, "{family} saddr {{ {} }} accept", services.join(", "))?;
        }
        writeln!(
            out,
            "{family} saddr . meta l4proto . th sport @{set} accept"
        )?;
        writeln!(
            out,
            "{family} daddr . meta l4proto . th dport @{set} accept"
        )?;
    }
    writeln!(out, "tcp flags & (fin|syn|rst|ack) != syn accept")
}

/// A prefix's counter. Names have no colons: an underscore stands for each.
fn counter(kind: &str, prefix: IpNet) -> String {
    format!("{kind}_{prefix}").replace(':', "_")
}

fn family(prefix: IpNet) -> &'static str {
    match prefix {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

/// What `nft -j list counters` says, by prefix.
pub(super) fn counters(json: &[u8]) -> Result<BTreeMap<IpNet, Carried>> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        counter: Option<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
        #[serde(flatten)]
        counted: Counted,
    }
    let listing: Listing = serde_json::from_slice(json)?;
    let mut carried: BTreeMap<IpNet, Carried> = BTreeMap::new();
    for Named { name, counted } in listing.nftables.into_iter().filter_map(|i| i.counter) {
        let Some((kind, prefix)) = name.split_once('_') else {
            continue;
        };
        let Ok(prefix) = prefix.replace('_', ":").parse() else {
            continue;
        };
        let of = carried.entry(prefix).or_default();
        match kind {
            "new" => of.new = counted,
            "out" => of.out = counted,
            "back" => of.back = counted,
            _ => {}
        }
    }
    Ok(carried)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn counters_are_found_again_by_their_prefix() {
        let listing = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "inet", "name": "new_10.0.1.0/24", "table": "t", "handle": 3,
                         "packets": 5, "bytes": 7}},
            {"counter": {"family": "inet", "name": "back_2001_db8_b__/64", "table": "t",
                         "handle": 4, "packets": 1, "bytes": 2}},
            {"counter": {"family": "inet", "name": "other", "table": "t", "handle": 5,
                         "packets": 9, "bytes": 9}}]}"#;
        let found = counters(listing).unwrap();
        assert_eq!(found.len(), 2);
        let (packets, bytes) = (5, 7);
        assert_eq!(
            found[&prefix("10.0.1.0/24")].new,
            Counted { packets, bytes }
        );
        let six = prefix("2001:db8:b::/64");
        assert_eq!(found[&six].back.packets, 1);
        assert_eq!(counter("back", six), "back_2001_db8_b__/64");
    }

    #[test]
    fn the_longer_prefix_decides_and_keeps_its_counters() {
        let rules = Rules {
            sources: vec![
                Source {
                    prefix: prefix("10.0.1.0/24"),
                    interfaces: BTreeSet::new(),
                },
                Source {
                    prefix: prefix("10.0.0.0/16"),
                    interfaces: ["eth0".to_owned()].into(),
                },
            ],
            ..Rules::default()
        };
        let carried = Carried {
            out: Counted {
                packets: 3,
                bytes: 180,
            },
            ..Carried::default()
        };
        let text = script("t", &rules, &[(prefix("10.0.0.0/16"), carried)].into());
        let place = |line: &str| {
            text.find(line)
                .unwrap_or_else(|| panic!("{line} in:\n{text}"))
        };
        place("counter out_10.0.0.0/16 { packets 3 bytes 180 }");
        let longer = place("ip saddr 10.0.1.0/24 accept");
        let shorter = place("ip saddr 10.0.0.0/16 ip daddr != 10.0.0.0/16 oifname { \"eth0\" }");
        assert!(longer < shorter, "{text}");
    }

    #[test]
    fn what_belongs_to_a_service_is_excepted_before_anything_is_masqueraded() {
        let rules = Rules {
            sources: vec![Source {
                prefix: prefix("2001:db8::/32"),
                interfaces: ["eth0".to_owned()].into(),
            }],
            services: ["2001:db8:5::10".parse().unwrap()].into(),
            backends: [("[2001:db8:b::11]:8080".parse().unwrap(), 6)].into(),
        };
        let text = script("t", &rules, &BTreeMap::new());
        assert!(
            text.contains("elements = { 2001:db8:b::11 . 6 . 8080 }"),
            "{text}"
        );
        let (before, _) = text.split_once(" masquerade\n").unwrap();
        for exception in [
            "fib saddr type local accept",
            "ip6 saddr { 2001:db8:5::10 } accept",
            "ip6 saddr . meta l4proto . th sport @backends6 accept",
            "ip6 daddr . meta l4proto . th dport @backends6 accept",
            "tcp flags & (fin|syn|rst|ack) != syn accept",
        ] {
            assert!(before.contains(exception), "{exception} in:\n{text}");
        }
    }
}
