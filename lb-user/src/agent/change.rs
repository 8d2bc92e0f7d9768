//! Changing the configuration: checked, planned, carried out and kept, or nothing of it.

use std::collections::BTreeSet;

use ::log::{error, info};
use anyhow::{Context as _, Result, anyhow, bail};

use super::{Agent, Attachment, way::Half};
use crate::{
    api::{Detach, Detached, Edited, Edits},
    config::{Config, Edit, Interface, RawConfig, XdpMode, differences},
    kernel,
    network::{XdpPlace, masquerade, sysctl},
    plan,
    state::State,
};

impl Agent {
    /// Makes all of the edits, or says what they would change.
    pub(super) async fn edit(&mut self, edits: Edits) -> Result<Edited> {
        let mut raw = self.state.config.clone();
        let mut required = BTreeSet::new();
        for edit in &edits.edits {
            edit.apply(&mut raw)?;
            if let Edit::InterfaceAdd { interface } = edit {
                required.insert(interface.name.clone());
            }
        }
        let config = Config::check(&raw)?;
        config.fits(&self.sizes)?;
        let changes = differences(&self.config, &config);
        let new = config
            .interfaces
            .iter()
            .filter(|i| !self.config.interfaces.contains(i));
        required.extend(new.map(|interface| interface.name.clone()));
        let warnings: Vec<String> = config
            .warnings
            .iter()
            .filter(|warning| !self.config.warnings.contains(warning))
            .cloned()
            .collect();
        if edits.dry_run {
            self.look().await?;
            for name in &required {
                self.network.link(name).await?;
            }
            return Ok(Edited {
                changes,
                notes: Vec::new(),
                warnings,
            });
        }
        let notes = self.change_to(raw, &required).await?;
        for line in changes.iter().chain(&notes) {
            info!("{line}");
        }
        Ok(Edited {
            changes,
            notes,
            warnings,
        })
    }

    /// Detaches from some interfaces.
    pub(super) async fn detach(&mut self, detach: Detach) -> Result<Detached> {
        let edits = detach
            .interfaces
            .into_iter()
            .map(|interface| Edit::InterfaceDel { interface })
            .collect();
        let edited = self
            .edit(Edits {
                edits,
                dry_run: false,
            })
            .await?;
        Ok(Detached {
            notes: edited.notes,
            ends: false,
        })
    }

    /// Makes everything as `raw` says. `required` are the interfaces without which that fails;
    /// others are waited for. If anything fails, everything is as it was.
    pub(super) async fn change_to(
        &mut self,
        raw: RawConfig,
        required: &BTreeSet<String>,
    ) -> Result<Vec<String>> {
        let config = Config::check(&raw)?;
        config.fits(&self.sizes)?;
        self.look().await?;
        let before = Before {
            state: self.state.clone(),
            config: self.config.clone(),
            tables: self.tables.clone(),
            attachments: self.attachments.clone(),
            masqueraded: self.masqueraded.clone(),
        };
        let mut notes = Vec::new();
        let result = self.carry_out(raw, config, required, &mut notes).await;
        if let Err(error) = result {
            self.roll_back(before).await;
            return Err(error);
        }
        self.detach_former(&before, &mut notes);
        Ok(notes)
    }

    async fn carry_out(
        &mut self,
        raw: RawConfig,
        config: Config,
        required: &BTreeSet<String>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        for name in required {
            self.network.link(name).await?;
        }
        self.prepare_host(&config, notes)?;
        self.state.ids = self.state.ids.assigned(&config, &self.sizes);
        self.state.config = raw;
        self.config = config;
        for interface in self.config.interfaces.clone() {
            self.attach(&interface, required.contains(&interface.name), notes)?;
        }
        self.write_settings(Half::Old)?;
        self.write_locals()?;
        self.resolve_backends(notes).await?;
        self.fill(notes).await?;
        self.write_ways().await?;
        self.write_settings(Half::New)?;
        self.masquerade(notes).await?;
        self.folder.save(&self.state)
    }

