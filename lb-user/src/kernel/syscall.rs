//! The calls of bpf(2) that aya 0.14 does not have: batches, deleting from an array of maps, a
//! link's interface, updating and detaching a pinned link.
//!
//! The agent's only `unsafe`. [`RawMap`] knows its own sizes from the kernel and checks every
//! buffer against them.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use aya_obj::generated::{bpf_cmd, bpf_link_type, bpf_map_type};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the kernel says of a map, besides its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// `BPF_MAP_TYPE_…`, as a number.
    pub(super) kind: u32,
    /// Bytes of a key.
    pub(super) key: u32,
    /// Bytes of a value, of one CPU.
    pub(super) value: u32,
    /// `BPF_F_…`
    pub(super) flags: u32,
    /// Most entries it holds.
    pub(super) entries: u32,
}

/// Where in a map a batch goes on. The kernel writes a word, or a key.
pub(super) type Cursor = [u8; 64];

/// What a lookup of a batch has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// How many entries.
    pub(super) count: usize,
    /// Whether those were the last.
    pub(super) is_last: bool,
}

/// A map, seen as bytes.
#[derive(Debug)]
pub(super) struct RawMap {
    fd: OwnedFd,
    shape: Shape,
    /// Bytes of a value as bpf(2) passes it: of all CPUs, where each has its own.
    stride: usize,
}

impl RawMap {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let shape = map_shape(fd.as_fd())?;
        let is_per_cpu = [
            bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH,
            bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY,
            bpf_map_type::BPF_MAP_TYPE_LRU_PERCPU_HASH,
        ]
        .map(|kind| kind as u32)
        .contains(&shape.kind);
        let stride = if is_per_cpu {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            (shape.value as usize).next_multiple_of(8) * cpus
        } else {
            shape.value as usize
        };
        Ok(Self { fd, shape, stride })
    }

    /// Another descriptor of the map behind `fd`.
    pub(super) fn duplicate(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Self::new(fd.try_clone_to_owned()?)
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes of a key.
    pub(super) fn key_bytes(&self) -> usize {
        self.shape.key as usize
    }

    /// Bytes of a value as batches carry it.
    pub(super) fn value_bytes(&self) -> usize {
        self.stride
    }

    /// `BPF_MAP_LOOKUP_BATCH` (Linux 5.6): as many entries as fit into both buffers, from `from`
    /// on, or from the beginning. `next` becomes the place to go on from.
    pub(super) fn lookup_batch(
        &self,
        from: Option<&Cursor>,
        next: &mut Cursor,
        keys: &mut [u8],
        values: &mut [u8],
    ) -> io::Result<Found> {
        assert!(self.key_bytes() <= next.len());
        let count = (keys.len() / self.key_bytes()).min(values.len() / self.stride);
        let mut batch = Batch {
            in_batch: from.map_or(0, |cursor| cursor.as_ptr() as u64),
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(count).map_err(io::Error::other)?,
            map: number(self.fd.as_fd()),
            ..Batch::default()
        };
        let is_last = match call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut batch) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        Ok(Found {
            count: batch.count as usize,
            is_last,
        })
    }

    /// `BPF_MAP_LOOKUP_ELEM`: copies the value of `key`; false if there is no such entry. An entry of
    /// an LRU does not count as used by it (`map_lookup_elem_sys_only`, Linux 5.2).
    pub(super) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert_eq!(key.len(), self.key_bytes());
        assert_eq!(value.len(), self.value_bytes());
        let mut element = Element {
            map: number(self.fd.as_fd()),
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            ..Element::default()
        };
        match call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut element) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            result => result.map(|_| true),
        }
    }

    /// `BPF_MAP_UPDATE_BATCH` (Linux 5.6): writes the entries in both buffers.
    pub(super) fn update_batch(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.key_bytes();
        assert_eq!(count * self.stride, values.len());
        if count == 0 {
            return Ok(());
        }
        let mut batch = Batch {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: u32::try_from(count).map_err(io::Error::other)?,
            map: number(self.fd.as_fd()),
            ..Batch::default()
        };
        call(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut batch).map(drop)
    }

    /// `BPF_MAP_DELETE_ELEM`. Nothing happens if there is no such entry.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<()> {
        assert_eq!(key.len(), self.key_bytes());
        let mut element = Element {
            map: number(self.fd.as_fd()),
            key: key.as_ptr() as u64,
            ..Element::default()
        };
        match call(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut element) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result.map(drop),
        }
    }
}

/// An XDP link, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkState {
    /// Id of the program it runs.
    pub(super) program: u32,
    /// The interface it is on; 0 if that is gone or the program was taken off.
    pub(super) ifindex: u32,
}

/// `BPF_OBJ_GET`: opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    get_pin(path, 0)
}

/// `BPF_OBJ_GET` of a map through which nothing can be written (Linux 4.15).
pub(super) fn open_pin_to_read(path: &Path) -> io::Result<OwnedFd> {
    get_pin(path, READ_ONLY)
}

fn get_pin(path: &Path, flags: u32) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut pin = Pin {
        path: path.as_ptr() as u64,
        flags,
        ..Pin::default()
    };
    owned(call(bpf_cmd::BPF_OBJ_GET, &mut pin)?)
}

