//! The load balancer, run by the commands an operator would type.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_tests::{process::finish, wait};
use serde::Deserialize;

/// How long a command of `lb-user` may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// `lb-user`, run as an operator would.
pub(crate) struct LoadBalancer {
    program: PathBuf,
    instance: String,
    ended: bool,
}

/// The parts of `status -o json` that are read here.
#[derive(Deserialize)]
struct Status {
    services: Vec<ServiceStatus>,
}

#[derive(Deserialize)]
struct ServiceStatus {
    backends: Vec<BackendStatus>,
}

#[derive(Deserialize)]
struct BackendStatus {
    mac: Option<String>,
}

impl LoadBalancer {
    /// An instance of its own for each mode that is shown. Nothing runs yet.
    pub(crate) fn new(mode: &str) -> Result<Self> {
        let program = env::var_os("LB_USER")
            .map(PathBuf::from)
            .or_else(|| Some(env::current_exe().ok()?.with_file_name("lb-user")))
            .filter(|program| program.exists())
            .context("lb-user is not built: cargo xtask demo")?;
        Ok(Self {
            program,
            instance: format!("demo-{mode}-{}", std::process::id()),
            ended: false,
        })
    }

    /// How each of its command lines begins.
    pub(crate) fn invocation(&self) -> String {
        format!("{} --instance {}", self.program.display(), self.instance)
    }

    /// Shows a command, runs it and shows what it printed.
    pub(crate) fn command(&self, line: &str) -> Result<()> {
        println!("$ sudo lb-user --instance {} {line}", self.instance);
        print!("{}", self.output(line)?);
        Ok(())
    }

    fn output(&self, line: &str) -> Result<String> {
        let mut command = Command::new(&self.program);
        command
            .args(["--instance", &self.instance])
            .args(line.split_whitespace());
        finish(&mut command, COMMAND_LIMIT)?
            .text()
            .with_context(|| format!("lb-user {line}"))
    }

    /// Waits until every backend's MAC address is known.
    pub(crate) fn wait_until_resolved(&self) -> Result<()> {
        wait::until_true("the backends' MAC addresses", wait::LONG, || {
            let status: Status = serde_json::from_str(&self.output("status -o json")?)?;
            Ok(status
                .services
                .iter()
                .flat_map(|s| &s.backends)
                .all(|b| b.mac.is_some()))
        })
    }

    /// Where its maps and programs are pinned.
    pub(crate) fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/lb-user").join(&self.instance)
    }

    /// Where its configuration is kept.
    pub(crate) fn state(&self) -> PathBuf {
        Path::new("/var/lib/lb-user").join(&self.instance)
    }

    /// Takes the program off the interfaces and forgets the configuration.
    pub(crate) fn end(mut self) -> Result<()> {
        self.command("detach")?;
        self.ended = true;
        std::fs::remove_dir_all(self.state()).context("cannot remove the demo's state")
    }

    /// Leaves it as it is.
    pub(crate) fn forget(mut self) {
        self.ended = true;
    }
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        if !self.ended {
            // The demo has failed and says why; this only tidies up.
            let _ = self.output("detach");
            let _ = std::fs::remove_dir_all(self.state());
        }
    }
}
