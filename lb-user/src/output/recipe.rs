//! What was found of a recipe.

use super::{table, text};
use crate::recipe::check::Checked;

/// `recipe --check`: what there is, then what mends the rest, to be pasted.
pub fn checked(checked: &[Checked]) -> String {
    let mut table = table(&["", "NEED", "FOUND"]);
    let mut mending = String::new();
    for Checked {
        service: _,
        need,
        why,
        met,
        found,
        mend,
    } in checked
    {
        let word = match met {
            Some(true) => "ok",
            Some(false) => "missing",
            None => "?",
        };
        table.add_row([word, need, found]);
        if *met == Some(false) {
            mending += &format!("\n# {why}\n");
            mend.iter().for_each(|line| mending += &format!("{line}\n"));
        }
    }
    text(&table) + &mending
}
