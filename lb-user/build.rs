//! Compiles `lb-ebpf` for BPF and puts the object of each of its programs into `OUT_DIR` under the
//! binary's name, for `aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"))`.
//!
//! The objects are little endian and made for the architecture `lb-user` is compiled for. Cargo's
//! folder for them is shared by all profiles, so a debug build, a release build and a clippy run
//! compile them once.

#[path = "../xtask/src/toolchain.rs"]
#[expect(dead_code, reason = "xtask uses the rest of the module")]
mod toolchain;

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// `cargo::error` fails the build with these lines alone; another exit code than 0 would bury them
/// in a transcript of this script.
fn main() {
    if let Err(error) = compile() {
        for line in error.to_string().lines() {
            println!("cargo::error={line}");
        }
    }
}

fn compile() -> Result<(), Box<dyn Error>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or("lb-user is not inside a workspace")?;
    watch(workspace);

    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    if env::var("CARGO_CFG_TARGET_ENDIAN")? != "little" {
        return Err(format!("{arch} is big endian, which lb-ebpf is not made for").into());
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let target_dir = target_dir(&out_dir)?.join("bpf");

    let mut cargo = toolchain::find()?.cargo("build", &arch, &target_dir);
    cargo
        .args(["--bins", "--locked", "--quiet"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(workspace);
    for object in objects(&run(&mut cargo)?) {
        let name = object.file_name().ok_or("an object without a name")?;
        fs::copy(&object, out_dir.join(name))
            .map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    }
    Ok(())
}

/// Tells cargo when the objects are out of date.
fn watch(workspace: &Path) {
    for input in [
        "Cargo.lock",
        "Cargo.toml",
        "lb-common/Cargo.toml",
        "lb-common/src",
        "lb-ebpf/Cargo.toml",
        "lb-ebpf/src",
        "xtask/src/toolchain.rs",
        "lb-user/build.rs",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!("cargo::rerun-if-env-changed={}", toolchain::CHOICE);
}

/// The folder cargo builds into, of which `out_dir` is `PROFILE/build/PACKAGE-HASH/out`.
fn target_dir(out_dir: &Path) -> Result<&Path, String> {
    out_dir
        .ancestors()
        .nth(4)
        .ok_or_else(|| format!("{} is not below a target folder", out_dir.display()))
}

/// Runs cargo and returns what it prints. What it finds wrong is shown by the surrounding cargo, as
/// warnings or as its errors.
fn run(cargo: &mut Command) -> Result<String, String> {
    let output = cargo
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} does not run: {error}", cargo.get_program().display()))?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("lb-ebpf does not compile:\n{report}"));
    }
    for line in report.lines() {
        println!("cargo::warning={line}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The programs in cargo's messages, one JSON object a line. The only value wanted of them is a
/// path, which cargo writes without spaces around it.
fn objects(messages: &str) -> Vec<PathBuf> {
    let path = |message: &str| {
        let (_, rest) = message.split_once(r#""executable":""#)?;
        let (path, _) = rest.split_once('"')?;
        Some(PathBuf::from(path))
    };
    messages.lines().filter_map(path).collect()
}
