//! Owns the rules of the packet filter, of the network namespace of the calling thread: reads them, and which bits of a
//! packet's mark each can change. It must not know which bits are ours. What a rule's conditions say is not looked at: a
//! rule that is there can write.

mod legacy;
mod nftables;
mod targets;
mod value;

use std::fmt;

use nix::libc;

use super::netlink::Streamed;

/// The most rules that are read of `nf_tables`.
pub const MAX_RULES: u64 = 1 << 20;
/// The most bytes of them that are read.
pub const MAX_BYTES: u64 = 1 << 30;
/// The most rules that are kept by name; further ones are counted.
pub const MAX_WRITERS: usize = 1 << 10;
/// How often rules are read that a change interrupted.
const ATTEMPTS: usize = 5;

/// A rule's place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `ip`, `ip6`, `inet`, `arp`, `bridge`, `netdev`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Which rule of the chain.
    pub which: Which,
}

/// A rule of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// Of `nf_tables`, its handle, by which nft deletes it.
    Handle(u64),
    /// Of iptables-legacy, its number, by which iptables deletes it.
    Position(u32),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handle(handle) => write!(f, "handle {handle}"),
            Self::Position(position) => write!(f, "rule {position} (iptables-legacy)"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.family, self.table, self.chain, self.which)
    }
}

/// How a rule writes the packet's mark. The later one is told where a rule has several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// `meta mark set`, to what the rule says itself, beside what was there.
    Set,
    /// `meta mark set`, to the connection's mark.
    Restored,
    /// A target of xtables.
    Target(String),
    /// `meta mark set`, to a value of a map or of another field: any bit.
    Opaque,
    /// A target of xtables that is not understood: any bit.
    UnknownTarget(String),
    /// The rule cannot be read: any bit.
    Unreadable,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set => f.write_str("meta mark set"),
            Self::Restored => f.write_str("meta mark set ct mark"),
            Self::Target(name) => f.write_str(name),
            Self::Opaque => f.write_str("meta mark set to what the rule does not show"),
            Self::UnknownTarget(name) => write!(f, "{name}, which is not understood"),
            Self::Unreadable => f.write_str("it cannot be read"),
        }
    }
}

/// A rule that can change the packet's mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writer {
    /// Where it stands.
    pub place: Place,
    /// What it can change.
    pub bits: u32,
    /// By what.
    pub how: How,
}

/// What the rules of a network namespace do to packets' marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// How many rules were read.
    pub rules: u64,
    /// Every bit that any of them can change.
    pub bits: u32,
    /// Those that can change a bit that was asked about, in order of their places; [`MAX_WRITERS`] at most.
    pub writers: Vec<Writer>,
    /// How many they are.
    pub colliding: u64,
    /// What could not be read: of it nobody knows.
    pub unread: Vec<String>,
    /// How many bytes they had.
    pub bytes: u64,
}

impl Written {
    /// Counts a rule, and keeps it if it can write a bit of the mask.
    fn take(&mut self, mask: u32, read: Option<Read>) {
        self.rules += 1;
        let Some(Read { place, write }) = read else {
            if self.unread.is_empty() {
                self.unread.push("rules without table, chain or handle".to_owned());
            }
            return;
        };
        let Some((bits, how)) = write else { return };
        self.bits |= bits;
        if bits & mask != 0 {
            self.colliding += 1;
            if self.writers.len() < MAX_WRITERS {
                self.writers.push(Writer { place, bits, how });
            }
        }
    }

    fn finish(mut self) -> Self {
        self.writers.sort();
        self.unread.sort();
        self.unread.dedup();
        self
    }
}

/// Reads all rules of `nf_tables`: those of nft, of iptables-nft and of ebtables-nft. `mask` says which of them are kept.
/// To ask a kernel without `nf_tables` would load it. What goes wrong is told in [`Written::unread`].
#[must_use]
pub fn of_nf_tables(mask: u32) -> Written {
    let mut found = Written::default();
    for _ in 0..ATTEMPTS {
        found = Written::default();
        match nftables::dump(mask, &mut found) {
            Ok(Streamed::Whole) => return found.finish(),
            Ok(Streamed::Interrupted) => {}
            // No subsystem of this number.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                return found.finish();
            }
            Err(error) => {
                found.unread.push(format!("rules of nf_tables: {error}"));
                return found.finish();
            }
        }
    }
    found.unread.push(format!("rules of nf_tables: they changed while they were read, {ATTEMPTS} times"));
    found.finish()
}

/// Adds what tables of iptables-legacy hold, of both families. Those of ebtables-legacy and arptables-legacy are not read.
#[must_use]
pub fn and_of_iptables_legacy(mask: u32, mut found: Written) -> Written {
    for family in &legacy::FAMILIES {
        legacy::add(family, mask, &mut found);
    }
    found.finish()
}

/// A rule, and what it can change of the packet's mark by what.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    place: Place,
    write: Option<(u32, How)>,
}
