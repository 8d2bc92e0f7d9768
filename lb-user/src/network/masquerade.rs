//! The backends' own connections, masqueraded by the kernel: an nftables table of the instance's
//! own, put there, replaced and removed whole, each in one transaction.
//!
//! What the table promises:
//!
//! * Only what a backend begins is touched. The kernel's connection tracking hands a `nat` chain the
//!   first packet of each connection; of TCP that must be a SYN, so that an answer to something
//!   that began before the table was there is none.
//! * Nothing from a service's address, and nothing from or to the address and port of a service's
//!   backend: those are a service's packets on their way through the stack. Nothing of this host's
//!   own, and nothing within one prefix.
//! * Counters go on when the table is replaced, by whichever agent.
//!
//! It speaks to nft(8), as an administrator would.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    net::{IpAddr, SocketAddr},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// How long nft may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the table is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whose connections are masqueraded, longest prefix first.
    pub sources: Vec<Source>,
    /// The services' addresses.
    pub services: BTreeSet<IpAddr>,
    /// Where backends serve, with the number of the protocol.
    pub backends: BTreeSet<(SocketAddr, u8)>,
}

/// A prefix and its ways out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The prefix.
    pub prefix: IpNet,
    /// Names of the interfaces its connections are masqueraded on, each [`nameable`]; none: they
    /// leave as they are.
    pub interfaces: BTreeSet<String>,
}

/// What a prefix has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Connections that began.
    pub new: Counted,
    /// From the backends.
    pub out: Counted,
    /// To them.
    pub back: Counted,
}

/// A counter of nftables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}

/// Whether an interface of this name can be named in a rule: it has nothing that nft would read as
/// something else.
pub fn nameable(interface: &str) -> bool {
    !interface.is_empty()
        && interface
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-@+".contains(c))
}

/// A table of nftables, there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    name: String,
}

impl Table {
    /// The table of the agent of this instance.
    pub fn of(instance: &str) -> Self {
        Self {
            name: format!("lb-user-{instance}"),
        }
    }

    /// As administrators name it: `inet lb-user-default`.
    pub fn name(&self) -> String {
        format!("inet {}", self.name)
    }

    /// Puts the table there with these rules, in place of whatever it was. Counters go on.
    ///
    /// # Errors
    ///
    /// When nft is missing, or it or the kernel refuses: then the table is as it was.
    pub async fn put(&self, rules: &Rules) -> Result<()> {
        let carried = self.carried().await?.unwrap_or_default();
        let text = script(&self.name, rules, &carried);
        let output = nft(&["-f", "-"], &text).await?;
        ensure!(
            output.status.success(),
            "nftables refuses the table {}: {}",
            self.name(),
            told(&output)
        );
        Ok(())
    }

    /// Removes the table, if it is there.
    ///
    /// # Errors
    ///
    /// As [`Table::put`].
    pub async fn remove(&self) -> Result<()> {
        // Deleting what is not there would be an error.
        let text = format!("add table {0}\ndelete table {0}\n", self.name());
        let output = nft(&["-f", "-"], &text).await?;
        ensure!(
            output.status.success(),
            "cannot remove the nftables table {}: {}",
            self.name(),
            told(&output)
        );
        Ok(())
    }

    /// What each prefix has carried; nothing if the table is not there.
    ///
    /// # Errors
    ///
    /// When nft is missing, or says something that is not understood.
    pub async fn carried(&self) -> Result<Option<BTreeMap<IpNet, Carried>>> {
        let output = nft(&["-j", "list", "counters", "table", "inet", &self.name], "").await?;
        if !output.status.success() {
            let told = told(&output);
            if told.contains("No such file or directory") {
                return Ok(None);
            }
            bail!("cannot read the nftables table {}: {told}", self.name());
        }
        counters(&output.stdout)
            .context("what nft says of counters")
            .map(Some)
    }
}

/// Everything nft is told: the table that may be there goes, the new one comes, at once.
fn script(table: &str, rules: &Rules, carried: &BTreeMap<IpNet, Carried>) -> String {
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
fn counters(json: &[u8]) -> Result<BTreeMap<IpNet, Carried>> {
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

/// Runs nft with `input`.
async fn nft(arguments: &[&str], input: &str) -> Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("nft");
    command
        .args(arguments)
        // Where distributions put it, also if whoever started the agent does not look there.
        .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow::anyhow!("egress needs nft, which is not there: sudo apt-get install nftables")
        }
        _ => anyhow::Error::new(error).context("cannot start nft"),
    })?;
    let stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // One that ends before it has read everything says why on standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    timeout(PATIENCE, talk)
        .await
        .context("nft does not end")?
        .context("cannot run nft")
}

/// The first line of what nft said, without the place in what it was told.
fn told(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().next().unwrap_or_default();
    match line.split_once("Error: ") {
        Some((_, said)) => said.to_owned(),
        None if line.is_empty() => format!("nft ended with {}", output.status),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_name_that_nft_would_read_otherwise_is_none() {
        assert!(nameable("eth0.100") && nameable("br-lan") && nameable("wg0"));
        for name in ["", "eth*", "e\"th", "e\\th", "e{th"] {
            assert!(!nameable(name), "{name}");
        }
    }
}
