//! The program under test, driven the way an operator does: `lb-user` commands against an instance
//! of its own.
//!
//! Promises: no instance meets another or the machine's own (state, socket and pins are its own);
//! an agent goes with its pins when dropped, on panic too, and its log is printed then (the test
//! harness shows it for failed tests). The JSON of `lb-user` is read in `reading` and nowhere else.

mod ground;
mod reading;

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    netns::{self, Netns},
    process::{Finished, finish},
    topology::{Host, Network},
    wait,
};
pub use reading::{Carried, Flow};

/// Where `lb-user` pins: one folder for each instance.
const PINS: &str = "/sys/fs/bpf/lb-user";

/// How long a command may take on a busy machine; loading the program is the slowest.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// An instance of the load balancer on one machine of a network.
#[derive(Debug)]
pub struct Agent {
    program: PathBuf,
    instance: String,
    folder: TempDir,
    netns: String,
    interfaces: Vec<String>,
}

impl Agent {
    /// An instance for the balancer of `network`, not yet started.
    ///
    /// # Errors
    ///
    /// When the program is not built.
    pub fn prepare(network: &Network) -> Result<Self> {
        static READY: Once = Once::new();
        let program = ground::program()?;
        READY.call_once(|| {
            ground::mount_bpffs();
            ground::sweep();
        });
        Ok(Self {
            program,
            instance: netns::unique("agent"),
            folder: tempfile::tempdir().context("cannot make a folder for the agent")?,
            netns: network.balancer.netns.name().to_owned(),
            interfaces: network.interfaces().iter().map(|&i| i.to_owned()).collect(),
        })
    }

    /// An instance that is attached to all interfaces of the balancer of `network`.
    ///
    /// # Errors
    ///
    /// When the program is not built, or `attach` fails.
    pub fn attached(network: &Network) -> Result<Self> {
        let agent = Self::prepare(network)?;
        agent.attach("")?;
        Ok(agent)
    }

