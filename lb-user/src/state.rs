//! What outlives the agent: its configuration, its ids, and what it has changed on the host.
//!
//! One file, written whole: to a new file that is synced, renamed over the old one, and the folder
//! synced. Whenever the machine stops, the file is the old one or the new one.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{config::RawConfig, network::sysctl, plan::Ids};

/// The version of the file's form.
const VERSION: u32 = 1;

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// What was written, by `--config` or on the command line.
    pub config: RawConfig,
    /// The ids that were given.
    pub ids: Ids,
    /// The addresses that the agent has put on interfaces, and so may remove.
    pub addresses: Vec<PlacedAddress>,
    /// The kernel settings that `attach` has changed, as they were before.
    pub settings: sysctl::Before,
    /// Whether the kernel's settings are left alone (`--no-sysctl`).
    pub no_sysctl: bool,
    /// Whether no address is put on any interface (`attach --no-address`).
    pub no_address: bool,
    /// Whether there may be an nftables table of the agent's.
    #[serde(default)]
    pub nftables: bool,
    /// The network namespace that the agent entered, if it did.
    pub netns: Option<String>,
}

/// A service's address that the agent has put on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedAddress {
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    state: T,
}

/// The folder it is kept in.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`, made if it is not there, for its owner alone.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn make(path: PathBuf) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make the state folder {}", path.display()))?;
        Ok(Self { path })
    }

    /// The folder at `path` as it is, to be read; it need not be there.
    pub const fn at(path: PathBuf) -> Self {
        Self { path }
    }

    fn file(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// What was kept; nothing if there never was an agent.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read, or is not a state of this version.
    pub fn load(&self) -> Result<Option<State>> {
        let file = self.file();
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        let broken = || {
            format!(
                "{} is damaged: restore it, or remove it and give --config",
                file.display()
            )
        };
        let value: serde_json::Value = serde_json::from_slice(&text).with_context(broken)?;
        let Versioned { version, state } =
            serde_json::from_value::<Versioned<serde_json::Value>>(value).with_context(broken)?;
        if version != VERSION {
            bail!(
                "{} has version {version}, this lb-user reads {VERSION}: use the lb-user that wrote \
                 it",
                file.display()
            );
        }
        serde_json::from_value(state).map(Some).with_context(broken)
    }

    /// Keeps `state`: when this returns, it is on the disk.
    ///
    /// # Errors
    ///
    /// When it cannot be written; what was kept before is then still there.
    pub fn save(&self, state: &State) -> Result<()> {
        let versioned = Versioned {
            version: VERSION,
            state,
        };
        let text = serde_json::to_vec_pretty(&versioned).context("state as JSON")?;
        let file = self.file();
        replace(&file, &text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Forgets everything but the log.
    ///
    /// # Errors
    ///
    /// When the file cannot be removed.
    pub fn forget(&self) -> Result<()> {
        match fs::remove_file(self.file()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.file().display()))
            }
            _ => Ok(()),
        }
    }
}

fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut writer = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    writer.write_all(text)?;
    writer.sync_all()?;
    fs::rename(&new, file)?;
    match file.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::make(temporary.path().join("a/b")).unwrap();
        (temporary, folder)
    }

    #[test]
    fn what_is_kept_comes_back() {
        let (_temporary, folder) = folder();
        assert_eq!(folder.load().unwrap(), None);
        let state = State {
            config: RawConfig::from_toml("interfaces = [\"eth1\"]\nsizes = { flows = 9 }", "t")
                .unwrap(),
            addresses: vec![PlacedAddress {
                interface: "eth1".into(),
                address: "2001:db8::1".parse().unwrap(),
            }],
            netns: Some("lb".into()),
            ..State::default()
        };
        folder.save(&state).unwrap();
        assert_eq!(folder.load().unwrap(), Some(state));
        folder.forget().unwrap();
        assert_eq!(folder.load().unwrap(), None);
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused() {
        let (_temporary, folder) = folder();
        fs::write(folder.file(), "{ \"version\": 1, ").unwrap();
        assert!(
            folder
                .load()
                .unwrap_err()
                .to_string()
                .contains("is damaged")
        );
        folder.save(&State::default()).unwrap();
        let text = fs::read_to_string(folder.file()).unwrap();
        fs::write(
            folder.file(),
            text.replace("\"version\": 1", "\"version\": 9"),
        )
        .unwrap();
        assert!(
            folder
                .load()
                .unwrap_err()
                .to_string()
                .contains("has version 9")
        );
    }
}
