//! Numbers for people and for programs.

use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

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
pub(crate) fn table(
    header: &[&str],
    texts: usize,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(texts) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
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
