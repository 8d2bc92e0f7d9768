//! Answers: with which compiler can `lb-ebpf` be built on this machine?
//!
//! Two ways are known ([`Way`]). Both hand the same flags to the same linker, so the objects differ
//! only by the compiler's version. [`find`] takes the first way of which every [`Part`] is there;
//! [`Toolchain::cargo`] is a cargo that compiles for [`TARGET`] and into which nothing of a
//! surrounding cargo (its flags, its clippy, its toolchain) leaks.
//!
//! Promises: only looks, installs nothing, and uses only `std`, because `lb-user/build.rs` includes
//! this file as a module of its own.

use std::{
    env,
    ffi::OsString,
    fmt::{self, Display, Formatter},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What `lb-ebpf` is compiled for: BPF, little endian like the machines it is attached on.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The only package that is compiled for [`TARGET`].
pub(crate) const PACKAGE: &str = "lb-ebpf";

/// The profile it is compiled with.
const PROFILE: &str = "bpf";

/// Environment variable that names the [`Way`] to use (`debian` or `rustup`) instead of the first
/// complete one.
pub(crate) const CHOICE: &str = "LB_EBPF_TOOLCHAIN";

/// The oldest rustc and the oldest bpf-linker that are known to compile `lb-ebpf`, as (major, minor).
const OLDEST_RUSTC: (u32, u32) = (1, 95);
const OLDEST_LINKER: (u32, u32) = (0, 13);

/// The compiler and cargo of Debian's `rustc-web` and `cargo-web`: beside rustup's, never on its PATH.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_CARGO_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// A way of compiling for [`TARGET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Distribution packages: a rustc whose sysroot has a ready `core` for BPF.
    Debian,
    /// rustup's nightly, which compiles `core` from `rust-src` (`-Z build-std`).
    Rustup,
}

impl Way {
    /// Every way, the preferred one first: packages of one distribution are built with one LLVM,
    /// while a nightly's LLVM may run ahead of the linker's.
    pub(crate) const ALL: [Self; 2] = [Self::Debian, Self::Rustup];

    /// The name by which [`CHOICE`] and `cargo xtask setup --way` know it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Rustup => "rustup",
        }
    }

    /// The way called `name`, if there is one.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.name() == name)
    }

    /// What the way consists of besides the [`linker`], and which of it is there.
    pub(crate) fn parts(self) -> Vec<Part> {
        match self {
            Self::Debian => vec![
                part("cargo", executable(Path::new(DEBIAN_CARGO))),
                part("rustc", recent_rustc(Command::new(DEBIAN_RUSTC))),
                part("core for BPF", ready_core()),
            ],
            Self::Rustup => vec![
                part("nightly rustc", recent_rustc(nightly("rustc"))),
                part("rust-src", core_source()),
            ],
        }
    }

    /// The major version of the compiler's LLVM, which the linker's must not be older than.
    ///
    /// # Errors
    ///
    /// Says that there is no compiler, or that it does not tell.
    pub(crate) fn llvm(self) -> Result<u32, String> {
        let mut rustc = match self {
            Self::Debian => Command::new(DEBIAN_RUSTC),
            Self::Rustup => nightly("rustc"),
        };
        let told = output(rustc.arg("-vV"))?;
        told.lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .and_then(|number| number.split('.').next()?.parse().ok())
            .ok_or_else(|| "rustc does not tell its LLVM version".to_owned())
    }

    /// Whether the way has a clippy of its own, which `cargo xtask check` needs and a build does not.
    pub(crate) fn clippy(self) -> Part {
        let found = match self {
            Self::Debian => executable(Path::new(DEBIAN_CARGO_CLIPPY)),
            Self::Rustup => first_line(nightly("cargo-clippy").arg("--version")),
        };
        part("clippy", found)
    }
}

/// One thing a [`Way`] needs.
pub(crate) struct Part {
    /// What it is, in a word or two.
    pub(crate) name: &'static str,
    /// Its version or place if it is there, else what is wrong.
    pub(crate) found: Result<String, String>,
}

fn part(name: &'static str, found: Result<String, String>) -> Part {
    Part { name, found }
}

/// Why `lb-ebpf` cannot be compiled here: one line that says what to do.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl Display for Missing {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the eBPF toolchain is incomplete ({}): run `cargo xtask setup`",
            self.0
        )
    }
}

impl std::error::Error for Missing {}

