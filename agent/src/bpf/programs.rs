//! Programs of others, as the kernel shows them: who hangs where, what it is called, and which redirects it calls.
//! Reads only.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

use super::sys::{self, bpf, number, owned};

const BPF_PROG_GET_FD_BY_ID: std::ffi::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: std::ffi::c_long = 15;
const BPF_PROG_QUERY: std::ffi::c_long = 16;
/// Programs that one hook holds at most: `BPF_MPROG_MAX` of `kernel/bpf/mprog.c` is 64.
const MAX_AT_HOOK: usize = 64;
/// The longest program that is looked into: `BPF_COMPLEXITY_LIMIT_INSNS` of `include/linux/bpf.h`.
const MAX_INSTRUCTIONS: usize = 1_000_000;
/// `BPF_JMP | BPF_CALL`, and the form of it that stands for a tail call once the verifier is done.
const CALL: u8 = 0x85;
const TAIL_CALL: u8 = 0xf0;
/// `BPF_FUNC_tail_call`: what a dump shows instead of [`TAIL_CALL`].
const TAIL_CALL_ID: i32 = 12;
/// What a helper's call in a dump is counted from.
const CALL_BASE: &str = "__bpf_call_base";
/// A function that is there where `nf_tables` is, built in or loaded.
const NF_TABLES: &str = "nf_tables_newchain";

/// A hook of an interface that takes several programs, by its number in `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MultiHook {
    /// TCX ingress, Linux 6.6.
    TcxIngress = 46,
    /// TCX egress, Linux 6.6.
    TcxEgress = 47,
    /// The host's end of a netkit pair, Linux 6.7.
    NetkitPrimary = 54,
    /// The pod's end of a netkit pair, Linux 6.7.
    NetkitPeer = 55,
}

/// A helper that sends a packet elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Redirect {
    /// `bpf_redirect_peer`: straight into the other end of a pair, past every hook of the host's end.
    Peer,
    /// `bpf_redirect` or `bpf_redirect_map` at XDP: straight to a device, past its TC hooks.
    Xdp,
    /// `bpf_redirect` at TC.
    Plain,
    /// `bpf_redirect_neigh`.
    Neigh,
    /// `bpf_clone_redirect`.
    Clone,
}

/// The kernel's functions that redirect. A redirect by a map of devices is one of the map's own, since Linux 5.13
/// called straight (`do_misc_fixups` of `kernel/bpf/verifier.c`).
const FUNCTIONS: [(&str, Redirect); 8] = [
    ("bpf_redirect_peer", Redirect::Peer),
    ("bpf_xdp_redirect", Redirect::Xdp),
    ("bpf_xdp_redirect_map", Redirect::Xdp),
    ("dev_map_redirect", Redirect::Xdp),
    ("dev_hash_map_redirect", Redirect::Xdp),
    ("bpf_redirect", Redirect::Plain),
    ("bpf_redirect_neigh", Redirect::Neigh),
    ("bpf_clone_redirect", Redirect::Clone),
];

impl Redirect {
    /// The helper's name in the kernel.
    #[must_use]
    pub const fn function(self) -> &'static str {
        match self {
            Self::Peer => "bpf_redirect_peer",
            Self::Xdp => "bpf_xdp_redirect",
            Self::Plain => "bpf_redirect",
            Self::Neigh => "bpf_redirect_neigh",
            Self::Clone => "bpf_clone_redirect",
        }
    }
}

/// What is known of the helpers that a program calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Its instructions could be read.
    Read {
        /// The redirects among them.
        redirects: BTreeSet<Redirect>,
        /// Whether other programs continue it, which are not looked into.
        tail_calls: TailCalls,
    },
    /// They could not, and why.
    Unreadable(String),
}

/// Whether a program hands over to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailCalls {
    /// It does.
    Some,
    /// It does not.
    None,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its number.
    pub id: u32,
    /// Its name, cut to 15 characters by the kernel; `None` where it may not be asked.
    pub name: Option<String>,
    /// What it calls.
    pub calls: Calls,
}

