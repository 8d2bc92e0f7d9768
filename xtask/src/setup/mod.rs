//! Answers: is everything here that building, checking and running the load balancer needs?
//!
//! [`ensure`] installs what is missing of some [`Need`]s and is silent when nothing is; it is what
//! every other command calls first. Nothing is installed twice, nothing is started, and root is
//! asked for only to install packages.

mod apt;
mod ebpf;
mod rust;

use std::time::Instant;

use anyhow::{Result, bail};
use comfy_table::{Table, presets};

use crate::toolchain::{self, Way};

/// A group of tools that some commands need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A compiler and a linker for BPF: to build `lb-user` and everything that uses it.
    Ebpf,
    /// rustfmt and clippy, for the host and for BPF: `cargo xtask check`.
    Lint,
    /// Network tools, servers and clients: network tests, demo, bench.
    Network,
}

impl Need {
    const ALL: [Self; 3] = [Self::Ebpf, Self::Lint, Self::Network];

    fn tools(self) -> Vec<Tool> {
        match self {
            Self::Ebpf => ebpf::tools(),
            Self::Lint => rust::tools(),
            Self::Network => apt::tools(),
        }
    }

    fn install(self, way: Option<Way>) -> Result<()> {
        match self {
            Self::Ebpf => ebpf::install(way),
            Self::Lint => rust::install(),
            Self::Network => apt::install_tools(),
        }
    }
}

/// One tool, what for, and whether it is there.
struct Tool {
    name: String,
    purpose: &'static str,
    /// Version or place, or what is wrong.
    found: Result<String, String>,
}

/// Installs what is missing of `needs`.
///
/// # Errors
///
/// Fails with the installer's own words, or if something is still missing afterwards.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    install(needs, None)
}

/// Installs everything, and says what and why. With `way`, that eBPF toolchain.
///
/// # Errors
///
/// As [`ensure`].
pub(crate) fn everything(way: Option<Way>) -> Result<()> {
    let began = Instant::now();
    install(&Need::ALL, way)?;
    ebpf::prove()?;
    print(&Need::ALL);
    println!(
        "Everything is there ({:.0} s).",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Prints what is there and what is missing; installs nothing.
///
/// # Errors
///
/// Fails if anything is missing.
pub(crate) fn check() -> Result<()> {
    print(&Need::ALL);
    match missing(&Need::ALL).len() {
        0 => Ok(()),
        count => bail!("{count} missing: run `cargo xtask setup`"),
    }
}

fn install(needs: &[Need], way: Option<Way>) -> Result<()> {
    let mut installed = false;
    for &need in needs {
        let lacking = missing(&[need]);
        let other_way = need == Need::Ebpf && way.is_some_and(|way| !ebpf::complete(way));
        if lacking.is_empty() && !other_way {
            continue;
        }
        for tool in &lacking {
            println!("{} is missing, needed {}", tool.name, tool.purpose);
        }
        need.install(way)?;
        installed = true;
    }
    if installed && let Some(tool) = missing(needs).into_iter().next() {
        let reason = tool.found.err().unwrap_or_default();
        bail!(
            "{} is still missing after its installation: {reason}",
            tool.name
        );
    }
    Ok(())
}

fn missing(needs: &[Need]) -> Vec<Tool> {
    let tools = needs.iter().flat_map(|need| need.tools());
    tools.filter(|tool| tool.found.is_err()).collect()
}

fn print(needs: &[Need]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["tool", "", "found", "needed"]);
    for tool in needs.iter().flat_map(|need| need.tools()) {
        let (state, found) = match tool.found {
            Ok(found) => ("yes", found),
            Err(reason) => ("NO", reason),
        };
        table.add_row([tool.name, state.to_owned(), found, tool.purpose.to_owned()]);
    }
    println!("{table}");
    if let Err(error) = toolchain::find() {
        println!("{error}");
    }
}
