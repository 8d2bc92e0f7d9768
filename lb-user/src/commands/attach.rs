//! `attach`: asks the agent that runs, or starts one in the background and waits until it is
//! ready.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::print::{edited, json, line};
use crate::{
    agent::READY,
    api::{Edited, Edits, client::Client},
    cli::{Attach, Form, Host},
    config::{Edit, raw::RawInterface},
    instance::Instance,
    state::Folder,
};

pub(super) async fn attach(
    instance: &Instance,
    client: &Client,
    form: Form,
    options: &Attach,
) -> Result<()> {
    if !client.is_there().await {
        return start(instance, form, options);
    }
    let Host {
        netns,
        no_sysctl,
        no_address,
        discard,
        log_packets,
    } = &options.host;
    let status = client.status().await?;
    ensure!(
        netns.is_none() || *netns == status.netns,
        "the agent of instance {:?} runs in {}: give --instance for another agent",
        instance.name(),
        status.netns.map_or_else(
            || "the host's network namespace".to_owned(),
            |name| format!("network namespace {name}")
        )
    );
    ensure!(
        ![no_sysctl, no_address, discard, log_packets].contains(&&true),
        "--no-sysctl, --no-address, --discard and --log-packets are for starting an agent, and one \
         runs: sudo lb-user detach{} first",
        instance.option()
    );
    let edits = options
        .interfaces
        .iter()
        .map(|name| Edit::InterfaceAdd {
            interface: RawInterface {
                name: name.clone(),
                xdp_mode: options.xdp_mode,
            },
        })
        .collect();
    let done = client
        .edit(&Edits {
            edits,
            dry_run: false,
        })
        .await?;
    edited(form, &done)
}

/// Starts the agent and prints what it did.
fn start(instance: &Instance, form: Form, options: &Attach) -> Result<()> {
    crate::agent::check_rights(instance, "attach eth1")?;
    Folder::make(instance.state_folder())?;
    let path = instance.log();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write the agent's log {}", path.display()))?;
    let begin = log.metadata().context("agent's log")?.len();

    let mut agent = spawn(instance, options, log)?;
    let mut notes = Vec::new();
    let mut is_ready = false;
    if let Some(out) = agent.stdout.take() {
        for note in BufReader::new(out).lines().map_while(Result::ok) {
            if note == READY {
                is_ready = true;
                break;
            }
            notes.push(note);
        }
    }
    if !is_ready {
        agent.wait().context("cannot wait for the agent")?;
        bail!("{}", last_error(&path, begin));
    }
    let (warnings, notes): (Vec<String>, Vec<String>) = notes
        .into_iter()
        .partition(|note| note.starts_with("warning: "));
    if form == Form::Json {
        return json(&Edited {
            changes: Vec::new(),
            notes,
            warnings,
        });
    }
    for note in notes {
        line(&note)?;
    }
    for warning in warnings {
        super::print::aside(&warning);
    }
    line(&format!(
        "the agent runs in the background, its log is {}",
        path.display()
    ))
}

/// The agent, with nothing of this terminal's. It makes itself a session of its own.
fn spawn(instance: &Instance, options: &Attach, log: File) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find lb-user itself")?;
    let Host {
        netns,
        no_sysctl,
        no_address,
        discard,
        log_packets,
    } = &options.host;
    let mut command = Command::new(program);
    command.args(["run", "--background", "--instance", instance.name()]);
    command.args(["--xdp-mode", options.xdp_mode.name()]);
    for interface in &options.interfaces {
        command.args(["--attach", interface]);
    }
    if let Some(netns) = netns {
        command.args(["--netns", netns]);
    }
    for (is_given, flag) in [
        (no_sysctl, "--no-sysctl"),
        (no_address, "--no-address"),
        (discard, "--discard"),
        (log_packets, "--log-packets"),
    ] {
        if *is_given {
            command.arg(flag);
        }
    }
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    command.spawn().context("cannot start the agent")
}

/// The agent's last words since `begin`.
fn last_error(log: &Path, begin: u64) -> String {
    let mut text = String::new();
    let read = File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(begin))?;
        file.read_to_string(&mut text)
    });
    let words = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "));
    match (read, words) {
        (Ok(_), Some(words)) => words.to_owned(),
        _ => format!("the agent ended while it started: see {}", log.display()),
    }
}
