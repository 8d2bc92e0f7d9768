//! What the data path is to reach, judged by medians.

use lb_common::abi::Mode;
use serde::Serialize;

use crate::{harness, live, path::Path};

/// The program alone, one known flow, over the empty program: nanoseconds.
const ALONE: f64 = 120.0;
/// One known flow, relative to the redirect floor.
const TO_REDIRECT: f64 = 1.5;
/// Many known flows, relative to the table floor.
const TO_TABLE: f64 = 1.3;

/// A bound and what was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) reached: f64,
    pub(crate) below: f64,
    pub(crate) met: bool,
}

/// The targets that the rows say something about.
pub(crate) fn judge(harness: &[harness::Row], live: &[live::Row]) -> Vec<Target> {
    let nat = Path::Known.name(Mode::NAT);
    let alone = harness
        .iter()
        .filter(|row| row.path == nat && row.flows == 1)
        .map(|row| {
            let what = format!(
                "{nat} {} {}: ns over the empty program",
                row.family, row.protocol
            );
            target(what, row.nanos.median, ALONE)
        });
    let through = live
        .iter()
        .filter(|row| row.path == "nat")
        .map(|row| match row.to_table {
            Some(ratio) => target(
                format!("nat {}, {} flows: x table floor", row.protocol, row.flows),
                ratio.median,
                TO_TABLE,
            ),
            None => target(
                format!("nat {}, 1 flow: x redirect floor", row.protocol),
                row.to_redirect.median,
                TO_REDIRECT,
            ),
        });
    alone.chain(through).collect()
}

fn target(what: String, reached: f64, below: f64) -> Target {
    Target {
        what,
        reached,
        below,
        met: reached < below,
    }
}
