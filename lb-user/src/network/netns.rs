//! Entering a network namespace.
//!
//! Only the network namespace changes: the host's mounts stay, and with them `/sys/fs/bpf`, which
//! `ip netns exec` would hide behind a fresh `/sys`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";

/// Moves the process into the namespace called `name`, or at the path `name` if it has a slash.
/// To be called before the process has made a thread: threads that there are would stay outside.
///
/// # Errors
///
/// When there is no such namespace, the process has threads, or it may not enter.
pub fn enter(name: &str) -> Result<()> {
    let path = path(name);
    let threads = fs::read_dir("/proc/self/task")
        .context("cannot count the threads")?
        .count();
    ensure!(
        threads == 1,
        "cannot enter namespace {name}: the process already has {threads} threads"
    );
    let file = File::open(&path).with_context(|| match known().as_slice() {
        [] => format!("there is no network namespace {name} ({})", path.display()),
        names => format!(
            "there is no network namespace {name}; there are {}",
            names.join(", ")
        ),
    })?;
    setns(&file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter network namespace {name}"))
}

/// Whether there is a namespace of this name, or at this path.
pub fn exists(name: &str) -> bool {
    path(name).exists()
}

fn path(name: &str) -> PathBuf {
    if name.contains('/') {
        PathBuf::from(name)
    } else {
        Path::new(NAMED).join(name)
    }
}

/// The names of the namespaces that there are, sorted.
fn known() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NAMED) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}
