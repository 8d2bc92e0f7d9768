//! Answers: are rustfmt and clippy here, for the host's toolchain and for BPF's?

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Tool, apt};
use crate::{
    step,
    toolchain::{self, Way},
    workspace,
};

const PURPOSE: &str = "by cargo xtask check";

/// rustfmt, clippy, and the clippy of the eBPF toolchain if there is one.
pub(super) fn tools() -> Vec<Tool> {
    let host = |name: &str, subcommand: &str| Tool {
        name: name.to_owned(),
        purpose: PURPOSE,
        found: host(subcommand),
    };
    let mut tools = vec![host("rustfmt", "fmt"), host("clippy", "clippy")];
    if let Ok(toolchain) = toolchain::find() {
        tools.push(Tool {
            name: format!("clippy ({})", toolchain.way.name()),
            purpose: PURPOSE,
            found: toolchain.way.clippy().found,
        });
    }
    tools
}

/// Installs those that are missing.
pub(super) fn install() -> Result<()> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if host(subcommand).is_err() {
            add_component(component, &[])?;
        }
    }
    let way = toolchain::find()?.way;
    if way.clippy().found.is_ok() {
        return Ok(());
    }
    match way {
        Way::Debian => apt::install(&["rust-web-clippy"]),
        Way::Rustup => add_component("clippy", &["--toolchain=nightly"]),
    }
}

fn host(subcommand: &str) -> Result<String, String> {
    step::read(workspace::cargo().args([subcommand, "--version"]))
        .map(|version| version.trim().to_owned())
        .map_err(|_| format!("cargo {subcommand} does not run"))
}

fn add_component(component: &str, toolchain: &[&str]) -> Result<()> {
    step::run(
        &format!("rustup component add {component}"),
        Command::new("rustup")
            .args(["component", "add", component])
            .args(toolchain),
    )
    .with_context(|| format!("cannot install {component}"))
}
