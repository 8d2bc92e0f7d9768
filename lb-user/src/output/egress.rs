//! The networks whose own connections are masqueraded.

use super::{Rates, bytes, number, table, text};
use crate::api::{Egress, Stats};

/// `egress list`.
pub fn egress(egress: &[Egress]) -> String {
    let heads = ["EGRESS", "OUT OF", ">CONNECTIONS", ">OUT", ">BACK", "NOTE"];
    let mut table = table(&heads);
    for Egress {
        prefix,
        interface,
        interfaces,
        connections,
        out,
        back,
        note,
    } in egress
    {
        let names = interfaces.join(" ");
        let way = match (interface, names.is_empty()) {
            (_, false) => names,
            (Some(interface), true) => interface.clone(),
            (None, true) => "-".to_owned(),
        };
        table.add_row([
            prefix,
            &way,
            &number(*connections),
            &bytes(out.bytes),
            &bytes(back.bytes),
            note.as_deref().unwrap_or(""),
        ]);
    }
    text(&table)
}

/// The networks in `stats`.
pub(super) fn rates(rates: &Rates, now: &Stats, unit: &str) -> String {
    let heads = [
        "EGRESS".to_owned(),
        format!(">PACKETS OUT{unit}"),
        format!(">BYTES OUT{unit}"),
        format!(">PACKETS BACK{unit}"),
        format!(">BYTES BACK{unit}"),
        format!(">CONNECTIONS{unit}"),
    ];
    let mut table = table(&heads.each_ref().map(|h| &**h));
    for egress in &now.egress {
        let key = format!("egress {}", egress.prefix);
        let prefix = &egress.prefix;
        table.add_row(rates.row(&key, prefix, &egress.out, &egress.back, egress.connections));
    }
    text(&table)
}
