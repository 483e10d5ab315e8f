//! The tables of iptables-legacy: one block of entries each, asked for by getsockopt(2) on any socket of the family
//! (`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`). Only tables that are there are asked for: to ask
//! for another would make it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::super::netlink::{bytes_at, text, u16_at, u32_at};
use super::targets::{Effect, effect};
use super::{ATTEMPTS, How, Place, Read, Which, Written};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; those of IPv6 have the same numbers.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// `struct ipt_getinfo`: a name, the valid hooks, where each begins and where its policy stands, how many entries there
/// are and how many bytes.
const INFO: usize = 84;
const VALID_HOOKS: usize = 32;
const HOOK_ENTRIES: usize = 36;
const POLICIES: usize = 56;
const COUNT: usize = 76;
const SIZE: usize = 80;
/// `struct ipt_get_entries` before its entries: a name, a size, and four bytes for alignment.
const ENTRIES: usize = 40;
/// `struct xt_entry_target` (`linux/netfilter/x_tables.h`): a size, a name of 29 bytes, a revision, then settings.
const TARGET_NAME: usize = 2;
const TARGET_NAME_BYTES: usize = 29;
const TARGET_REVISION: usize = 31;
const TARGET_SETTINGS: usize = 32;
/// Begins a chain of the administrator's, whose name is its setting (`XT_ERROR_TARGET`).
const CHAIN_HEAD: &str = "ERROR";
/// Goes to a chain or a verdict (`XT_STANDARD_TARGET`).
const STANDARD: &str = "";
/// `enum nf_inet_hooks` of `linux/netfilter.h`, by the names of their chains.
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// The most bytes that are read of a table.
const MAX_TABLE: usize = 1 << 28;

/// A family, and how its entries are laid out.
pub(super) struct Family {
    name: &'static str,
    address: AddressFamily,
    level: libc::c_int,
    tables: &'static str,
    /// Where an entry says where its target and its end are, from its beginning.
    target_offset: usize,
    next_offset: usize,
    /// `struct ipt_entry` or `struct ip6t_entry` before its matches.
    head: usize,
}

/// Both, by the tables that they have in this network namespace.
pub(super) const FAMILIES: [Family; 2] = [
    Family {
        name: "ip",
        address: AddressFamily::Inet,
        level: libc::IPPROTO_IP,
        tables: "/proc/thread-self/net/ip_tables_names",
        target_offset: 88,
        next_offset: 90,
        head: 112,
    },
    Family {
        name: "ip6",
        address: AddressFamily::Inet6,
        level: libc::IPPROTO_IPV6,
        tables: "/proc/thread-self/net/ip6_tables_names",
        target_offset: 140,
        next_offset: 142,
        head: 168,
    },
];

/// Adds what the tables of a family hold.
pub(super) fn add(family: &Family, mask: u32, found: &mut Written) {
    let tables = match fs::read_to_string(family.tables) {
        Ok(tables) => tables,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return found.unread.push(format!("{}: {error}", family.tables)),
    };
    for table in tables.lines() {
        let read = read(family, table).and_then(|(info, entries)| {
            let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "its entries cannot be read");
            parse(family, table, &info, &entries, |rule| found.take(mask, Some(rule))).ok_or_else(unreadable)
        });
        if let Err(error) = read {
            found.unread.push(format!("table {table} ({}) of iptables-legacy: {error}", family.name));
        }
    }
}

/// `struct ipt_getinfo` and the entries of a table.
fn read(family: &Family, table: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let socket = socket(family.address, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = table.as_bytes().to_vec();
    name.resize(NAME, 0);
    for _ in 0..ATTEMPTS {
        let mut info = name.clone();
        info.resize(INFO, 0);
        ask(&socket, family.level, GET_INFO, &mut info)?;
        let size = u32_at(&info, SIZE).and_then(|size| usize::try_from(size).ok());
        let Some(size) = size.filter(|size| *size <= MAX_TABLE) else {
            return Err(io::Error::other(format!("it has more than {MAX_TABLE} bytes")));
        };
        let mut entries = name.clone();
        entries.extend_from_slice(info.get(SIZE..).unwrap_or_default());
        entries.resize(ENTRIES + size, 0);
        match ask(&socket, family.level, GET_ENTRIES, &mut entries) {
            // The table changed in between.
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => return Ok((info, entries.split_off(ENTRIES))),
        }
    }
    Err(io::Error::other(format!("it changed while it was read, {ATTEMPTS} times")))
}

/// Hands a buffer with a request to the kernel, which answers into it.
fn ask(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, buffer: &mut [u8]) -> nix::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::E2BIG)?;
    let answer = buffer.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes, which the buffer has, and keeps neither pointer.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, answer, &raw mut length) };
    Errno::result(result).map(drop)
}

/// `None` if the entries cannot be read to their end.
fn parse(
    family: &Family,
    table: &str,
    info: &[u8],
    entries: &[u8],
    mut each: impl FnMut(Read),
) -> Option<()> {
    let valid = u32_at(info, VALID_HOOKS)?;
    let at_hooks = |first: usize| {
        (0..HOOKS.len())
            .filter(move |hook| valid & (1 << hook) != 0)
            .map(move |hook| u32_at(info, first + 4 * hook).and_then(|at| usize::try_from(at).ok()))
            .collect::<Option<Vec<usize>>>()
    };
    let hooks: Vec<&str> = HOOKS
        .iter()
        .enumerate()
        .filter(|(hook, _)| valid & (1 << hook) != 0)
        .map(|(_, name)| *name)
        .collect();
    let (begins, policies) = (at_hooks(HOOK_ENTRIES)?, at_hooks(POLICIES)?);
    let (mut at, mut chain, mut position, mut count) = (0, String::new(), 0, 0);
    while at < entries.len() {
        let entry = entries.get(at..)?;
        let length = usize::from(u16_at(entry, family.next_offset)?);
        let target = usize::from(u16_at(entry, family.target_offset)?);
        // An entry that does not end would be read for ever.
        let entry = entry.get(..length).filter(|_| length >= family.head && target >= family.head)?;
        let target = entry.get(target..)?;
        let name = text(&bytes_at::<TARGET_NAME_BYTES>(target, TARGET_NAME)?);
        if let Some(hook) = begins.iter().position(|begin| *begin == at) {
            (chain, position) = ((*hooks.get(hook)?).to_owned(), 0);
        }
        let settings = target.get(TARGET_SETTINGS..)?;
        if name == CHAIN_HEAD {
            (chain, position) = (text(settings), 0);
        } else if !policies.contains(&at) {
            position += 1;
            let place = Place {
                family: family.name.to_owned(),
                table: table.to_owned(),
                chain: chain.clone(),
                which: Which::Position(position),
            };
            let [revision] = bytes_at::<1>(target, TARGET_REVISION)?;
            each(Read { place, write: write(name, u32::from(revision), settings) });
        }
        at += length;
        count += 1;
    }
    (u32_at(info, COUNT)? == count).then_some(())
}

fn write(name: String, revision: u32, settings: &[u8]) -> Option<(u32, How)> {
    if name == STANDARD {
        return None;
    }
    match effect(&name, revision, settings) {
        Effect::Nothing | Effect::Writes(0) => None,
        Effect::Writes(bits) => Some((bits, How::Target(name))),
        Effect::Unknown => Some((u32::MAX, How::UnknownTarget(name))),
    }
}

#[cfg(test)]
#[path = "legacy_tests.rs"]
mod tests;