/// A [`Way`] that is complete on this machine, with its linker.
pub(crate) struct Toolchain {
    /// The way it goes.
    pub(crate) way: Way,
    linker: PathBuf,
}

/// The first complete way, or the one [`CHOICE`] names.
///
/// # Errors
///
/// Names what is missing of the way that was asked for, or of all of them.
pub(crate) fn find() -> Result<Toolchain, Missing> {
    let asked = match env::var(CHOICE) {
        Ok(name) => Some(Way::named(&name).ok_or_else(|| {
            let known = Way::ALL.map(Way::name).join(" or ");
            Missing(format!("{CHOICE} is {name:?}, must be {known}"))
        })?),
        Err(_) => None,
    };
    let linker = linker().map_err(|reason| Missing(format!("bpf-linker: {reason}")))?;
    let mut lacking = Vec::new();
    for way in Way::ALL {
        if asked.is_some_and(|asked| asked != way) {
            continue;
        }
        let gap = way.parts().into_iter().find_map(|part| {
            let reason = part.found.err()?;
            Some(format!("{} way: {}: {reason}", way.name(), part.name))
        });
        match gap {
            None => return Ok(Toolchain { way, linker }),
            Some(gap) => lacking.push(gap),
        }
    }
    Err(Missing(lacking.join("; ")))
}

impl Toolchain {
    /// `cargo SUBCOMMAND --package lb-ebpf` for [`TARGET`] in release form, to be run in the workspace.
    ///
    /// `arch` is the architecture of the machines it will be loaded on as Rust names it (`x86_64`,
    /// `aarch64`), `target_dir` a folder of its own: sharing the surrounding cargo's would wait for
    /// that cargo's lock for ever.
    pub(crate) fn cargo(&self, subcommand: &str, arch: &str, target_dir: &Path) -> Command {
        let mut command = match self.way {
            Way::Debian => {
                // cargo takes the first cargo-clippy on PATH, which would be rustup's.
                let mut command = Command::new(if subcommand == "clippy" {
                    DEBIAN_CARGO_CLIPPY
                } else {
                    DEBIAN_CARGO
                });
                shed_outer_cargo(&mut command);
                command
                    .env("CARGO", DEBIAN_CARGO)
                    .env("RUSTC", DEBIAN_RUSTC)
                    // aya-ebpf needs unstable features (asm for BPF), this compiler is a stable one.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .arg(subcommand);
                command
            }
            Way::Rustup => {
                let mut command = nightly("cargo");
                shed_outer_cargo(&mut command);
                command.args([subcommand, "-Zbuild-std=core"]);
                command
            }
        };
        command
            .args([
                "--package",
                PACKAGE,
                "--profile",
                PROFILE,
                "--target",
                TARGET,
            ])
            .arg("--target-dir")
            .arg(target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(arch));
        command
    }

    /// Flags for the objects: aya-ebpf reads the architecture (registers differ), the linker turns
    /// the debug information into BTF.
    fn flags(&self, arch: &str) -> OsString {
        let mut flags = OsString::from(format!(
            "--cfg=bpf_target_arch=\"{arch}\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clinker="
        ));
        flags.push(&self.linker);
        flags
    }
}

/// Takes out of `command`'s environment what a surrounding cargo, clippy or build script put there.
///
/// `HOST`, `CARGO_CFG_…` and the like differ between a build script and a shell: with them inside,
/// every change of caller would compile the dependencies anew.
fn shed_outer_cargo(command: &mut Command) {
    const NAMES: [&str; 11] = [
        "CARGO",
        "CARGO_ENCODED_RUSTFLAGS",
        "DEBUG",
        "HOST",
        "LD_LIBRARY_PATH",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTFLAGS",
        "TARGET",
    ];
    const PREFIXES: [&str; 11] = [
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CLIPPY_",
        "DEP_",
        "RUSTC",
        "RUSTDOC",
    ];
    for (name, _) in env::vars_os() {
        let outer = name.to_str().is_some_and(|name| {
            NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        });
        if outer {
            command.env_remove(name);
        }
    }
}

