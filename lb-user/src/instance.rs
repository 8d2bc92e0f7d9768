//! Where an agent keeps what: several can run on one host, each under a name of its own.

use std::{env, path::PathBuf, str::FromStr};

/// The name of an agent, and the paths that follow from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    name: String,
}

impl FromStr for Instance {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=32).contains(&name.len()) && name.bytes().all(fits) {
            Ok(Self { name: name.into() })
        } else {
            Err("use 1 to 32 of a-z, 0-9 and -".into())
        }
    }
}

impl Instance {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder of what outlives the agent and the machine's next start. `LB_USER_STATE_DIR` moves
    /// its parent.
    pub fn state_folder(&self) -> PathBuf {
        root("LB_USER_STATE_DIR", "/var/lib/lb-user").join(&self.name)
    }

    /// The agent's log, when it runs in the background.
    pub fn log(&self) -> PathBuf {
        self.state_folder().join("agent.log")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_folder().join(format!("{}.sock", self.name))
    }

    /// The file that a running agent holds locked.
    pub fn lock(&self) -> PathBuf {
        self.run_folder().join(format!("{}.lock", self.name))
    }

    /// Folder of the socket and the lock. `LB_USER_RUN_DIR` moves it.
    pub fn run_folder(&self) -> PathBuf {
        root("LB_USER_RUN_DIR", "/run/lb-user")
    }

    /// Folder of the pinned maps and programs.
    pub fn pins(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf/lb-user").join(&self.name)
    }

    /// As an option that other commands need to reach this agent; empty for the default.
    pub fn option(&self) -> String {
        match &*self.name {
            "default" => String::new(),
            name => format!(" --instance {name}"),
        }
    }
}

fn root(variable: &str, default: &str) -> PathBuf {
    env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from(default), PathBuf::from)
}
