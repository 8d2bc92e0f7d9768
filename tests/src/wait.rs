//! Waiting for a condition: looked at again and again until it holds or a deadline passes.
//!
//! Promise: no caller sleeps for luck. What was waited for is named in the error.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Time between two looks: short against what is waited for, long against the cost of a look.
const PAUSE: Duration = Duration::from_millis(5);

/// How long the slowest thing a test waits for may take on a busy two-core machine.
pub const LONG: Duration = Duration::from_secs(20);

/// Calls `look` until it gives a value, at most `limit` long.
///
/// # Errors
///
/// When `look` fails, at once; when the time is up, with `what` was waited for.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().with_context(|| format!("while waiting for {what}"))? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(PAUSE);
    }
}

/// As [`until`], for a condition that is true or false.
///
/// # Errors
///
/// As [`until`].
pub fn until_true(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(what, limit, || Ok(look()?.then_some(())))
}