/// The bpf-linker to use: the first one on PATH, else the one cargo installed.
///
/// # Errors
///
/// Says that there is none, or that it is too old.
pub(crate) fn linker() -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin"));
    let linker = env::split_paths(&path)
        .chain(installed)
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
        .ok_or("not found on PATH nor in cargo's bin folder")?;
    let line = first_line(Command::new(&linker).arg("--version"))?;
    match version(&line) {
        Some(version) if version >= OLDEST_LINKER => Ok(linker),
        _ => Err(format!(
            "{} is {line:?}, at least {}.{} is needed",
            linker.display(),
            OLDEST_LINKER.0,
            OLDEST_LINKER.1
        )),
    }
}

/// `tool` of rustup's nightly. Fails when run, and downloads nothing, if there is none.
fn nightly(tool: &str) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", tool])
        .env("RUSTUP_AUTO_INSTALL", "0");
    command
}

fn recent_rustc(mut rustc: Command) -> Result<String, String> {
    let line = first_line(rustc.arg("--version"))?;
    match version(&line) {
        Some(version) if version >= OLDEST_RUSTC => Ok(line),
        _ => Err(format!(
            "{line:?} is too old, at least {}.{} is needed",
            OLDEST_RUSTC.0, OLDEST_RUSTC.1
        )),
    }
}

/// `core` for BPF as Debian's compiler would find it.
fn ready_core() -> Result<String, String> {
    let folder = first_line(Command::new(DEBIAN_RUSTC).args([
        "--print",
        "target-libdir",
        "--target",
        TARGET,
    ]))?;
    let there = fs::read_dir(&folder).is_ok_and(|files| {
        files.flatten().any(|file| {
            let name = file.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    });
    if there {
        Ok(folder)
    } else {
        Err(format!("no libcore in {folder}"))
    }
}

/// The source of `core` that `-Z build-std` compiles.
fn core_source() -> Result<String, String> {
    let sysroot = first_line(nightly("rustc").args(["--print", "sysroot"]))?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    if source.is_dir() {
        Ok(source.display().to_string())
    } else {
        Err(format!("{} is not there", source.display()))
    }
}

fn executable(file: &Path) -> Result<String, String> {
    first_line(Command::new(file).arg("--version"))
}

/// The first line that `command` prints, if it succeeds.
fn first_line(command: &mut Command) -> Result<String, String> {
    let text = output(command)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What `command` prints, if it succeeds.
fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().display().to_string();
    // A build script runs under the surrounding toolchain's library path, which is not meant for
    // another toolchain's programs.
    let output = command
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program} does not run ({error})"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason = stderr.lines().next().unwrap_or("no reason given");
        return Err(format!("{program} fails ({reason})"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Major and minor of the first version number in `line`.
fn version(line: &str) -> Option<(u32, u32)> {
    line.split_whitespace().find_map(|word| {
        let mut numbers = word.split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some((major, minor))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_behind_the_name() {
        assert_eq!(
            version("rustc 1.96.0 (ac68faa20 2026-05-25)"),
            Some((1, 96))
        );
        assert_eq!(version("rustc 1.97.0-nightly (e50aa6fba)"), Some((1, 97)));
        assert_eq!(version("bpf-linker 0.13.0"), Some((0, 13)));
        assert_eq!(version("bpf-linker"), None);
    }

    #[test]
    fn ways_are_found_by_their_names() {
        for way in Way::ALL {
            assert_eq!(Way::named(way.name()), Some(way));
        }
        assert_eq!(Way::named("gentoo"), None);
    }

    #[test]
    fn a_missing_tool_names_the_command_that_installs_it() {
        let missing = Missing("bpf-linker: not found".to_owned()).to_string();
        assert!(missing.contains("cargo xtask setup"), "{missing}");
        assert_eq!(missing.lines().count(), 1);
    }

    #[test]
    fn flags_carry_architecture_and_linker() {
        let toolchain = Toolchain {
            way: Way::Debian,
            linker: PathBuf::from("/opt/bpf linker"),
        };
        let command = toolchain.cargo("build", "aarch64", Path::new("/tmp/bpf"));
        let flags = command
            .get_envs()
            .find(|(name, _)| *name == "CARGO_ENCODED_RUSTFLAGS")
            .and_then(|(_, value)| value)
            .expect("flags are set")
            .to_str()
            .expect("flags are UTF-8");
        let flags: Vec<&str> = flags.split('\x1f').collect();
        assert!(
            flags.contains(&"--cfg=bpf_target_arch=\"aarch64\""),
            "{flags:?}"
        );
        assert!(flags.contains(&"-Clinker=/opt/bpf linker"), "{flags:?}");
    }
}
