//! The agent's log: lines on standard error, each with its time (RFC 3339, UTC).

use std::{io::Write as _, time::SystemTime};

use log::{LevelFilter, Log, Metadata, Record};

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        let level = record.level().as_str().to_lowercase();
        // A log that cannot be written is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{time} {level} {}", record.args());
    }

    fn flush(&self) {}
}

/// Makes [`log`]'s macros write.
pub(super) fn begin() {
    static LINES: Lines = Lines;
    if log::set_logger(&LINES).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
