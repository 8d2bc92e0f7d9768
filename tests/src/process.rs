//! Programs the tests start: what they said is kept, and none outlives its owner.
//!
//! Promise: output goes to a file, never to a pipe, so that a program (or a background process
//! it left behind) can neither block on a full pipe nor keep the test waiting for its end.

use std::{
    fs,
    io::{Read, Seek},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::NamedTempFile;

use crate::wait;

/// How long a program has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// A program that runs beside the test, killed with its children when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
    log: NamedTempFile,
}

impl Process {
    /// Starts `command` in a process group of its own; standard output and error go to the log.
    ///
    /// # Errors
    ///
    /// When the program cannot be started; the message has the command line.
    pub fn start(command: &mut Command) -> Result<Self> {
        let what = line_of(command);
        let log = NamedTempFile::new().context("cannot make a log file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.reopen()?)
            .stderr(log.reopen()?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start `{what}`"))?;
        Ok(Self { child, what, log })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far, for messages of failed tests.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Fails, with the log, when the program has ended although it should be running.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("`{}` ended ({status}):\n{}", self.what, self.log()),
        }
    }

    /// Waits for its end, at most `limit`.
    ///
    /// # Errors
    ///
    /// When it has not ended by then.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of `{}`", self.what);
        wait::until(&what, limit, || Ok(self.child.try_wait()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group of a child that was reaped may have been given away: only a running one is ended.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let Ok(group) = i32::try_from(self.child.id()).map(Pid::from_raw) else {
            return;
        };
        // Errors mean that it has just ended by itself.
        let _ = killpg(group, Signal::SIGTERM);
        if self.wait(GRACE).is_err() {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Everything on standard output.
    pub stdout: Vec<u8>,
    /// Everything on standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text, if the exit code is 0.
    ///
    /// # Errors
    ///
    /// On another exit code, with what it printed.
    pub fn text(self) -> Result<String> {
        if !self.status.success() {
            bail!(
                "`{}` failed ({}): {}{}",
                self.what,
                self.status,
                self.stderr,
                String::from_utf8_lossy(&self.stdout)
            );
        }
        String::from_utf8(self.stdout).with_context(|| format!("`{}` printed no UTF-8", self.what))
    }
}

/// Runs `command` to its end; what `limit` does not see ended is killed.
///
/// # Errors
///
/// When it cannot be started or does not end in time. An exit code other than 0 is no error
/// here: see [`Finished::text`].
pub fn finish(command: &mut Command, limit: Duration) -> Result<Finished> {
    let what = line_of(command);
    let mut stdout = tempfile::tempfile().context("cannot make a file for output")?;
    let mut stderr = tempfile::tempfile().context("cannot make a file for errors")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start `{what}`"))?;
    let ended = wait::until(&format!("the end of `{what}`"), limit, || {
        Ok(child.try_wait()?)
    });
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    let mut finished = Finished {
        what,
        status,
        stdout: Vec::new(),
        stderr: String::new(),
    };
    stdout.rewind()?;
    stdout.read_to_end(&mut finished.stdout)?;
    stderr.rewind()?;
    stderr.read_to_string(&mut finished.stderr)?;
    Ok(finished)
}

/// The command line as a person would type it.
fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
