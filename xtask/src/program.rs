//! Answers: how are the programs of the workspace built and run?
//!
//! `lb-user` is the product. The others (`demo`, `fuzz`, `bench`) are binaries of `lb-tests` and
//! find it under the path in [`LB_USER`].

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    setup::{self, Need},
    step, workspace,
};

/// Environment variable with the absolute path of the `lb-user` to test or show.
pub(crate) const LB_USER: &str = "LB_USER";

/// The package of all programs but the product.
pub(crate) const TESTS: &str = "lb-tests";

/// How a program is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quickly, with assertions.
    Dev,
    /// As it is shipped.
    Release,
}

impl Profile {
    const fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }

    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
        }
    }
}

/// `cargo xtask build`: the product as it is shipped.
///
/// # Errors
///
/// Fails if it does not compile.
pub(crate) fn build() -> Result<()> {
    setup::ensure(&[Need::Ebpf])?;
    println!(
        "{}",
        compile("lb-user", "lb-user", Profile::Release)?.display()
    );
    Ok(())
}

/// `cargo xtask fuzz SECONDS`: random frames through the data path on the host.
///
/// # Errors
///
/// Fails if a frame broke a promise of the data path; the program has printed it.
pub(crate) fn fuzz(seconds: u64) -> Result<()> {
    setup::ensure(&[Need::Ebpf])?;
    let fuzz = compile(TESTS, "fuzz", Profile::Dev)?;
    step::show(Command::new(fuzz).arg("--seconds").arg(seconds.to_string()))
}

/// `cargo xtask demo`: the product between real clients and servers. Does not return: becomes demo.
///
/// # Errors
///
/// Fails if something does not compile or cannot be run as root.
pub(crate) fn demo(arguments: &[String]) -> Result<()> {
    setup::ensure(&[Need::Ebpf, Need::Network])?;
    let lb_user = compile("lb-user", "lb-user", Profile::Dev)?;
    let demo = compile(TESTS, "demo", Profile::Dev)?;
    become_root_program(demo, lb_user, arguments)
}

/// `cargo xtask bench datapath`: what a packet costs. Does not return: becomes bench.
///
/// # Errors
///
/// Fails if something does not compile or cannot be run as root.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    setup::ensure(&[Need::Ebpf, Need::Network])?;
    let lb_user = compile("lb-user", "lb-user", Profile::Release)?;
    let bench = compile(TESTS, "bench", Profile::Release)?;
    become_root_program(bench, lb_user, arguments)
}

/// Compiles a binary and returns its file.
///
/// # Errors
///
/// Fails with the compiler's words.
pub(crate) fn compile(package: &str, binary: &str, profile: Profile) -> Result<PathBuf> {
    let name = match profile {
        Profile::Dev => format!("build {binary}"),
        Profile::Release => format!("build {binary}, release"),
    };
    step::run(
        &name,
        workspace::cargo()
            .args(["build", "--package", package, "--bin", binary, "--locked"])
            .args(profile.arguments()),
    )?;
    Ok(workspace::target_dir().join(profile.folder()).join(binary))
}

/// Replaces xtask, so that a Ctrl-C reaches a program that cleans up and a shell that waits for it.
fn become_root_program(program: PathBuf, lb_user: PathBuf, arguments: &[String]) -> Result<()> {
    let name = program.display().to_string();
    step::become_root_for(&name)?;
    let variables = [(LB_USER, lb_user.display().to_string())];
    let error = step::as_root(program, &variables)
        .args(arguments)
        .current_dir(workspace::root())
        .exec();
    Err(error).with_context(|| format!("{name} does not run"))
}