/// `BPF_MAP_GET_FD_BY_ID` of a map through which nothing can be written (Linux 4.15). Needs
/// `CAP_SYS_ADMIN`.
pub(super) fn open_map_to_read(id: u32) -> io::Result<OwnedFd> {
    let mut number = MapNumber {
        id,
        flags: READ_ONLY,
        ..MapNumber::default()
    };
    owned(call(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut number)?)
}

/// `BPF_F_RDONLY` (Linux `include/uapi/linux/bpf.h`).
const READ_ONLY: u32 = 1 << 3;

/// The descriptor that bpf(2) has answered with.
fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    #[expect(unsafe_code, reason = "bpf(2) answers with a bare number")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_OBJ_GET_INFO_BY_FD` of an XDP link (Linux 5.9).
pub(super) fn link_state(link: BorrowedFd<'_>) -> io::Result<LinkState> {
    let mut info = LinkInfo::default();
    info_of(link, &mut info)?;
    if info.kind != bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        return Err(io::Error::other("it is no link of an XDP program"));
    }
    Ok(LinkState {
        program: info.program,
        ifindex: info.ifindex,
    })
}

/// `BPF_LINK_UPDATE` (Linux 5.9): from the next packet on the link runs `program`.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = LinkUpdate {
        link: number(link),
        program: number(program),
        ..LinkUpdate::default()
    };
    call(bpf_cmd::BPF_LINK_UPDATE, &mut update).map(drop)
}

/// `BPF_LINK_DETACH` (Linux 5.9): takes the program off now, whoever else holds the link.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    call(bpf_cmd::BPF_LINK_DETACH, &mut number(link)).map(drop)
}

fn map_shape(map: BorrowedFd<'_>) -> io::Result<Shape> {
    let mut info = MapInfo::default();
    info_of(map, &mut info)?;
    Ok(Shape {
        kind: info.kind,
        key: info.key,
        value: info.value,
        flags: info.flags,
        entries: info.entries,
    })
}

fn info_of<T: FromBytes + IntoBytes>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut question = Question {
        fd: number(object),
        length: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(info) as u64,
    };
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut question).map(drop)
}

/// bpf(2). `attributes` is the beginning of a `union bpf_attr`; the kernel takes what is missing
/// for zero.
fn call<T: FromBytes + IntoBytes>(command: bpf_cmd, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes `attributes`, which is plain bytes, within the length
    // given. Where it has pointers, the callers above have taken them from slices or structures
    // that live until after the call, that they have not lent otherwise, and that are as long as
    // the kernel takes from the counts and sizes beside them.
    #[expect(unsafe_code, reason = "there is no safe bpf(2)")]
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Declares a part of `union bpf_attr`, or what the kernel answers with (Linux
/// `include/uapi/linux/bpf.h`): without padding, every bit pattern valid.
macro_rules! kernel {
    ($($(#[$meta:meta])* struct $name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        struct $name { $($field: $ty),* }
    )*};
}

kernel! {
    /// For the commands that take many entries at once.
    struct Batch {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map: u32,
        element_flags: u64,
        flags: u64,
    }

    /// For the commands that take one entry.
    struct Element {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }

    /// For `BPF_OBJ_GET`.
    struct Pin {
        path: u64,
        fd: u32,
        flags: u32,
    }

    /// For `BPF_MAP_GET_FD_BY_ID`.
    struct MapNumber {
        id: u32,
        next: u32,
        flags: u32,
    }

    /// For `BPF_OBJ_GET_INFO_BY_FD`.
    struct Question {
        fd: u32,
        length: u32,
        info: u64,
    }

    /// For `BPF_LINK_UPDATE`.
    struct LinkUpdate {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }

    /// The beginning of `struct bpf_map_info`.
    struct MapInfo {
        kind: u32,
        id: u32,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
    }

    /// The beginning of `struct bpf_link_info`, of an XDP link.
    struct LinkInfo {
        kind: u32,
        id: u32,
        program: u32,
        padding: u32,
        ifindex: u32,
        rest: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets that the kernel reads and writes at, against aya's generated bindings.
    #[test]
    fn the_structures_are_laid_out_as_the_kernel_has_them() {
        use aya_obj::generated::{
            bpf_attr__bindgen_ty_3 as TheirBatch, bpf_link_info, bpf_map_info,
        };
        use std::mem::offset_of;

        assert_eq!(size_of::<Batch>(), size_of::<TheirBatch>());
        assert_eq!(offset_of!(Batch, count), offset_of!(TheirBatch, count));
        assert_eq!(offset_of!(Batch, map), offset_of!(TheirBatch, map_fd));
        assert_eq!(offset_of!(MapInfo, key), offset_of!(bpf_map_info, key_size));
        assert_eq!(
            offset_of!(MapInfo, entries),
            offset_of!(bpf_map_info, max_entries)
        );
        assert_eq!(
            offset_of!(MapInfo, flags),
            offset_of!(bpf_map_info, map_flags)
        );
        assert_eq!(
            offset_of!(LinkInfo, program),
            offset_of!(bpf_link_info, prog_id)
        );
        assert_eq!(
            offset_of!(LinkInfo, ifindex),
            offset_of!(bpf_link_info, __bindgen_anon_1)
        );
    }
}