/// What is looked for in `/proc/kallsyms`: addresses of helpers, and whether `nf_tables` is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    base: Option<u64>,
    nf_tables: bool,
    redirects: Vec<(u64, Redirect)>,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`, up to the number of programs (Linux 4.15).
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
}

/// `struct bpf_prog_info` of include/uapi/linux/bpf.h, up to the name (Linux 4.15).
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

/// The numbers of the programs at a hook. A kernel without the hook, or an interface without it, has none.
pub fn at_hook(interface: u32, hook: MultiHook) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MAX_AT_HOOK];
    let mut attr = QueryAttr {
        target: interface,
        attach_type: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        ids: (&raw mut ids).addr() as u64,
        count: u32::try_from(MAX_AT_HOOK).map_err(io::Error::other)?,
        reserved: 0,
    };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        // EINVAL: no such hook in this kernel. ENXIO: the device is no netkit; EACCES: it is the pair's other end.
        // ENOENT, ENODEV: nothing there.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(
                    libc::EINVAL
                        | libc::ENOENT
                        | libc::ENODEV
                        | libc::ENXIO
                        | libc::EOPNOTSUPP
                        | libc::EACCES
                )
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
        Ok(_) => {
            let count = usize::try_from(attr.count).unwrap_or(MAX_AT_HOOK);
            Ok(ids.into_iter().take(count).collect())
        }
    }
}

/// What a program is. Needs `CAP_SYS_ADMIN`, else only its number is known.
#[must_use]
pub fn program(id: u32, symbols: &Symbols) -> Program {
    let unknown = |name, why: io::Error| Program { id, name, calls: Calls::Unreadable(why.to_string()) };
    let fd = match open(id) {
        Ok(fd) => fd,
        Err(error) => return unknown(None, error),
    };
    let info = match info(fd.as_fd(), &mut []) {
        Ok(info) => info,
        Err(error) => return unknown(None, error),
    };
    let name = Some(text(&info.name));
    let length = usize::try_from(info.xlated_len).unwrap_or(usize::MAX);
    if length > MAX_INSTRUCTIONS * 8 {
        return unknown(name, io::Error::other("it is too long"));
    }
    let mut instructions = vec![0u8; length];
    match self::info(fd.as_fd(), &mut instructions) {
        Ok(info) if info.xlated != 0 && info.xlated_len > 0 => {
            Program { id, name, calls: symbols.calls(&instructions) }
        }
        Ok(_) => unknown(name, io::Error::other("the kernel does not show its instructions")),
        Err(error) => unknown(name, error),
    }
}

/// Whether bpf(2) can be called at all: a call with a descriptor that is none fails with EBADFD, whoever asks.
pub fn is_callable() -> io::Result<()> {
    let mut attr = [u32::MAX, 0, 0, 0];
    match bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF)) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

impl Symbols {
    /// Reads the running kernel's table. Where addresses are hidden, none is known.
    pub fn read() -> io::Result<Self> {
        let mut found = Self::default();
        for line in io::BufReader::new(fs::File::open("/proc/kallsyms")?).lines() {
            found.take(&line?);
        }
        Ok(found)
    }

    /// Whether `nf_tables` is in the running kernel.
    #[must_use]
    pub const fn has_nf_tables(&self) -> bool {
        self.nf_tables
    }

    fn take(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next()) else { return };
        self.nf_tables |= name == NF_TABLES;
        // A module's function may have a helper's name.
        if words.next().is_some() {
            return;
        }
        let Some(address) = u64::from_str_radix(address, 16).ok().filter(|address| *address != 0) else {
            return;
        };
        if name == CALL_BASE {
            self.base = Some(address);
        } else if let Some((_, redirect)) = FUNCTIONS.into_iter().find(|(function, _)| *function == name) {
            self.redirects.push((address, redirect));
        }
    }

    /// Looks for redirects among instructions as the kernel dumps them: a helper's call holds its distance from
    /// [`CALL_BASE`], or 0 where addresses are hidden from us.
    fn calls(&self, instructions: &[u8]) -> Calls {
        let Some(base) = self.base else {
            return Calls::Unreadable("the kernel hides its functions' addresses".to_owned());
        };
        let mut redirects = BTreeSet::new();
        let mut tail_calls = TailCalls::None;
        for instruction in instructions.chunks_exact(8) {
            let &[code, registers, _, _, a, b, c, d] = instruction else { continue };
            let value = i32::from_ne_bytes([a, b, c, d]);
            // The upper four bits are the source register: 0 for a helper.
            match (code, registers >> 4) {
                (TAIL_CALL, _) => tail_calls = TailCalls::Some,
                (CALL, 0) if value == TAIL_CALL_ID => tail_calls = TailCalls::Some,
                (CALL, 0) if value == 0 => {
                    return Calls::Unreadable("the kernel hides which functions it calls".to_owned());
                }
                (CALL, 0) => {
                    let address = base.wrapping_add_signed(value.into());
                    redirects.extend(
                        self.redirects.iter().filter(|(of, _)| *of == address).map(|(_, redirect)| *redirect),
                    );
                }
                _ => {}
            }
        }
        Calls::Read { redirects, tail_calls }
    }
}

fn open(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0, 0];
    owned(bpf(BPF_PROG_GET_FD_BY_ID, &mut attr)?)
}

fn info(program: BorrowedFd<'_>, instructions: &mut [u8]) -> io::Result<ProgramInfo> {
    let mut info = ProgramInfo::new_zeroed();
    if !instructions.is_empty() {
        info.xlated_len = u32::try_from(instructions.len()).map_err(io::Error::other)?;
        info.xlated = instructions.as_mut_ptr().addr() as u64;
    }
    let mut attr = sys::InfoAttr {
        fd: number(program.as_raw_fd())?,
        len: u32::try_from(size_of::<ProgramInfo>()).map_err(io::Error::other)?,
        info: (&raw mut info).addr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

fn text(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [&str; 6] = [
        "ffffffff81000500 t dev_map_redirect",
        "ffffffff81000100 T __bpf_call_base",
        "ffffffff81000180 T bpf_redirect_peer",
        "ffffffff81000080 T bpf_redirect",
        "ffffffff81000300 t bpf_redirect_peer\t[some_module]",
        "0000000000000000 T bpf_xdp_redirect",
    ];

    fn symbols() -> Symbols {
        let mut symbols = Symbols::default();
        for line in TABLE {
            symbols.take(line);
        }
        symbols
    }

    fn call(code: u8, source: u8, value: i32) -> Vec<u8> {
        [&[code, source << 4, 0, 0][..], &value.to_ne_bytes()].concat()
    }

    fn read(redirects: &[Redirect], tail_calls: TailCalls) -> Calls {
        Calls::Read { redirects: redirects.iter().copied().collect(), tail_calls }
    }

    #[test]
    fn a_call_is_told_by_its_distance() {
        let exit = call(0x95, 0, 0);
        let one = [call(CALL, 0, 0x80), exit.clone()].concat();
        assert_eq!(symbols().calls(&one), read(&[Redirect::Peer], TailCalls::None));
        let before = [call(CALL, 0, -0x80), call(CALL, 0, 0x10), exit.clone()].concat();
        assert_eq!(symbols().calls(&before), read(&[Redirect::Plain], TailCalls::None));
        let map = [call(CALL, 0, 0x400), exit.clone()].concat();
        assert_eq!(symbols().calls(&map), read(&[Redirect::Xdp], TailCalls::None));
        // Of our own functions (source register 1) and of the kernel's by BTF (2) the value means something else.
        let others = [call(CALL, 1, 0x80), call(CALL, 2, 0x80), exit].concat();
        assert_eq!(symbols().calls(&others), read(&[], TailCalls::None));
    }

    #[test]
    fn tail_calls_and_hidden_addresses_are_told() {
        for tail in [call(CALL, 0, TAIL_CALL_ID), call(TAIL_CALL, 0, 0)] {
            assert_eq!(symbols().calls(&tail), read(&[], TailCalls::Some));
        }
        assert!(matches!(symbols().calls(&call(CALL, 0, 0)), Calls::Unreadable(_)));
        assert!(matches!(Symbols::default().calls(&call(CALL, 0, 0x80)), Calls::Unreadable(_)));
    }
}
