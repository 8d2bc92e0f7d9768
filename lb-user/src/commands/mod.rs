//! What each command does: most ask the agent and print its answer; `run`, and `detach` where no
//! agent runs, are the agent themselves.

mod attach;
mod decap;
mod edit;
pub(crate) mod print;
mod recipe;

use std::{fs, io::Read as _};

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

use crate::{
    agent,
    api::{Detach, Detached, Edits, FlowFilter, ReasonCount, client::Client},
    cli::{Backend, Cli, Command, Egress, Flows, Form, Service},
    config::{Config, Edit, RawConfig},
    instance::Instance,
    output, trace,
};
use print::{edited, json, line, show};

/// Carries out what was typed.
///
/// # Errors
///
/// One line that says what is wrong and what to do.
pub fn run(cli: Cli) -> Result<()> {
    let Cli {
        instance,
        output: form,
        command,
    } = cli;
    match &command {
        // These enter a network namespace, before any runtime has made a thread.
        Command::Run(options) => return agent::run(&instance, options),
        Command::Trace(options) => return trace::command(&instance, form, options),
        Command::Decap(command) => return decap::run(&instance, form, command),
        Command::Detach { interfaces } if interfaces.is_empty() => {
            let client = Client::new(&instance);
            if runtime()?.block_on(client.status_if_any())?.is_none() {
                let notes = agent::clean(&instance)?;
                return detached(form, &Detached { notes, ends: true });
            }
        }
        _ => {}
    }
    runtime()?.block_on(ask(&instance, form, command))
}

/// A runtime without threads.
pub(crate) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")
}

async fn ask(instance: &Instance, form: Form, command: Command) -> Result<()> {
    let client = Client::new(instance);
    match command {
        Command::Run(_) | Command::Trace(_) | Command::Decap(_) => {
            unreachable!("these have been run")
        }
        Command::Attach(options) => attach::attach(instance, &client, form, &options).await,
        Command::Detach { interfaces } => {
            detached(form, &client.detach(&Detach { interfaces }).await?)
        }
        Command::Service(Service::List) => {
            let services = client.status().await?.services;
            show(form, &services, |s| output::services(s))
        }
        Command::Service(command) => {
            let edit = edit::service(command)?;
            edited(form, &client.edit(&one(edit)).await?)
        }
        Command::Backend(Backend::List { service }) => backends(&client, form, service).await,
        Command::Backend(command) => {
            let edit = edit::backend(command);
            edited(form, &client.edit(&one(edit)).await?)
        }
        Command::Egress(Egress::List) => {
            let egress = client.stats().await?.egress;
            show(form, &egress, |egress| output::egress(egress))
        }
        Command::Egress(command) => {
            let edit = edit::egress(command);
            edited(form, &client.edit(&one(edit)).await?)
        }
        Command::Recipe {
            check: Some(file), ..
        } => recipe::check(instance, form, &file).await,
        Command::Recipe {
            service, backend, ..
        } => recipe::print(&client, form, service.unwrap_or_default(), backend).await,
        Command::Status => show(form, &client.status().await?, output::status),
        Command::Stats { watch: false, .. } => show(form, &client.stats().await?, |stats| {
            output::stats(stats, None)
        }),
        Command::Stats { interval, .. } => print::watch(&client, form, interval.0).await,
        Command::Flows(options) => flows(&client, form, options).await,
        Command::Reasons => {
            let interfaces = match client.is_there().await {
                true => Some(client.stats().await?.interfaces),
                false => None,
            };
            show(form, &ReasonCount::all(interfaces.as_deref()), |reasons| {
                output::reasons(reasons)
            })
        }
        Command::Export => show(form, &client.config().await?, RawConfig::to_toml),
        Command::Apply { file, dry_run } => apply(&client, form, &file, dry_run).await,
        Command::Events { follow } => {
            let each = |event| match form {
                Form::Json => line(&serde_json::to_string(&event)?),
                Form::Table => line(&output::event(&event)),
            };
            client.events(follow, each).await
        }
    }
}

fn detached(form: Form, done: &Detached) -> Result<()> {
    match form {
        Form::Json => json(done),
        Form::Table => done.notes.iter().try_for_each(|note| line(note)),
    }
}

fn one(edit: Edit) -> Edits {
    Edits {
        edits: vec![edit],
        dry_run: false,
    }
}

async fn backends(client: &Client, form: Form, of: Option<String>) -> Result<()> {
    let services = client.status().await?.services;
    if let Some(name) = &of {
        let is_there = services.iter().any(|service| service.name == *name);
        anyhow::ensure!(
            is_there,
            crate::config::Error::NoService {
                name: name.clone(),
                known: services.into_iter().map(|service| service.name).collect(),
            }
        );
    }
    let listed = services
        .iter()
        .filter(|service| of.as_ref().is_none_or(|name| service.name == *name))
        .flat_map(|service| service.backends.iter().map(move |b| (service, b)));
    match form {
        Form::Table => print::text(&output::backends(listed, output::Heads::AllServices)),
        Form::Json => {
            /// A backend with its service's name.
            #[derive(serde::Serialize)]
            struct Listed<'a> {
                service: &'a str,
                #[serde(flatten)]
                backend: &'a crate::api::Backend,
            }
            let listed: Vec<Listed<'_>> = listed
                .map(|(service, backend)| Listed {
                    service: &service.name,
                    backend,
                })
                .collect();
            json(&listed)
        }
    }
}

async fn flows(client: &Client, form: Form, options: Flows) -> Result<()> {
    let Flows {
        service,
        backend,
        client: address,
        limit,
        flush,
        summary,
    } = options;
    if summary {
        return show(form, &client.flow_summary().await?, output::flow_summary);
    }
    let filter = FlowFilter {
        service,
        backend,
        client: address,
        limit: Some(limit),
    };
    if flush {
        let filter = FlowFilter {
            limit: None,
            ..filter
        };
        return show(form, &client.flush(&filter).await?, |flushed| {
            format!("forgot {} flows\n", flushed.flows)
        });
    }
    let flows = client.flows(&filter).await?;
    show(form, &flows, |flows| output::flows(flows))?;
    if flows.len() == limit {
        print::aside(&format!(
            "only the first {limit} flows: give another --limit"
        ));
    }
    Ok(())
}

/// The text of a file, or of standard input for `-`, and what to call it.
fn read(file: &std::path::Path) -> Result<(String, String)> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read standard input")?;
        return Ok((text, "standard input".to_owned()));
    }
    let origin = file.display().to_string();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {origin}"))?;
    Ok((text, origin))
}

async fn apply(client: &Client, form: Form, file: &std::path::Path, dry_run: bool) -> Result<()> {
    let (text, origin) = read(file)?;
    let config = RawConfig::from_toml(&text, &origin)?;
    Config::check(&config)?;
    let mut edits = one(Edit::Replace { config });
    edits.dry_run = true;
    let planned = client.edit(&edits).await?;
    if dry_run {
        return edited(form, &planned);
    }
    if form == Form::Table {
        print::changes(&planned)?;
    }
    edits.dry_run = false;
    let done = client.edit(&edits).await?;
    match form {
        Form::Json => edited(form, &done),
        Form::Table => print::notes(&done),
    }
}
