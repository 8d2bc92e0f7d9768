//! Printing. Whoever reads may stop reading: that is no error.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    api::{Edited, client::Client},
    cli::Form,
    output,
};

/// Prints `text` as it is.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit(0),
        result => result.context("cannot print"),
    }
}

/// Prints a line.
pub(crate) fn line(line: &str) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Prints JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Prints `value` in the form asked for.
pub(super) fn show<T: Serialize + ?Sized>(
    form: Form,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<()> {
    match form {
        Form::Json => json(value),
        Form::Table => text(&table(value)),
    }
}

/// A line to the person, not to the reader of the output.
pub(crate) fn aside(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// What was changed, and everything about it.
pub(super) fn edited(form: Form, done: &Edited) -> Result<()> {
    if form == Form::Json {
        return json(done);
    }
    changes(done)?;
    notes(done)
}

/// What is, or was, changed.
pub(super) fn changes(done: &Edited) -> Result<()> {
    if done.changes.is_empty() {
        return line("nothing to change");
    }
    done.changes.iter().try_for_each(|change| line(change))
}

/// What was done to the host, and what deserves a word.
pub(super) fn notes(done: &Edited) -> Result<()> {
    done.notes.iter().try_for_each(|note| line(note))?;
    for warning in &done.warnings {
        aside(&format!("warning: {warning}"));
    }
    Ok(())
}

/// `stats --watch`: until interrupted.
pub(super) async fn watch(client: &Client, form: Form, interval: Duration) -> Result<()> {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(100)));
    let mut before = None;
    loop {
        ticks.tick().await;
        let now = client.stats().await?;
        match form {
            Form::Json => line(&serde_json::to_string(&now)?)?,
            Form::Table => {
                if let Some(before) = &before {
                    let clear = if io::stdout().is_terminal() {
                        "\x1b[H\x1b[2J"
                    } else {
                        ""
                    };
                    text(&format!("{clear}{}\n", output::stats(&now, Some(before))))?;
                }
            }
        }
        before = Some(now);
    }
}
