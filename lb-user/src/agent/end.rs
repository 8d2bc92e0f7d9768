//! The end: everything that was changed on the host is put back. The configuration is kept.

use std::fs;

use anyhow::{Context as _, Result, bail};

use super::{Agent, carry::lone, start};
use crate::{
    commands,
    config::Config,
    instance::Instance,
    kernel::Options,
    network::{masquerade::Table, netns, sysctl},
    plan::Change,
    state::{Folder, State},
};

/// Puts back what an agent that no longer runs has left, and says what that was.
///
/// # Errors
///
/// When there is nothing, or it cannot be put back.
pub fn clean(instance: &Instance) -> Result<Vec<String>> {
    let is_left = instance.pins().exists() || instance.state_folder().join("state.json").exists();
    if !is_left {
        bail!(
            "no agent runs for instance {:?}, and nothing is left of one",
            instance.name()
        );
    }
    start::check_rights(instance, "detach")?;
    let lock = start::lock(instance)?;
    let folder = Folder::make(instance.state_folder())?;
    let mut state = folder.load()?.unwrap_or_default();
    let has_changed = !state.addresses.is_empty() || !state.settings.is_empty() || state.nftables;
    if !instance.pins().exists() && !has_changed {
        bail!(
            "no agent runs for instance {:?}, and nothing is attached",
            instance.name()
        );
    }
    if let Some(name) = state.netns.clone() {
        if !netns::exists(&name) {
            return without_namespace(instance, &folder, &mut state, &name);
        }
        netns::enter(&name)?;
    }
    let config = Config::check(&state.config)?;
    let notes = commands::runtime()?.block_on(async {
        let options = Options {
            pins: instance.pins(),
            sizes: config.sizes,
            // Whatever version has left it.
            discard: true,
            log_packets: false,
        };
        let (agent, _) = Agent::open(instance, folder, state, &options).await?;
        let mut notes = vec!["detached from every interface".to_owned()];
        notes.extend(agent.end().await?);
        Ok::<_, anyhow::Error>(notes)
    })?;
    drop(lock);
    Ok(notes)
}

/// Puts back what is left where the agent's network namespace is gone, and with it the interfaces,
/// addresses and settings.
fn without_namespace(
    instance: &Instance,
    folder: &Folder,
    state: &mut State,
    netns: &str,
) -> Result<Vec<String>> {
    let pins = instance.pins();
    if pins.exists() {
        fs::remove_dir_all(&pins).with_context(|| format!("cannot remove {}", pins.display()))?;
    }
    forget_host(state);
    folder.save(state)?;
    Ok(vec![format!(
        "network namespace {netns} is gone with all that was in it; removed the program and its maps"
    )])
}

/// Forgets what was changed on the host and how; the services stay.
fn forget_host(state: &mut State) {
    state.addresses.clear();
    state.settings = sysctl::Before::default();
    state.nftables = false;
    state.config.interfaces = None;
    (state.no_sysctl, state.no_address) = (false, false);
    state.netns = None;
}

impl Agent {
    /// Takes everything back: addresses, then the program, then the kernel's settings, then the
    /// maps.
    pub(super) async fn end(mut self) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        self.look().await?;
        for address in self.tables.addresses.clone() {
            notes.push(format!(
                "removed {} from {}",
                lone(address.address.ip()),
                address.interface
            ));
            self.carry(&Change::RemoveAddress(address)).await?;
        }
        for attachment in self.kernel.attached()? {
            if self.kernel.detach(&attachment.name)? {
                notes.push(format!("detached from {}", attachment.name));
            }
        }
        if !self.state.settings.is_empty() {
            notes.push(format!(
                "put back {} kernel settings",
                self.state.settings.lines().count()
            ));
        }
        sysctl::Settings::default()
            .restore(&self.state.settings)
            .context("cannot put back the kernel's settings")?;
        if self.state.nftables {
            let table = Table::of(self.instance.name());
            // The rest goes, whatever has become of nft.
            notes.push(match table.remove().await {
                Ok(()) => format!("removed the nftables table {}", table.name()),
                Err(error) => format!(
                    "the nftables table {0} stays ({error:#}): sudo nft delete table {0}",
                    table.name()
                ),
            });
        }
        self.network.release_neighbours().await?;
        self.kernel.remove_pins()?;

        forget_host(&mut self.state);
        self.folder.save(&self.state)?;
        let services = self.state.config.services.len();
        if services > 0 {
            notes.push(format!(
                "the configuration ({services} services) is kept: the next attach starts with it"
            ));
        }
        Ok(notes)
    }

    /// Takes back a start that has failed. What fails is logged: the reason for the failed start
    /// is what the person is told.
    pub(super) async fn undo(mut self) {
        let results = [
            self.network.release_neighbours().await,
            self.kernel.remove_pins(),
        ];
        let removed = match self.state.nftables {
            true => Table::of(self.instance.name()).remove().await,
            false => Ok(()),
        };
        for error in results.into_iter().chain([removed]).filter_map(Result::err) {
            ::log::error!("while putting back: {error:#}");
        }
    }
}
