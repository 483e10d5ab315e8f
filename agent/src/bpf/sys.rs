//! Calls of bpf(2) and membarrier(2) that Aya 0.14 does not offer: inner maps with BTF types (so that their
//! dumps read in words) and their pins, deletion from an array of maps, grace periods.

use std::ffi::{CString, c_long};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

const BPF_MAP_CREATE: c_long = 0;
const BPF_MAP_LOOKUP_ELEM: c_long = 1;
const BPF_MAP_UPDATE_ELEM: c_long = 2;
const BPF_MAP_DELETE_ELEM: c_long = 3;
const BPF_OBJ_PIN: c_long = 6;
const BPF_OBJ_GET: c_long = 7;
const BPF_MAP_GET_FD_BY_ID: c_long = 14;
const BPF_OBJ_GET_INFO_BY_FD: c_long = 15;
const BPF_BTF_GET_FD_BY_ID: c_long = 19;
/// Linux 5.7.
const BPF_LINK_UPDATE: c_long = 29;
/// Linux 5.6.
const BPF_MAP_LOOKUP_BATCH: c_long = 24;
const BPF_MAP_DELETE_BATCH: c_long = 27;
/// `MEMBARRIER_CMD_GLOBAL`, Linux 4.3.
const MEMBARRIER_CMD_GLOBAL: c_long = 1;

/// `struct bpf_map_info` of include/uapi/linux/bpf.h, up to the BTF fields (Linux 4.18).
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, Clone, Copy, Debug)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_vmlinux_value_type_id: u32,
    netns_dev: u64,
    netns_ino: u64,
    btf_id: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
    reserved: u32,
}

