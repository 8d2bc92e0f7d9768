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
        .current_dir(workspace);
    run(&mut cargo)?;

    let objects = target_dir.join(toolchain::TARGET).join("release");
    for name in binaries(&workspace.join(toolchain::PACKAGE))? {
        let object = objects.join(&name);
        fs::copy(&object, out_dir.join(&name))
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

/// Runs cargo. What it finds wrong is shown by the surrounding cargo, as warnings or as its errors.
fn run(cargo: &mut Command) -> Result<(), String> {
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
    Ok(())
}

/// The names of the binaries of the package in `folder`: `src/main.rs` is called as the package,
/// `src/bin/NAME.rs` as the file.
fn binaries(folder: &Path) -> Result<Vec<String>, String> {
    let mut names = vec![toolchain::PACKAGE.to_owned()];
    let Ok(entries) = fs::read_dir(folder.join("src/bin")) else {
        return Ok(names);
    };
    for entry in entries {
        let path = entry.map_err(|error| error.to_string())?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
