//! The benchmark runs: every packet of every row takes the way that the row is about, none is lost.
//! What it takes is not asked here.

use std::{process::Command, time::Duration};

use lb_tests::process::finish;
use serde_json::Value;

/// On a busy machine, with a bench compiled without optimisation.
const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn every_packet_of_the_benchmark_takes_its_way() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(["datapath", "--quick", "-o", "json"]);
    let text = finish(&mut bench, LIMIT)
        .and_then(|finished| finished.text())
        .expect("the bench succeeds");
    let report: Value = serde_json::from_str(&text).expect("the bench prints JSON");

    // The floor and eight ways, of each family, with each number of flows.
    assert_eq!(rows(&report, "harness").len(), 2 * 2 * 9);
    let live = rows(&report, "live");
    for path in ["nat", "dsr-l2", "kernel: nftables stateful DNAT"] {
        assert!(
            live.iter().any(|row| row["path"] == path),
            "no {path} among {live:?}"
        );
    }
    for row in rows(&report, "harness").iter().chain(live) {
        let median = row["nanos"]["median"].as_f64().expect("a number");
        assert!(median.is_finite(), "{row}");
    }
}

fn rows<'r>(report: &'r Value, part: &str) -> &'r [Value] {
    report[part].as_array().expect("an array of rows")
}
