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

mod script;

use std::{
    collections::{BTreeMap, BTreeSet},
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
        let text = script::script(&self.name, rules, &carried);
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
        script::counters(&output.stdout)
            .context("what nft says of counters")
            .map(Some)
    }
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

    #[test]
    fn a_name_that_nft_would_read_otherwise_is_none() {
        assert!(nameable("eth0.100") && nameable("br-lan") && nameable("wg0"));
        for name in ["", "eth*", "e\"th", "e\\th", "e{th"] {
            assert!(!nameable(name), "{name}");
        }
    }
}