    /// `attach` to all interfaces, with further `flags`; gives what it printed.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn attach(&self, flags: &str) -> Result<String> {
        self.ok(&self.attach_line(flags))
    }

    /// The line that [`Agent::attach`] runs, after the instance.
    #[must_use]
    pub fn attach_line(&self, flags: &str) -> String {
        let interfaces = self.interfaces.join(" ");
        format!("attach --netns {} {flags} {interfaces}", self.netns)
    }

    /// Runs a command line of `lb-user`, words parted by spaces, that has to succeed; gives its
    /// standard output.
    ///
    /// # Errors
    ///
    /// When it fails, with what it said.
    pub fn ok(&self, line: &str) -> Result<String> {
        self.run(line)?.text()
    }

    /// As [`Agent::ok`], for another instance: this one's name with `label` behind it.
    ///
    /// # Errors
    ///
    /// When it fails, with what it said.
    pub fn ok_beside(&self, label: &str, line: &str) -> Result<String> {
        let mut command = Command::new(&self.program);
        self.complete_as(&mut command, &self.beside(label), line);
        finish(&mut command, COMMAND_LIMIT)?.text()
    }

    /// The name of another instance. Its pins are removed with the others of a test run that was
    /// killed.
    fn beside(&self, label: &str) -> String {
        format!("{}-{label}", self.instance)
    }

    /// Runs a command line that has to be refused: exit code 1 or 2, nothing on standard output,
    /// one line on standard error, which is returned.
    ///
    /// # Errors
    ///
    /// When it is not refused in this way.
    pub fn refused(&self, line: &str) -> Result<String> {
        refusal(line, self.run(line)?)
    }

    /// As [`Agent::refused`], for root without any capability.
    ///
    /// # Errors
    ///
    /// When it is not refused in this way.
    pub fn refused_without_capabilities(&self, line: &str) -> Result<String> {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
        command.arg(&self.program);
        self.complete(&mut command, line);
        refusal(line, finish(&mut command, COMMAND_LIMIT)?)
    }

    /// Runs a command line of `lb-user` on another machine, which has an instance of its own.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn elsewhere(&self, host: &Host, line: &str) -> Result<Finished> {
        let mut command = Command::new(&self.program);
        self.complete_as(&mut command, &self.beside(&host.name), line);
        host.netns.finish(&mut command, COMMAND_LIMIT)
    }

    /// A folder with an `lb-user` for another machine: it uses the instance of
    /// [`Agent::elsewhere`].
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn installed_on(&self, host: &Host) -> Result<TempDir> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("lb-user");
        let (program, instance) = (self.program.display(), self.beside(&host.name));
        let script = format!("#!/bin/sh\nexec {program} --instance {instance} \"$@\"\n");
        fs::write(&file, script)?;
        fs::set_permissions(&file, Permissions::from_mode(0o755))?;
        Ok(folder)
    }

    fn run(&self, line: &str) -> Result<Finished> {
        let mut command = Command::new(&self.program);
        self.complete(&mut command, line);
        finish(&mut command, COMMAND_LIMIT)
    }

    /// Adds the instance and the words of `line`.
    fn complete(&self, command: &mut Command, line: &str) {
        self.complete_as(command, &self.instance, line);
    }

    fn complete_as(&self, command: &mut Command, instance: &str, line: &str) {
        command
            .env("LB_USER_STATE_DIR", self.folder.path())
            .env("LB_USER_RUN_DIR", self.folder.path())
            .args(["--instance", instance])
            .args(line.split_whitespace());
    }

    /// The whole configuration, as `export` prints it.
    ///
    /// # Errors
    ///
    /// When `export` fails.
    pub fn configuration(&self) -> Result<String> {
        self.ok("export")
    }

    /// Carries out a configuration with further `flags`; gives what `apply` printed.
    ///
    /// # Errors
    ///
    /// When `apply` fails.
    pub fn apply(&self, toml: &str, flags: &str) -> Result<String> {
        self.ok(&self.apply_line(toml, flags)?)
    }

    /// The line that applies a configuration, after the instance.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn apply_line(&self, toml: &str, flags: &str) -> Result<String> {
        let file = self.folder.path().join("asked.toml");
        fs::write(&file, toml)?;
        Ok(format!("apply -f {} {flags}", file.display()))
    }

    /// Ids of the instance's processes.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
                line.split('\0')
                    .any(|word| word.ends_with(&self.instance))
                    .then(|| Pid::from_raw(pid))
            })
            .collect()
    }

    /// Ends the agent's process with SIGKILL, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it is not running.
    pub fn crash(&self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Ends the agent's process with SIGTERM, as systemd would, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it is not running.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    fn end(&self, signal: Signal) -> Result<()> {
        let processes = self.processes();
        ensure!(!processes.is_empty(), "no agent runs for {}", self.instance);
        for pid in processes {
            kill(pid, signal)?;
        }
        wait::until_true("the end of the agent", wait::LONG, || {
            Ok(self.processes().is_empty())
        })
    }

    /// The instance's name.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The folder with the instance's pins.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(PINS).join(&self.instance)
    }

    /// The agent's own log so far.
    #[must_use]
    pub fn log(&self) -> String {
        ground::logs_below(self.folder.path())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        println!("--- log of {}:\n{}", self.instance, self.log());
        // A test may have detached already, or have stopped the agent: what is left is removed.
        let _ = self.run("detach");
        for pid in self.processes() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = fs::remove_dir_all(self.pins());
    }
}

/// What a command that has to be refused said, if it was refused as it should be.
fn refusal(line: &str, finished: Finished) -> Result<String> {
    let told = finished.stderr.trim_end();
    ensure!(
        matches!(finished.status.code(), Some(1 | 2)),
        "`{line}` ended with {}, not 1 or 2: {told}",
        finished.status
    );
    ensure!(
        !told.is_empty() && told.lines().count() == 1,
        "`{line}` was not refused in one line:\n{told}"
    );
    ensure!(
        finished.stdout.is_empty(),
        "`{line}` was refused, but printed:\n{}",
        String::from_utf8_lossy(&finished.stdout)
    );
    Ok(told.to_owned())
}

/// Whether an XDP program is on interface `device` of `netns`, as `ip link` shows.
///
/// # Errors
///
/// When there is no such interface.
pub fn has_program(netns: &Netns, device: &str) -> Result<bool> {
    Ok(netns
        .tool(&format!("ip link show dev {device}"))?
        .contains("prog/xdp"))
}
