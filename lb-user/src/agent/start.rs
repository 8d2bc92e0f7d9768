//! The agent's beginning: rights, network namespace, lock, state, program, socket.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File, Permissions},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    thread,
    time::{Duration, Instant},
};

use ::log::{info, warn};
use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{
    net::UnixListener,
    sync::{broadcast, mpsc},
};

use super::{Agent, End, READY, Starter};
use crate::{
    api::{Detached, server},
    cli::{Host, Run},
    commands,
    config::{Config, Edit, RawConfig, raw::RawInterface},
    instance::Instance,
    kernel::{Kernel, Options, Taken},
    network::{Neighbours, Network, netns},
    plan::{Built, Way},
    state::{Folder, State},
};

/// How long an agent that is ending may hold the lock.
const ENDING: Duration = Duration::from_millis(500);

/// How often it is tried.
const GLANCE: Duration = Duration::from_millis(10);

/// Runs the agent until a signal or `detach` ends it.
///
/// # Errors
///
/// When it cannot start: then nothing is left of it that was not there before.
pub fn run(instance: &Instance, options: &Run) -> Result<()> {
    super::log::begin();
    check_rights(instance, "run")?;
    if options.background {
        // It fails only for the leader of a process group, which a child is not.
        let _ = nix::unistd::setsid();
    }
    let lock = lock(instance)?;
    let folder = Folder::make(instance.state_folder())?;
    let kept = folder.load()?;
    let mut state = kept.clone().unwrap_or_default();
    remember(&mut state, &options.host);
    if let Some(name) = &state.netns {
        netns::enter(name)?;
    }
    let (raw, required) = wanted(&state, options)?;
    let config = Config::check(&raw)?;
    let result = commands::runtime()?.block_on(async {
        let open = Options {
            pins: instance.pins(),
            sizes: config.sizes.clone(),
            discard: options.host.discard,
            log_packets: options.host.log_packets,
        };
        let (mut agent, taken) = Agent::open(instance, folder.clone(), state, &open).await?;
        if options.background {
            agent.starter = Starter::Attach;
        }
        if let Err(error) = agent.begin(raw, &required, &taken).await {
            if taken == Taken::Fresh {
                agent.undo().await;
            }
            match &kept {
                Some(kept) => folder.save(kept)?,
                None => folder.forget()?,
            }
            return Err(error);
        }
        agent.run().await
    });
    drop(lock);
    result
}

/// Says in one line if the process may not do what an agent does.
///
/// # Errors
///
/// When a capability is missing.
pub fn check_rights(instance: &Instance, command: &str) -> Result<()> {
    // CAP_NET_ADMIN and CAP_SYS_ADMIN, as Linux include/uapi/linux/capability.h numbers them.
    const NEEDED: u64 = 1 << 12 | 1 << 21;
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    if effective & NEEDED == NEEDED {
        return Ok(());
    }
    bail!(
        "lb-user needs root (or CAP_NET_ADMIN and CAP_SYS_ADMIN): sudo lb-user {command}{}",
        instance.option()
    )
}

