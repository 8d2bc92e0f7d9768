//! Network namespaces: made under a unique name, entered by threads, gone when dropped.
//!
//! Promises: no two tests meet, in one process or in several; a namespace goes on panic too; what a
//! killed test run left behind is removed by the next one. Only the *network* namespace is changed
//! (setns(2) in a thread): `ip netns exec` would also put a fresh `/sys` over `/sys/fs/bpf`.

use std::{
    fs::{self, File},
    path::Path,
    process::{self, Command},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        socket::LinkAddr,
    },
    unistd::{Pid, geteuid},
};

use crate::process::{Finished, Process, finish};

/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";

/// First part of the name of everything a test makes; then follow the test's process id and a number.
pub const PREFIX: &str = "lbt";

/// How long `ip`, `ethtool` or `nft` may take on a busy machine.
const TOOL_LIMIT: Duration = Duration::from_secs(20);

/// A name that nothing else on this machine has: prefix, process id, number in the process, `label`.
#[must_use]
pub fn unique(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{number}-{label}", process::id())
}

/// True when `name` was made by [`unique`] in a process that no longer lives.
#[must_use]
pub fn is_left_behind(name: &str) -> bool {
    let Some(rest) = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix('-'))
    else {
        return false;
    };
    let pid = rest.split('-').next().unwrap_or_default();
    pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()
}

/// A named network namespace, removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace with loopback up, named after `label`.
    ///
    /// # Errors
    ///
    /// Without root, or when `ip` is missing or refuses.
    pub fn create(label: &str) -> Result<Self> {
        static SWEPT: Once = Once::new();
        ensure!(
            geteuid().is_root(),
            "network tests make namespaces: run them as root"
        );
        SWEPT.call_once(sweep);
        let name = unique(label);
        finish(Command::new("ip").args(["netns", "add", &name]), TOOL_LIMIT)?.text()?;
        let path = Path::new(NAMED).join(&name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let netns = Self { name, file };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name, as `ip netns` and `--netns` take it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets and processes that it
    /// makes stay inside; they may be used from anywhere.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, and whatever `work` fails with.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter namespace {}", self.name))?;
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Starts a program inside.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        self.run(|| Process::start(command))
    }

    /// Runs a program inside, to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not end within `limit`.
    pub fn finish(&self, command: &mut Command, limit: Duration) -> Result<Finished> {
        self.run(|| finish(command, limit))
    }

    /// Runs a short command line inside, words parted by spaces, and gives its standard output.
    ///
    /// # Errors
    ///
    /// When it does not end with 0, with what it said.
    pub fn tool(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().context("an empty command line")?);
        command.args(words);
        self.finish(&mut command, TOOL_LIMIT)?.text()
    }

    /// Carries out `ip` commands inside, one a line, without the word `ip`; stops at the first that fails.
    ///
    /// # Errors
    ///
    /// When one is refused, with all of them.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let batch = tempfile::NamedTempFile::new().context("cannot make a file for `ip -batch`")?;
        fs::write(batch.path(), lines)?;
        self.finish(
            Command::new("ip").arg("-batch").arg(batch.path()),
            TOOL_LIMIT,
        )?
        .text()
        .with_context(|| format!("in {}:\n{lines}", self.name))?;
        Ok(())
    }

    /// Loads nftables rules inside.
    ///
    /// # Errors
    ///
    /// When `nft` refuses them.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let file = tempfile::NamedTempFile::new().context("cannot make a file for `nft -f`")?;
        fs::write(file.path(), rules)?;
        self.finish(Command::new("nft").arg("-f").arg(file.path()), TOOL_LIMIT)?
            .text()
            .with_context(|| format!("in {}:\n{rules}", self.name))?;
        Ok(())
    }

    /// Reads a sysctl of the namespace; `key` with slashes, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    ///
    /// When the kernel has no such key.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| {
            let value = fs::read_to_string(&path).with_context(|| format!("cannot read {key}"))?;
            Ok(value.trim().to_owned())
        })
    }

    /// Sets sysctls of the namespace, in order.
    ///
    /// # Errors
    ///
    /// When the kernel has no such key or refuses the value.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                fs::write(Path::new("/proc/sys").join(key), value)
                    .with_context(|| format!("cannot set {key}={value} in {}", self.name))?;
            }
            Ok(())
        })
    }

    /// Index and hardware address of interface `device`.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn link(&self, device: &str) -> Result<LinkAddr> {
        self.run(|| {
            getifaddrs()?
                .filter(|entry| entry.interface_name == device)
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .with_context(|| format!("no interface {device} in {}", self.name))
        })
    }

    /// How many frames have come in on interface `device`.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn received(&self, device: &str) -> Result<u64> {
        // Of the thread's own namespace, not of the process's.
        let table = self.run(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?))?;
        table
            .lines()
            .filter_map(|line| line.trim().split_once(':'))
            .find(|(name, _)| *name == device)
            .and_then(|(_, counters)| counters.split_whitespace().nth(1)?.parse().ok())
            .with_context(|| format!("no interface {device} in {}", self.name))
    }

    /// Hardware address of interface `device`.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn mac(&self, device: &str) -> Result<[u8; 6]> {
        self.link(device)?
            .addr()
            .with_context(|| format!("{device} has no hardware address"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes the namespaces of test runs that were killed, and what still runs in them.
fn sweep() {
    let Ok(entries) = fs::read_dir(NAMED) else {
        return;
    };
    for name in entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_left_behind(name))
    {
        for pid in processes(&name) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        remove(&name);
    }
}

/// Ids of the processes that are inside namespace `name`.
fn processes(name: &str) -> Vec<Pid> {
    finish(Command::new("ip").args(["netns", "pids", name]), TOOL_LIMIT)
        .and_then(Finished::text)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().parse().ok().map(Pid::from_raw))
        .collect()
}

/// Removes the name; the kernel removes the namespace with its last process and socket.
fn remove(name: &str) {
    if let Err(error) =
        finish(Command::new("ip").args(["netns", "del", name]), TOOL_LIMIT).and_then(Finished::text)
    {
        eprintln!("cannot remove namespace {name}: {error:#}");
    }
}
