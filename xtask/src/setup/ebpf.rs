//! Answers: how does a machine come to a compiler and a linker for BPF?
//!
//! A [`Way`] that is already complete but for the linker is kept. Else Debian's packages are taken
//! where they are offered, because compiler and LLVM come from one place and nothing else has to be
//! reached; everywhere else rustup's nightly. The linker is compiled against an LLVM at least as
//! new as the compiler's, which else could not read what the compiler writes.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Tool, apt};
use crate::{
    step,
    toolchain::{self, Way},
    workspace,
};

const PURPOSE: &str = "to compile lb-ebpf";

/// The linker's version, and the LLVM versions it can be compiled against.
const LINKER: &str = "0.13.0";
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Debian's compiler, its cargo and the `core` for BPF.
const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// The parts of the way that would be taken, and the linker.
pub(super) fn tools() -> Vec<Tool> {
    let way = chosen().unwrap_or(match apt::command("apt-get") {
        Some(_) => Way::Debian,
        None => Way::Rustup,
    });
    let mut tools: Vec<Tool> = way
        .parts()
        .into_iter()
        .map(|part| Tool {
            name: format!("{} ({})", part.name, way.name()),
            purpose: PURPOSE,
            found: part.found,
        })
        .collect();
    tools.push(Tool {
        name: "bpf-linker".to_owned(),
        purpose: PURPOSE,
        found: toolchain::linker().map(|file| file.display().to_string()),
    });
    tools
}

/// Whether every part of `way` is there, the linker aside.
pub(super) fn complete(way: Way) -> bool {
    way.parts().iter().all(|part| part.found.is_ok())
}

/// Installs what `way` lacks, or what the best way for this machine lacks, and the linker.
pub(super) fn install(way: Option<Way>) -> Result<()> {
    let way = match way.or_else(chosen) {
        Some(way) => way,
        None if apt::offers(&DEBIAN)? => Way::Debian,
        None => Way::Rustup,
    };
    if !complete(way) {
        match way {
            Way::Debian => apt::install(&DEBIAN)?,
            Way::Rustup => install_nightly()?,
        }
    }
    if toolchain::linker().is_err() {
        install_linker(way)?;
    }
    Ok(())
}

/// Compiles `lb-ebpf`: only that shows that compiler and linker fit each other.
pub(super) fn prove() -> Result<()> {
    let toolchain = toolchain::find()?;
    step::run(
        "compile lb-ebpf",
        toolchain
            .cargo(
                "build",
                std::env::consts::ARCH,
                &workspace::target_dir().join("bpf"),
            )
            .args(["--bins", "--locked"])
            .current_dir(workspace::root()),
    )
}

/// The way asked for by environment, else the first complete one.
fn chosen() -> Option<Way> {
    let asked = std::env::var(toolchain::CHOICE).ok();
    asked
        .and_then(|name| Way::named(&name))
        .or_else(|| Way::ALL.into_iter().find(|&way| complete(way)))
}

/// Brings nightly and its `rust-src`. A nightly that is there keeps its version: others may have
/// chosen it, and `rustup toolchain install` would replace it by today's.
fn install_nightly() -> Result<()> {
    if apt::command("rustup").is_none() {
        bail!("there is neither rustup nor a Debian package with a core for BPF: install rustup");
    }
    let arguments: &[&str] = if Way::Rustup.llvm().is_ok() {
        &["component", "add", "rust-src", "--toolchain=nightly"]
    } else {
        &[
            "toolchain",
            "install",
            "nightly",
            "--profile=minimal",
            "--component=rust-src",
        ]
    };
    step::run(
        &format!("rustup {}", arguments[..3].join(" ")),
        Command::new("rustup").args(arguments),
    )
}

/// Compiles the linker, or takes its authors' binary where cargo-binstall is there and the compiler
/// is rustup's: that binary contains the LLVM of a nightly.
fn install_linker(way: Way) -> Result<()> {
    let package = format!("bpf-linker@{LINKER}");
    if way == Way::Rustup && apt::command("cargo-binstall").is_some() {
        return step::run(
            "cargo binstall bpf-linker",
            workspace::cargo().args(["binstall", "--no-confirm", &package]),
        );
    }
    let llvm = install_llvm(way.llvm().map_err(anyhow::Error::msg)?)?;
    if apt::command("c++").is_none() {
        // LLVM is written in C++.
        apt::install(&["g++"])?;
    }
    step::run(
        "cargo install bpf-linker",
        workspace::cargo()
            .args(["install", &package, "--locked", "--no-default-features"])
            .arg(format!("--features=llvm-{llvm}"))
            .env("LLVM_PREFIX", llvm_prefix(llvm)),
    )
}

/// The oldest LLVM from `oldest` on that the linker can use, installed first if need be.
fn install_llvm(oldest: u32) -> Result<u32> {
    let usable = || LINKER_LLVM.filter(|&llvm| llvm >= oldest);
    let present = |llvm: &u32| {
        let config = format!("{}/bin/llvm-config", llvm_prefix(*llvm));
        std::path::Path::new(&config).is_file()
    };
    if let Some(llvm) = usable().find(present) {
        return Ok(llvm);
    }
    for llvm in usable() {
        let package = format!("llvm-{llvm}-dev");
        if apt::offers(&[&package])? {
            apt::install(&[&package]).context("bpf-linker needs LLVM to be compiled")?;
            return Ok(llvm);
        }
    }
    bail!(
        "the compiler has LLVM {oldest}, and there is no package of LLVM {oldest} to {} to compile \
         bpf-linker with: install bpf-linker {LINKER} from its release page into a folder on PATH",
        LINKER_LLVM.end()
    );
}

fn llvm_prefix(llvm: u32) -> String {
    format!("/usr/lib/llvm-{llvm}")
}