/// Keeps a second agent out.
pub(super) fn lock(instance: &Instance) -> Result<File> {
    let folder = instance.run_folder();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let path = instance.lock();
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let deadline = Instant::now() + ENDING;
    while file.try_lock().is_err() {
        if Instant::now() < deadline {
            thread::sleep(GLANCE);
            continue;
        }
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        bail!(
            "an agent runs already for instance {:?} (pid {}): see lb-user status{}",
            instance.name(),
            pid.trim(),
            instance.option()
        );
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

/// Options that are given now hold from now on; those that are not, as before.
fn remember(state: &mut State, host: &Host) {
    state.no_sysctl |= host.no_sysctl;
    state.no_address |= host.no_address;
    if let Some(netns) = &host.netns {
        state.netns = Some(netns.clone());
    }
}

/// The configuration to start with, and the interfaces in it without which there is no start.
fn wanted(state: &State, options: &Run) -> Result<(RawConfig, BTreeSet<String>)> {
    let mut raw = state.config.clone();
    let mut required: BTreeSet<String> = options.attach.iter().cloned().collect();
    if let Some(file) = &options.config {
        let origin = file.display().to_string();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {origin}"))?;
        let config = RawConfig::from_toml(&text, &origin)?;
        let named = config.interfaces.iter().flatten();
        required.extend(named.map(|interface| interface.name.clone()));
        Edit::Replace { config }.apply(&mut raw)?;
    }
    for name in &options.attach {
        let interface = RawInterface {
            name: name.clone(),
            xdp_mode: options.xdp_mode,
        };
        Edit::InterfaceAdd { interface }.apply(&mut raw)?;
    }
    Ok((raw, required))
}

impl Agent {
    /// Opens the maps and the network. Nothing is configured yet beyond what the maps hold.
    pub(super) async fn open(
        instance: &Instance,
        folder: Folder,
        state: State,
        options: &Options,
    ) -> Result<(Self, Taken)> {
        let network = Network::open().await?;
        let (kernel, taken) = Kernel::open(options)?;
        let tables = kernel.read()?;
        let mut agent = Self {
            instance: instance.clone(),
            folder,
            state,
            config: Config::check(&RawConfig::default())?,
            kernel,
            network,
            sizes: options.sizes.clone(),
            tables,
            built: Built::default(),
            shares: BTreeMap::new(),
            attachments: BTreeMap::new(),
            links: Vec::new(),
            host_addresses: Vec::new(),
            routes: BTreeMap::new(),
            seen: Neighbours::default(),
            ways: BTreeMap::new(),
            masqueraded: None,
            history: VecDeque::new(),
            listeners: broadcast::channel(1024).0,
            asked: BTreeMap::new(),
            started: Instant::now(),
            starter: Starter::Other,
        };
        agent.count_shares();
        agent.ways = agent
            .tables
            .backends
            .iter()
            .map(|(&id, backend)| (id, Way::of(backend)))
            .collect();
        agent.look().await?;
        Ok((agent, taken))
    }

    /// Makes everything as `raw` says.
    async fn begin(
        &mut self,
        raw: RawConfig,
        required: &BTreeSet<String>,
        taken: &Taken,
    ) -> Result<()> {
        if let Taken::TakenOver { resized } = taken {
            self.say("took over the running program and its maps");
            for map in resized {
                self.say(&format!("resized the map {map}, with what was in it"));
            }
        }
        let notes = self.change_to(raw, required).await?;
        notes.iter().for_each(|note| self.say(note));
        self.detach_strangers()?;
        for warning in &self.config.warnings {
            self.say(&format!("warning: {warning}"));
        }
        Ok(())
    }

    /// Opens the socket, says that it is ready, and serves.
    async fn run(mut self) -> Result<()> {
        let events = self.kernel.events()?;
        let changes = self.network.changes()?;
        if let Some(log) = self.kernel.packet_log()? {
            tokio::spawn(async move {
                if let Err(error) = log.await {
                    warn!("the program's log: {error:#}");
                }
            });
        }
        let (requests, received) = mpsc::channel(16);
        let socket = self.instance.socket();
        let server = tokio::spawn(server::serve(listen(&self.instance)?, requests));
        self.say(READY);
        // Changes between the first look and the subscription.
        self.follow(super::EVERYTHING).await?;

        let end = self.serve(received, changes, events).await;
        let _ = fs::remove_file(&socket);
        match end? {
            End::Signal => {
                info!("stopped; the program, its maps and the addresses stay, packets go on");
                server.abort();
            }
            End::Detach(reply) => {
                let answer = self.end().await.map(|notes| Detached { notes, ends: true });
                let result = answer.as_ref().map(drop).map_err(|e| anyhow!("{e:#}"));
                let _ = reply.send(answer);
                // The answer goes out on another task of this thread.
                let _ = tokio::time::timeout(Duration::from_millis(200), server).await;
                return result;
            }
        }
        Ok(())
    }
}

/// The socket, for root alone. One that a killed agent left is replaced: the lock is ours.
fn listen(instance: &Instance) -> Result<UnixListener> {
    let path = instance.socket();
    let describe = || format!("cannot make the socket {}", path.display());
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(describe);
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(describe)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600)).with_context(describe)?;
    Ok(listener)
}
