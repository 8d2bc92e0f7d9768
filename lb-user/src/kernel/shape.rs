//! What the program wants of every map, what is pinned, and whether the two fit.

use std::{collections::BTreeMap, fmt, os::fd::AsFd as _};

use anyhow::{Context, Result, bail};
use aya_obj::{Object, generated::bpf_map_type};

use super::{Sizes, syscall::Shape};

/// The maps that are made anew with every program: their contents mean nothing to the next one.
const PASSING: [&str; 3] = ["events", "scratch", "AYA_LOGS"];

/// What the program's object asks for, sizes as the agent wants them: the maps that are pinned.
pub(super) fn wanted(object: &[u8], sizes: &Sizes) -> Result<BTreeMap<String, Shape>> {
    let object = Object::parse(object).context("the program that is built in cannot be read")?;
    let mut wanted = BTreeMap::new();
    for (name, map) in object.maps {
        // Sections with variables are maps, too: `.rodata`, `.bss`.
        if name.starts_with('.') || PASSING.contains(&name.as_str()) {
            continue;
        }
        let shape = Shape {
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            flags: map.map_flags(),
            entries: sizes.of(&name).unwrap_or(map.max_entries()),
        };
        wanted.insert(name, shape);
    }
    Ok(wanted)
}

/// Whether what is pinned can be used as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// As it is.
    Same,
    /// Its contents can be copied into a map of the size that is wanted.
    OtherSize,
}

/// Compares the map `name` as it is `found` pinned with what is `wanted`.
///
/// # Errors
///
/// When it holds something else. The line says what, and what to do.
pub(super) fn compare(name: &str, found: Shape, wanted: Shape) -> Result<Fit> {
    let without_size = |shape| Shape {
        entries: 0,
        ..shape
    };
    if without_size(found) != without_size(wanted) {
        bail!(
            "the pinned map {name} has another layout than this version needs: it is {}, wanted is {}; {ADVICE}",
            Layout(found),
            Layout(wanted)
        );
    }
    Ok(if found.entries == wanted.entries {
        Fit::Same
    } else {
        Fit::OtherSize
    })
}

/// What an operator can do about maps of another layout.
pub(super) const ADVICE: &str = "the old program runs on; `lb-user detach` with the old version, or \
                                 `lb-user attach --discard` with this one, gives up its flows and \
                                 counters";

struct Layout(Shape);

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape {
            kind,
            key,
            value,
            flags,
            entries: _,
        } = self.0;
        write!(f, "{} ({key} -> {value} bytes", kind_name(kind))?;
        if flags != 0 {
            write!(f, ", flags {flags:#x}")?;
        }
        f.write_str(")")
    }
}

fn kind_name(kind: u32) -> String {
    match bpf_map_type::try_from(kind) {
        Ok(kind) => format!("{kind:?}")
            .trim_start_matches("BPF_MAP_TYPE_")
            .to_lowercase(),
        Err(_) => format!("type {kind}"),
    }
}

/// The shape of an inner map of the array of lookup tables, of `cells` cells.
pub(super) const fn table(cells: u32) -> Shape {
    Shape {
        kind: bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        key: 4,
        value: 4,
        flags: super::tables::INNER_MAP,
        entries: cells,
    }
}

/// The shape of a map that is open.
pub(super) fn of(map: &aya::maps::MapData) -> Result<Shape> {
    Ok(super::syscall::RawMap::duplicate(map.fd().as_fd())?.shape())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOWS: Shape = Shape {
        kind: bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32,
        key: 24,
        value: 60,
        flags: 0,
        entries: 1024,
    };

    #[test]
    fn another_size_is_no_other_layout() {
        let larger = Shape {
            entries: 4096,
            ..FLOWS
        };
        assert_eq!(compare("flows", FLOWS, FLOWS).expect("the same"), Fit::Same);
        assert_eq!(
            compare("flows", FLOWS, larger).expect("another size"),
            Fit::OtherSize
        );
    }

    #[test]
    fn another_layout_is_refused_in_one_line_that_names_both() {
        let wider = Shape { value: 64, ..FLOWS };
        let error = compare("flows", FLOWS, wider).expect_err("another layout");
        let line = error.to_string();
        assert!(line.contains("map flows"), "{line}");
        assert!(line.contains("lru_hash (24 -> 60 bytes)"), "{line}");
        assert!(line.contains("lru_hash (24 -> 64 bytes)"), "{line}");
        assert!(line.contains("lb-user attach --discard"), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}