    /// The kernel's settings that the data path needs, for the interfaces of `config` that are
    /// there.
    pub(super) fn prepare_host(&mut self, config: &Config, notes: &mut Vec<String>) -> Result<()> {
        let interfaces: Vec<String> = config
            .interfaces
            .iter()
            .filter(|i| self.links.iter().any(|link| link.name == i.name))
            .map(|i| i.name.clone())
            .collect();
        if interfaces.is_empty() {
            return Ok(());
        }
        let needs = sysctl::Needs {
            interfaces,
            ipv4: true,
            ipv6: true,
        };
        let settings = sysctl::Settings::default();
        if self.state.no_sysctl {
            let missing = settings.missing(&needs)?;
            if missing.is_empty() {
                return Ok(());
            }
            let commands: Vec<String> = missing.iter().map(sysctl::Missing::command).collect();
            let netns = self.state.netns.as_ref();
            bail!(
                "kernel settings are missing, and --no-sysctl leaves them to you: sudo {}sh -c '{}'",
                netns.map_or_else(String::new, |name| format!("ip netns exec {name} ")),
                commands.join(" && ")
            );
        }
        let missing = settings.missing(&needs)?;
        let changed = settings.set(&needs)?;
        notes.extend(
            missing
                .iter()
                .filter(|m| is_of_its_own(m, &missing))
                .map(|m| {
                    let command = m.command();
                    let setting = command.trim_start_matches("sysctl -w ");
                    format!("set {setting} (was {})", m.is)
                }),
        );
        if !changed.is_empty() {
            self.state.settings.merge(changed);
            // Kept at once, so that detach puts them back whatever happens next.
            self.folder.save(&self.state)?;
        }
        Ok(())
    }

    /// Attaches to an interface if it is there and not attached as it should be.
    pub(super) fn attach(
        &mut self,
        interface: &Interface,
        is_required: bool,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let name = &interface.name;
        let known = self.attachments.get(name).cloned().unwrap_or_default();
        let Some(link) = self.links.iter().find(|link| link.name == *name) else {
            let note = "waiting for the interface: it is not there".to_owned();
            self.not_attached(name, known, note, notes);
            return Ok(());
        };
        let is_so = known.ifindex == Some(link.index) && known.asked == Some(interface.xdp_mode);
        let is_there = self
            .kernel
            .attached()?
            .iter()
            .any(|a| a.name == *name && a.ifindex == link.index);
        if is_so && is_there {
            return Ok(());
        }
        let mode = match interface.xdp_mode {
            XdpMode::Auto => kernel::XdpMode::Auto,
            XdpMode::Driver => kernel::XdpMode::Driver,
            XdpMode::Skb => kernel::XdpMode::Skb,
        };
        match self.kernel.attach(link, mode) {
            Ok(attached) => {
                let place = match attached.place {
                    XdpPlace::Driver => "driver mode",
                    XdpPlace::Skb => "generic mode (slow)",
                    XdpPlace::Hardware => "hardware mode",
                };
                let why = attached.fallback.clone().map(|why| format!(": {why}"));
                notes.push(format!(
                    "attached to {name} in {place}{}",
                    why.unwrap_or_default()
                ));
                self.attachments.insert(
                    name.clone(),
                    Attachment {
                        ifindex: Some(link.index),
                        asked: Some(interface.xdp_mode),
                        place: Some(attached.place),
                        note: attached.fallback,
                    },
                );
                Ok(())
            }
            Err(error) if is_required => Err(error),
            Err(error) => {
                self.not_attached(name, known, format!("{error:#}"), notes);
                Ok(())
            }
        }
    }

    fn not_attached(
        &mut self,
        name: &str,
        known: Attachment,
        note: String,
        notes: &mut Vec<String>,
    ) {
        if known.note.as_ref() != Some(&note) || known.ifindex.is_some() {
            notes.push(format!("{name}: {note}"));
        }
        let attachment = Attachment {
            note: Some(note),
            ..Attachment::default()
        };
        self.attachments.insert(name.to_owned(), attachment);
    }

    /// Takes the program off interfaces that are no longer in the configuration. Their addresses
    /// are gone already.
    fn detach_former(&mut self, before: &Before, notes: &mut Vec<String>) {
        for name in before.attachments.keys() {
            if self.config.interfaces.iter().any(|i| i.name == *name) {
                continue;
            }
            self.attachments.remove(name);
            match self.kernel.detach(name) {
                Ok(true) => notes.push(format!("detached from {name}")),
                Ok(false) => {}
                Err(error) => {
                    error!("{error:#}");
                    notes.push(format!("cannot detach from {name}: {error:#}"));
                }
            }
        }
    }

