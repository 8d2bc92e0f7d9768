//! Answers: is the code formatted, free of lints and documented without broken links?

use std::{env::consts::ARCH, process::Command};

use anyhow::{Result, bail};

use crate::{
    setup::{self, Need},
    step, toolchain, workspace,
};

/// Every link leads somewhere, and none out of the public documentation into what it leaves out.
const LINKS: &str = "-Drustdoc::broken_intra_doc_links -Drustdoc::private_intra_doc_links \
                     -Drustdoc::invalid_html_tags -Drustdoc::bare_urls";

/// The same for the documentation of everything, where private items are at home.
const PRIVATE_LINKS: &str = "-Drustdoc::broken_intra_doc_links -Drustdoc::invalid_html_tags";

/// Runs every check, also after one that failed.
///
/// # Errors
///
/// Fails if any check does, naming how many.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Ebpf, Need::Lint])?;
    let toolchain = toolchain::find()?;
    let checks = [
        ("cargo fmt --check", format()),
        ("cargo clippy, host", clippy()),
        ("cargo clippy, BPF", clippy_bpf(&toolchain)),
        ("cargo doc, public items", doc(&["--lib"], LINKS)),
        (
            "cargo doc, all items",
            doc(&["--document-private-items"], PRIVATE_LINKS),
        ),
    ];
    let count = checks.len();
    let failed = checks
        .into_iter()
        .filter_map(|(name, mut command)| step::run(name, &mut command).err())
        .inspect(|error| println!("  {error:#}"))
        .count();
    if failed > 0 {
        bail!("{failed} of {count} checks failed");
    }
    Ok(())
}

fn format() -> Command {
    let mut command = workspace::cargo();
    command.args(["fmt", "--all", "--check"]);
    command
}

/// All packages but lb-ebpf, whose host form is an empty program.
fn clippy() -> Command {
    let mut command = workspace::cargo();
    command
        .args(["clippy", "--workspace", "--exclude", toolchain::PACKAGE])
        .args(["--all-targets", "--all-features", "--locked"])
        .args(["--", "-Dwarnings"]);
    command
}

/// lb-ebpf as it is built: with the clippy that belongs to the compiler for BPF.
fn clippy_bpf(toolchain: &toolchain::Toolchain) -> Command {
    let mut command = toolchain.cargo("clippy", ARCH, &workspace::target_dir().join("bpf"));
    command
        .args(["--bins", "--locked", "--", "-Dwarnings"])
        .current_dir(workspace::root());
    command
}

fn doc(arguments: &[&str], lints: &str) -> Command {
    let mut command = workspace::cargo();
    command
        .args(["doc", "--workspace", "--no-deps", "--locked"])
        .args(arguments)
        .env("RUSTDOCFLAGS", lints);
    command
}
