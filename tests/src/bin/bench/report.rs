//! Numbers for people and for programs.

use std::{fs, thread, time::Instant};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use lb_common::{datapath::parse::Family, wire::ip};
use serde::Serialize;

use crate::{harness, live, targets::Target};

/// Everything that was measured: what `-o json` prints.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Where.
    pub(crate) machine: Machine,
    /// In the test harness.
    pub(crate) harness: Vec<harness::Row>,
    /// With live frames.
    pub(crate) live: Vec<live::Row>,
    /// What the data path was to reach.
    pub(crate) targets: Vec<Target>,
}

/// The machine, as far as it explains figures.
#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// The mitigation of Spectre v2. Retpolines double what the kernel's own ways and the floors cost
    /// and leave the program's cost as it is, so ratios of machines with and without differ.
    pub(crate) spectre_v2: String,
    /// Processes that wanted a CPU in the minute before the run began. More than a few tenths: others
    /// were working, and medians are too high.
    pub(crate) load: f64,
}

impl Machine {
    /// This one, now.
    pub(crate) fn here() -> Result<Self> {
        let load = fs::read_to_string("/proc/loadavg")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let spectre_v2 = fs::read_to_string("/sys/devices/system/cpu/vulnerabilities/spectre_v2")
            .unwrap_or_else(|_| "unknown".to_owned());
        Ok(Self {
            kernel: kernel.trim().to_owned(),
            cpu: model
                .unwrap_or("unknown CPU")
                .trim_start_matches([' ', '\t', ':'])
                .to_owned(),
            spectre_v2: spectre_v2.trim().to_owned(),
            cpus: thread::available_parallelism()?.get(),
            load: load.split(' ').next().unwrap_or_default().parse()?,
        })
    }
}

impl Report {
    /// The tables for people.
    pub(crate) fn text(&self) -> String {
        let Machine {
            kernel,
            cpu,
            cpus,
            spectre_v2,
            load,
        } = &self.machine;
        let mut text = format!(
            "Linux {kernel}, {cpus} x {cpu}, load {load} before the run\nspectre_v2: {spectre_v2}\n"
        );
        if !self.harness.is_empty() {
            text += "\nTest harness: the program alone, over an empty one (known flows: all in the table)\n\n";
            text += &table(
                &["path", "", "", "flows", "ns/packet", "least", "most"],
                3,
                self.harness.iter().map(harness_line),
            );
        }
        if !self.live.is_empty() {
            text +=
                "\n\nLive frames through veth: generator, load balancer and sink on one core\n\n";
            text += &table(
                &[
                    "path",
                    "",
                    "flows",
                    "packets/s",
                    "ns/packet",
                    "least",
                    "most",
                    "x redirect",
                    "x table",
                ],
                2,
                self.live.iter().map(live_line),
            );
        }
        if !self.targets.is_empty() {
            text += "\n\nTargets\n\n";
            let line = |target: &Target| {
                let verdict = if target.met { "met" } else { "MISSED" };
                vec![
                    target.what.clone(),
                    verdict.to_owned(),
                    format!("{:.2}", target.reached),
                    format!("< {}", target.below),
                ]
            };
            text += &table(
                &["", "", "reached", "target"],
                2,
                self.targets.iter().map(line),
            );
        }
        text
    }
}

fn harness_line(row: &harness::Row) -> Vec<String> {
    let Summary {
        median,
        least,
        most,
    } = row.nanos;
    vec![
        row.path.to_owned(),
        row.family.to_owned(),
        row.protocol.to_owned(),
        row.flows.to_string(),
        format!("{median:.0}"),
        format!("{least:.0}"),
        format!("{most:.0}"),
    ]
}

fn live_line(row: &live::Row) -> Vec<String> {
    let Summary {
        median,
        least,
        most,
    } = row.nanos;
    let table = row.to_table.map(|ratio| format!("{:.2}", ratio.median));
    vec![
        row.path.to_owned(),
        row.protocol.to_owned(),
        row.flows.to_string(),
        format!("{:.0}", row.rate),
        format!("{median:.0}"),
        format!("{least:.0}"),
        format!("{most:.0}"),
        format!("{:.2}", row.to_redirect.median),
        table.unwrap_or_default(),
    ]
}

/// The middle and the ends of repeated measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    /// Of at least one value.
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self {
            median,
            least: sorted[0],
            most: sorted[sorted.len() - 1],
        }
    }
}

/// Says on standard error what is being done.
pub(crate) struct Progress {
    began: Instant,
}

impl Progress {
    pub(crate) fn begin() -> Self {
        Self {
            began: Instant::now(),
        }
    }

    /// One line, with the seconds since the beginning.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("[{:5.1} s] {what}", self.began.elapsed().as_secs_f64());
    }
}

/// A table whose first `texts` columns are words and whose others are numbers.
fn table(header: &[&str], texts: usize, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(texts) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// How an address family is printed.
pub(crate) const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}

/// How a protocol is printed.
pub(crate) const fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        ip::UDP => "udp",
        _ => "tcp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        let odd = Summary::of(&[3.0, 1.0, 20.0]);
        assert_eq!((odd.least, odd.median, odd.most), (1.0, 3.0, 20.0));
        assert_eq!(Summary::of(&[4.0, 1.0]).median, 2.5);
    }
}