    /// Takes the program off interfaces that an earlier agent has attached and that are not in the
    /// configuration.
    pub(super) fn detach_strangers(&mut self) -> Result<()> {
        for attachment in self.kernel.attached()? {
            let name = &attachment.name;
            if !self.config.interfaces.iter().any(|i| i.name == *name) {
                self.kernel.detach(name)?;
                self.say(&format!("detached from {name}"));
            }
        }
        Ok(())
    }

    /// Puts everything back. What fails now is logged: there is nobody else to tell.
    async fn roll_back(&mut self, before: Before) {
        self.config = before.config.clone();
        if let Err(error) = self.find_hops().await {
            error!("while putting back: {error:#}");
        }
        let changes = plan::plan(&self.tables, &before.tables);
        for change in &changes {
            if let Err(error) = self.carry(change).await {
                error!("while putting back: {error:#}");
            }
        }
        for name in self.attachments.keys() {
            let was = before.attachments.get(name);
            if was.is_none_or(|a| a.ifindex.is_none())
                && let Err(error) = self.kernel.detach(name)
            {
                error!("while putting back: {error:#}");
            }
        }
        let mode_changed: Vec<Interface> = before
            .config
            .interfaces
            .iter()
            .filter(|i| self.attachments.get(&i.name) != before.attachments.get(&i.name))
            .cloned()
            .collect();
        self.attachments
            .retain(|name, _| before.attachments.contains_key(name));
        for interface in mode_changed {
            if let Err(error) = self.attach(&interface, true, &mut Vec::new()) {
                error!("while putting back: {error:#}");
            }
        }
        let was_attached = before.attachments.values().any(|a| a.ifindex.is_some());
        let mut settings = self.state.settings.clone();
        if !was_attached {
            if let Err(error) = sysctl::Settings::default().restore(&settings) {
                error!("while putting back: {error:#}");
            }
            settings = sysctl::Before::default();
        }
        // A table that may be there stays known until it is removed.
        let nftables = self.state.nftables;
        // Settings that were made for more interfaces do no harm to those that were attached.
        self.state = State {
            settings,
            nftables,
            ..before.state
        };
        if self.masqueraded != before.masqueraded
            && let Err(error) = self.masquerade(&mut Vec::new()).await
        {
            error!("while putting back: {error:#}");
        }
        self.built = plan::Built::default();
        let saved = self
            .look()
            .await
            .and_then(|()| self.write_locals())
            .and_then(|()| self.folder.save(&self.state));
        if let Err(error) = saved
            .and(self.write_ways().await)
            .and(self.write_settings(Half::New))
        {
            error!("while putting back: {error:#}");
        }
    }

    /// Whether an interface of this name is attached.
    pub(super) fn is_attached(&self, name: &str) -> bool {
        self.attachments
            .get(name)
            .is_some_and(|a| a.ifindex.is_some())
    }

    /// The index of an interface that is there.
    pub(super) fn ifindex(&self, name: &str) -> Result<u32> {
        self.links
            .iter()
            .find(|link| link.name == name)
            .map(|link| link.index)
            .with_context(|| anyhow!("the interface {name} is not there"))
    }
}

/// Whether a setting is not merely what another one drags along: forwarding everywhere is also
/// forwarding on each interface.
fn is_of_its_own(setting: &sysctl::Missing, all: &[sysctl::Missing]) -> bool {
    let everywhere = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];
    let is_forwarding = setting.key.ends_with("/forwarding");
    !is_forwarding
        || everywhere.contains(&&*setting.key)
        || !all
            .iter()
            .any(|other| everywhere.contains(&&*other.key) && other.key[..4] == setting.key[..4])
}

/// What there was before a change.
struct Before {
    state: State,
    config: Config,
    tables: plan::Tables,
    attachments: std::collections::BTreeMap<String, Attachment>,
    masqueraded: Option<masquerade::Rules>,
}
