//! What an instance stands on: the program itself, bpffs, and a machine without the remains of test
//! runs that were killed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{COMMAND_LIMIT, PINS};
use crate::{
    netns,
    process::{Finished, finish},
};

/// Environment variable with the path of the program under test.
const LB_USER: &str = "LB_USER";

/// The kernel's file system for pinned programs and maps.
const BPFFS: &str = "/sys/fs/bpf";

/// The program under test: `LB_USER`, else the one built beside this.
pub(super) fn program() -> Result<PathBuf> {
    let path = match env::var_os(LB_USER) {
        Some(path) => PathBuf::from(path),
        None => {
            let this = env::current_exe()?;
            let mut folder = this.parent().context("no folder")?;
            if folder.ends_with("deps") {
                folder = folder.parent().context("no folder")?;
            }
            folder.join("lb-user")
        }
    };
    ensure!(
        path.is_file(),
        "{} is not there: build it with `cargo build -p lb-user`, or say where it is with {LB_USER}",
        path.display()
    );
    Ok(path)
}

/// Mounts bpffs where a container left it out.
pub(super) fn mount_bpffs() {
    if statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return;
    }
    let mounted = finish(
        Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]),
        COMMAND_LIMIT,
    )
    .and_then(Finished::text);
    if let Err(error) = mounted {
        eprintln!("{error:#}");
    }
}

/// Removes the pins of test runs that were killed.
pub(super) fn sweep() {
    let Ok(entries) = fs::read_dir(PINS) else {
        return;
    };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_str()
            .is_some_and(netns::is_left_behind)
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Every `*.log` below a folder.
pub(super) fn logs_below(folder: &Path) -> String {
    let mut logs = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            logs += &logs_below(&path);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            logs += &fs::read_to_string(&path).unwrap_or_default();
        }
    }
    logs
}
