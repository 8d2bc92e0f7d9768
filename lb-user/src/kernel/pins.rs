//! Where the maps, the program and the links are pinned, and how one is exchanged for another.
//!
//! ```text
//! <pins>/<map>           every map whose contents outlive the agent, under its own name
//! <pins>/program         the program; there only while everything else is complete
//! <pins>/links/<name>    what holds the program on an interface; a `.` in the name is a `:` here
//! <pins>/<name>-swap     the other one, while a map or the program is being exchanged
//! ```
//!
//! Without `program` nothing is attached, and what else is there is the rest of a creation or a
//! removal that was killed. So maps are pinned before it and removed after it.

use std::{
    fs, io,
    os::fd::OwnedFd,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::syscall::open_pin;

/// Ends the name of what is being exchanged.
pub(super) const SWAP: &str = "-swap";

/// The name of the program's pin; no map is called so.
pub(super) const PROGRAM: &str = "program";

/// The folder of the links.
const LINKS: &str = "links";

/// The folder of one instance's pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Makes the folder, with whatever is missing above it.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        is_bpffs(folder)?;
        if folder
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().contains(&b'.'))
        {
            bail!(
                "a bpffs takes no dot in a name: give the instance another name than `{}`",
                folder.file_name().unwrap_or_default().display()
            );
        }
        make_folder(&folder.join(LINKS))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// The folder as it is; nothing if there is none, or no complete program in it.
    pub(super) fn there(folder: &Path) -> Result<Option<Self>> {
        let pins = Self {
            folder: folder.to_owned(),
        };
        if !pins.is_complete() {
            return Ok(None);
        }
        is_bpffs(folder)?;
        Ok(Some(pins))
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn swap(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{SWAP}"))
    }

    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.folder.join(LINKS).join(interface.replace('.', ":"))
    }

    /// Whether everything was pinned, and nothing removed yet.
    pub(super) fn is_complete(&self) -> bool {
        self.map(PROGRAM).exists()
    }

    /// Opens what is pinned under `name`; nothing if there is no such pin.
    pub(super) fn open(path: &Path) -> Result<Option<OwnedFd>> {
        match open_pin(path) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot open {}", path.display())),
        }
    }

    /// Exchanges `name` and its swap, in one step.
    pub(super) fn exchange(&self, name: &str) -> Result<()> {
        let (here, there) = (self.map(name), self.swap(name));
        match renameat2(
            AT_FDCWD,
            &there,
            AT_FDCWD,
            &here,
            RenameFlags::RENAME_EXCHANGE,
        ) {
            // There was none before.
            Err(Errno::ENOENT) => fs::rename(&there, &here)
                .with_context(|| format!("cannot rename {}", there.display())),
            result => result.with_context(|| format!("cannot exchange {}", here.display())),
        }
    }

    /// Removes one pin, if it is there.
    pub(super) fn remove(path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The names of the maps that are pinned, without those being exchanged.
    pub(super) fn maps(&self) -> Result<Vec<String>> {
        let mut names = files(&self.folder)?;
        names.retain(|name| name != PROGRAM && !name.ends_with(SWAP));
        Ok(names)
    }

    /// The names of what is being exchanged, without the ending.
    pub(super) fn swaps(&self) -> Result<Vec<String>> {
        Ok(files(&self.folder)?
            .iter()
            .filter_map(|name| name.strip_suffix(SWAP))
            .map(str::to_owned)
            .collect())
    }

    /// The names of the interfaces that have a link.
    pub(super) fn links(&self) -> Result<Vec<String>> {
        let mut names = files(&self.folder.join(LINKS))?;
        for name in &mut names {
            *name = name.replace(':', ".");
        }
        Ok(names)
    }

    /// Removes every pin of a program and its maps: the program first, since without it the rest
    /// counts for nothing. The links must be gone.
    pub(super) fn clear(&self) -> Result<()> {
        Self::remove(&self.map(PROGRAM))?;
        for name in files(&self.folder)? {
            Self::remove(&self.folder.join(name))?;
        }
        Ok(())
    }

    /// Removes the empty folders. The instance's own stays if it takes packets out of tunnels, too.
    pub(super) fn remove_folder(&self) -> Result<()> {
        for folder in [&self.folder.join(LINKS), &self.folder] {
            match fs::remove_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                result => {
                    result.with_context(|| format!("cannot remove {}", folder.display()))?;
                }
            }
        }
        Ok(())
    }
}

/// Makes a folder for root alone, with whatever is missing above it.
pub(super) fn make_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make {}", folder.display()))
}

/// The names of the files of `folder`, sorted.
pub(super) fn files(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        if entry.file_type()?.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Checks that `folder`, or the part of it that is there, is on a bpffs.
pub(super) fn is_bpffs(folder: &Path) -> Result<()> {
    let there = folder
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let kind = statfs(there)
        .with_context(|| format!("cannot look at {}", there.display()))?
        .filesystem_type();
    if kind != BPF_FS_MAGIC {
        bail!(
            "{} is not on a bpffs: type `mount -t bpf bpf /sys/fs/bpf` \
             (under `ip netns exec` use --netns instead, which keeps the host's mounts)",
            folder.display()
        );
    }
    Ok(())
}
