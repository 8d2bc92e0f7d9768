//! The client: curl's requests, none of which may be lost.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::topology::Network;
use serde::Deserialize;

/// What curl says of one request.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Answer {
    http_code: u16,
    /// The address that curl spoke from.
    pub(crate) local_ip: String,
    errormsg: Option<String>,
}

/// Sends `count` requests, each over a connection of its own, eight at a time.
pub(crate) fn requests(network: &Network, to: SocketAddr, count: usize) -> Result<Vec<Answer>> {
    let mut command = Command::new("curl");
    command
        .args([
            "--silent",
            "--parallel",
            "--parallel-max",
            "8",
            "--max-time",
            "10",
        ])
        .args(["--header", "Connection: close", "--output", "/dev/null"])
        .args(["--write-out", "%{json}\\n"])
        .arg(format!("http://{to}/?[1-{count}]"));
    let finished = network
        .client
        .netns
        .finish(&mut command, Duration::from_secs(60))?;
    // curl ends with an error if any request failed; which ones, its lines tell.
    let text = String::from_utf8(finished.stdout).context("curl")?;
    let answers: Vec<Answer> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("curl: {line}")))
        .collect::<Result<_>>()?;
    ensure!(
        answers.len() == count,
        "curl told of {} requests, not {count}",
        answers.len()
    );
    Ok(answers)
}

/// Fails if a request was lost.
pub(crate) fn judge(answers: &[Answer]) -> Result<()> {
    let lost: Vec<&Answer> = answers.iter().filter(|a| a.http_code != 200).collect();
    match lost.first() {
        None => Ok(()),
        Some(first) => bail!(
            "{} of {} requests were lost, the first with status {} ({})",
            lost.len(),
            answers.len(),
            first.http_code,
            first.errormsg.as_deref().unwrap_or("no message")
        ),
    }
}
