//! The backends' access logs: who got how many requests, and from which address.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Result, ensure};
use comfy_table::{Table, presets};
use lb_tests::{
    server::{Access, Nginx},
    topology::{Family, Network},
    wait,
};

use crate::client::Answer;

/// The access log lines of each server since `before`, once all `count` are written.
pub(crate) fn since(servers: &[Nginx], before: &[usize], count: usize) -> Result<Vec<Vec<Access>>> {
    wait::until(
        "a line for every request in the access logs",
        wait::LONG,
        || {
            let logs: Vec<Vec<Access>> = servers
                .iter()
                .zip(before)
                .map(|(server, &before)| Ok(server.accesses()?.split_off(before)))
                .collect::<Result<_>>()?;
            let lines: usize = logs.iter().map(Vec::len).sum();
            Ok((lines >= count).then_some(logs))
        },
    )
}

/// Prints the share of each backend and the addresses in its log, beside the client's own.
pub(crate) fn show_shares(
    network: &Network,
    servers: &[Nginx],
    logs: &[Vec<Access>],
) -> Result<()> {
    let total: usize = logs.iter().map(Vec::len).sum();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "backend",
        "requests",
        "share",
        "remote_addr in its access log",
        "the client's own address",
    ]);
    for (server, log) in servers.iter().zip(logs) {
        let mut addresses: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for access in log {
            *addresses.entry(access.remote_addr).or_default() += 1;
        }
        let seen: Vec<String> = addresses
            .iter()
            .map(|(address, lines)| format!("{address} ({lines} lines)"))
            .collect();
        table.add_row([
            server.name().to_owned(),
            log.len().to_string(),
            format!("{:.1} %", 100.0 * log.len() as f64 / total as f64),
            seen.join(", "),
            network.client.address(Family::V4).to_string(),
        ]);
    }
    println!("\n{table}");
    Ok(())
}

/// Fails if a backend saw another address than the client's.
pub(crate) fn check_addresses(
    network: &Network,
    logs: &[Vec<Access>],
    answers: &[Answer],
) -> Result<()> {
    let own: IpAddr = network.client.address(Family::V4);
    ensure!(
        answers.iter().all(|a| a.local_ip == own.to_string()),
        "curl did not use the client's address {own}"
    );
    for access in logs.iter().flatten() {
        ensure!(
            access.remote_addr == own,
            "an access log has {} where the client's address {own} should be",
            access.remote_addr
        );
    }
    Ok(())
}
