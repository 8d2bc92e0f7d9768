//! The end: everything that was changed on the host is put back. The configuration is kept.

use anyhow::{Context as _, Result, bail};

use super::{Agent, carry::lone, start};
use crate::{
    commands,
    config::Config,
    instance::Instance,
    kernel::Options,
    network::{netns, sysctl},
    plan::Change,
    state::Folder,
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
    let state = folder.load()?.unwrap_or_default();
    let has_changed = !state.addresses.is_empty() || !state.settings.is_empty();
    if !instance.pins().exists() && !has_changed {
        bail!(
            "no agent runs for instance {:?}, and nothing is attached",
            instance.name()
        );
    }
    if let Some(name) = &state.netns {
        netns::enter(name)?;
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
        self.network.release_neighbours().await?;
        self.kernel.remove_pins()?;

        self.state.addresses.clear();
        self.state.settings = sysctl::Before::default();
        self.state.config.interfaces = None;
        (self.state.no_sysctl, self.state.no_address) = (false, false);
        self.state.netns = None;
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
        for error in results.into_iter().filter_map(Result::err) {
            ::log::error!("while putting back: {error:#}");
        }
    }
}
