//! All entries of a map, a batch at a time: reading and copying in bounded memory.
//!
//! A map may change meanwhile: an entry that is there from beginning to end is given exactly once;
//! of one that comes or goes nothing is promised.

use std::io;

use super::syscall::{Cursor, RawMap};

/// Entries of one batch. Grows when the kernel has more in one bucket of a hash map.
const ENTRIES: usize = 4096;

/// Reads a map from its beginning to its end.
#[derive(Debug)]
pub(super) struct Batches<'a> {
    map: &'a RawMap,
    cursor: Option<Cursor>,
    is_done: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// Some entries: as many keys as values, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch<'a> {
    pub(super) keys: &'a [u8],
    pub(super) values: &'a [u8],
}

impl<'a> Batches<'a> {
    pub(super) fn new(map: &'a RawMap) -> Self {
        let entries = ENTRIES.min(map.shape().entries as usize).max(1);
        Self {
            map,
            cursor: None,
            is_done: false,
            keys: vec![0; entries * map.key_bytes()],
            values: vec![0; entries * map.value_bytes()],
        }
    }

    /// The next entries; nothing after the last.
    pub(super) fn next(&mut self) -> io::Result<Option<Batch<'_>>> {
        while !self.is_done {
            let mut next = self.cursor.unwrap_or([0; 64]);
            let result = self.map.lookup_batch(
                self.cursor.as_ref(),
                &mut next,
                &mut self.keys,
                &mut self.values,
            );
            let found = match result {
                Ok(found) => found,
                // More in one bucket than fits: nothing was read.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    self.keys.resize(self.keys.len() * 2, 0);
                    self.values.resize(self.values.len() * 2, 0);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.cursor = Some(next);
            self.is_done = found.is_last;
            if found.count > 0 {
                return Ok(Some(Batch {
                    keys: &self.keys[..found.count * self.map.key_bytes()],
                    values: &self.values[..found.count * self.map.value_bytes()],
                }));
            }
        }
        Ok(None)
    }
}

/// Copies every entry of `from` into `to`, which has the same shape and perhaps another size. Of
/// an array the cells that both have. Returns how many were written.
pub(super) fn copy(from: &RawMap, to: &RawMap) -> io::Result<u64> {
    let is_array = is_array(from);
    let cells = to.shape().entries;
    let mut copied = 0;
    let mut batches = Batches::new(from);
    while let Some(Batch { keys, values }) = batches.next()? {
        let mut count = keys.len() / from.key_bytes();
        if is_array {
            // Keys of an array come in ascending order.
            count = keys
                .chunks_exact(from.key_bytes())
                .take_while(|key| index(key).is_some_and(|index| index < cells))
                .count();
        }
        to.update_batch(
            &keys[..count * from.key_bytes()],
            &values[..count * from.value_bytes()],
        )?;
        copied += count as u64;
    }
    Ok(copied)
}

/// Room that the living entries need: of an array up to its last living cell, of another map
/// their number.
pub(super) fn occupied(map: &RawMap, is_alive: impl Fn(&[u8]) -> bool) -> io::Result<u64> {
    let is_array = is_array(map);
    let mut occupied = 0;
    let mut seen = 0;
    let mut batches = Batches::new(map);
    while let Some(Batch { values, .. }) = batches.next()? {
        for value in values.chunks_exact(map.value_bytes()) {
            seen += 1;
            if is_alive(value) {
                occupied = if is_array { seen } else { occupied + 1 };
            }
        }
    }
    Ok(occupied)
}

fn is_array(map: &RawMap) -> bool {
    use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY};
    let kind = map.shape().kind;
    kind == BPF_MAP_TYPE_ARRAY as u32 || kind == BPF_MAP_TYPE_PERCPU_ARRAY as u32
}

fn index(key: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(key.try_into().ok()?))
}