/// `union bpf_attr` for `BPF_MAP_CREATE`, up to the BTF fields (Linux 4.18).
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
pub(super) struct InfoAttr {
    pub(super) fd: u32,
    pub(super) len: u32,
    pub(super) info: u64,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct ElementAttr {
    fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_LINK_UPDATE`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Swaps the program of a link in one step.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link: number(link.as_raw_fd())?,
        program: number(program.as_raw_fd())?,
        flags: 0,
        old_program: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// `union bpf_attr` for the calls that take many elements (Linux 5.6).
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl BatchAttr {
    fn of<K, V>(map: BorrowedFd<'_>, keys: *const K, values: *const V, count: usize) -> io::Result<Self> {
        Ok(Self {
            in_batch: 0,
            out_batch: 0,
            keys: keys.addr() as u64,
            values: values.addr() as u64,
            count: u32::try_from(count).map_err(io::Error::other)?,
            fd: number(map.as_raw_fd())?,
            elem_flags: 0,
            flags: 0,
        })
    }

    /// How many elements it came to, and why not to all.
    fn call(mut self, command: c_long) -> (usize, Option<io::Error>) {
        let error = bpf(command, &mut self).err();
        // Of a call that was refused as such the count says nothing.
        let count = match error.as_ref().and_then(io::Error::raw_os_error) {
            Some(libc::EFAULT | libc::EINVAL | libc::EPERM) => 0,
            Some(_) | None => usize::try_from(self.count).unwrap_or(0),
        };
        (count, error)
    }
}

/// Reads elements of a hash from a place on, which it moves on: how many, and an error where there are no more
/// (`ENOENT`, with the last ones), or a bucket holds more than asked for (`ENOSPC`).
pub(crate) fn lookup_batch<K: FromBytes + IntoBytes, V: FromBytes + IntoBytes>(
    map: BorrowedFd<'_>,
    at: &mut Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> (usize, Option<io::Error>) {
    let count = keys.len().min(values.len());
    let mut attr = match BatchAttr::of(map, keys.as_mut_ptr(), values.as_mut_ptr(), count) {
        Ok(attr) => attr,
        Err(error) => return (0, Some(error)),
    };
    let from = at.unwrap_or_default();
    let mut to = from;
    if at.is_some() {
        attr.in_batch = (&raw const from).addr() as u64;
    }
    attr.out_batch = (&raw mut to).addr() as u64;
    let (count, error) = attr.call(BPF_MAP_LOOKUP_BATCH);
    if error.as_ref().and_then(io::Error::raw_os_error) != Some(libc::ENOSPC) {
        *at = Some(to);
        return (count, error);
    }
    (0, error)
}

/// Writes an element, with flags of `BPF_MAP_UPDATE_ELEM`. The call that writes many takes none of these flags.
pub(crate) fn update<K: IntoBytes, V: IntoBytes>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    let mut attr = ElementAttr {
        fd: number(map.as_raw_fd())?,
        reserved: 0,
        key: std::ptr::from_ref(key).addr() as u64,
        value: std::ptr::from_ref(value).addr() as u64,
        flags,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Deletes elements; those that are not there have gone. Returns how many were.
pub(crate) fn delete_all<K: IntoBytes>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<u64> {
    let mut deleted = 0;
    let mut rest = keys;
    while !rest.is_empty() {
        let attr = BatchAttr::of(map, rest.as_ptr(), std::ptr::null::<u8>(), rest.len())?;
        let (count, error) = attr.call(BPF_MAP_DELETE_BATCH);
        deleted += count as u64;
        let skipped = match error {
            None => 0,
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => 1,
            Some(error) => return Err(error),
        };
        rest = rest.get(count + skipped..).unwrap_or_default();
    }
    Ok(deleted)
}

/// The number of the map in a slot of an array of maps.
pub(crate) fn inner_id(map: BorrowedFd<'_>, slot: u32) -> io::Result<Option<u32>> {
    let mut id = 0u32;
    let mut attr = ElementAttr {
        fd: number(map.as_raw_fd())?,
        reserved: 0,
        key: (&raw const slot).addr() as u64,
        value: (&raw mut id).addr() as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        outcome => outcome?,
    };
    Ok(Some(id))
}

/// A map by its number. Needs `CAP_SYS_ADMIN`.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0, 0];
    owned(bpf(BPF_MAP_GET_FD_BY_ID, &mut attr)?)
}

/// Pins a map in a bpffs, where nothing may be yet.
pub(crate) fn pin(map: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: path.as_ptr().addr() as u64, fd: number(map.as_raw_fd())?, flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// What is pinned there.
pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: path.as_ptr().addr() as u64, fd: 0, flags: 0 };
    owned(bpf(BPF_OBJ_GET, &mut attr)?)
}

/// Puts a map into a slot of an array of maps. Returns when no program that was running has the last one.
pub(crate) fn set_inner(map: BorrowedFd<'_>, slot: u32, inner: BorrowedFd<'_>) -> io::Result<()> {
    update(map, &slot, &number(inner.as_raw_fd())?, 0)
}

/// What a map is.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::new_zeroed();
    let mut attr = InfoAttr {
        fd: number(map.as_raw_fd())?,
        len: u32::try_from(size_of::<MapInfo>()).map_err(io::Error::other)?,
        info: (&raw mut info).addr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Makes a map of the same type, key and value as a pattern, with their BTF types where the process has `CAP_SYS_ADMIN`:
/// without it the kernel hands out no BTF by number, and `bpftool` shows this map as bytes.
pub(crate) fn create_like(pattern: &MapInfo, name: &str, max_entries: u32) -> io::Result<OwnedFd> {
    let mut padded = [0u8; 16];
    for (place, byte) in padded.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    let btf = match btf_by_id(pattern.btf_id) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
        outcome => Some(outcome?),
    };
    let types = |id: u32| if btf.is_some() { id } else { 0 };
    let mut attr = CreateAttr {
        kind: pattern.kind,
        key_size: pattern.key_size,
        value_size: pattern.value_size,
        max_entries,
        flags: pattern.flags,
        inner_map_fd: 0,
        numa_node: 0,
        name: padded,
        ifindex: 0,
        btf_fd: btf.as_ref().map_or(Ok(0), |btf| number(btf.as_raw_fd()))?,
        btf_key_type_id: types(pattern.btf_key_type_id),
        btf_value_type_id: types(pattern.btf_value_type_id),
    };
    owned(bpf(BPF_MAP_CREATE, &mut attr)?)
}

/// Empties a slot of an array of maps.
pub(crate) fn delete_slot(map: BorrowedFd<'_>, slot: u32) -> io::Result<()> {
    let mut attr = ElementAttr {
        fd: number(map.as_raw_fd())?,
        reserved: 0,
        key: (&raw const slot).addr() as u64,
        value: 0,
        flags: 0,
    };
    match bpf(BPF_MAP_DELETE_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Returns once every program that was running has ended.
pub(crate) fn grace_period() -> io::Result<()> {
    // SAFETY: membarrier takes plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn btf_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0, 0];
    owned(bpf(BPF_BTF_GET_FD_BY_ID, &mut attr)?)
}

pub(super) fn bpf<T: IntoBytes>(command: c_long, attr: &mut T) -> io::Result<c_long> {
    // SAFETY: the attribute is the command's, of the size given, and its pointers are to live locals of the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn owned(fd: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn number(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}
