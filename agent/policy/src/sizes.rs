//! How large the tables are: what an administrator may choose, within which bounds, and what of it one start of
//! the agent has. Knows nothing of what the tables hold.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use portcullis_common::wire::{
    BANKS, EVENT_RING_BYTES, MAX_COUNTERS, MAX_ENDPOINTS, MAX_PEER_ROWS, MAX_PEERS, MAX_PORT_RANGES,
    MAX_PREFIXES, MAX_ROWS, MAX_RULES, MAX_RULESETS,
};

/// Fewest entries of a table whose numbers the banks divide: each bank has some left beside the reserved ones.
pub const MIN_DIVIDED: u32 = 4 * BANKS;
/// Most entries of a table of small values: 16 bytes each make 256 MiB.
pub const MAX_SMALL: u32 = 1 << 24;
/// Most rows: 64 bytes each make 256 MiB.
pub const MAX_LARGE: u32 = 1 << 22;
/// Most counters: 16 bytes for each CPU.
pub const MAX_PER_CPU: u32 = 1 << 20;
/// Most endpoints: each has a slot in an array of maps.
pub const MAX_SLOTS: u32 = 1 << 16;
/// Most rulesets: their numbers are 16 bits of an endpoint's word.
pub const MAX_NUMBERS: u32 = 1 << 16;
/// Least bytes of the event ring: a page, where pages are largest.
pub const MIN_RING: u32 = 1 << 16;
/// Most bytes of the event ring: the kernel has room for so many in one ring on every machine.
pub const MAX_RING: u32 = 1 << 28;

/// A table whose size can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// `ifaces`, `endpoints`, `endpoint_cfg` and the slots of `flows`.
    Endpoints,
    /// `peers`, each bank.
    Peers,
    /// `prefixes`, each bank.
    Prefixes,
    /// `peer_rows`.
    PeerRows,
    /// `rules`.
    Rules,
    /// `rulesets`.
    Rulesets,
    /// `rows`.
    Rows,
    /// `port_ranges`.
    PortRanges,
    /// `rule_stats` and `counter_names`.
    Counters,
    /// `events`, in bytes.
    Events,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Endpoints,
        Self::Peers,
        Self::Prefixes,
        Self::PeerRows,
        Self::Rules,
        Self::Rulesets,
        Self::Rows,
        Self::PortRanges,
        Self::Counters,
        Self::Events,
    ];

    /// As `--map-size` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::Peers => "peers",
            Self::Prefixes => "prefixes",
            Self::PeerRows => "peer-rows",
            Self::Rules => "rules",
            Self::Rulesets => "rulesets",
            Self::Rows => "rows",
            Self::PortRanges => "port-ranges",
            Self::Counters => "counters",
            Self::Events => "events",
        }
    }

    /// Its size where nobody chooses one.
    #[must_use]
    pub const fn default_size(self) -> u32 {
        match self {
            Self::Endpoints => MAX_ENDPOINTS,
            Self::Peers => MAX_PEERS,
            Self::Prefixes => MAX_PREFIXES,
            Self::PeerRows => MAX_PEER_ROWS,
            Self::Rules => MAX_RULES,
            Self::Rulesets => MAX_RULESETS,
            Self::Rows => MAX_ROWS,
            Self::PortRanges => MAX_PORT_RANGES,
            Self::Counters => MAX_COUNTERS,
            Self::Events => EVENT_RING_BYTES,
        }
    }

    /// The sizes that can be chosen.
    #[must_use]
    pub const fn bounds(self) -> RangeInclusive<u32> {
        match self {
            Self::Endpoints => 1..=MAX_SLOTS,
            Self::Peers | Self::Prefixes => 1..=MAX_SMALL,
            Self::PeerRows | Self::Rules | Self::PortRanges => MIN_DIVIDED..=MAX_SMALL,
            Self::Rulesets => MIN_DIVIDED..=MAX_NUMBERS,
            Self::Rows => MIN_DIVIDED..=MAX_LARGE,
            Self::Counters => 2..=MAX_PER_CPU,
            Self::Events => MIN_RING..=MAX_RING,
        }
    }

    /// True where the banks divide the entries among them; of the others each bank has its own, or all share one.
    #[must_use]
    pub const fn is_divided(self) -> bool {
        match self {
            Self::PeerRows | Self::Rules | Self::Rulesets | Self::Rows | Self::PortRanges => true,
            Self::Endpoints | Self::Peers | Self::Prefixes | Self::Counters | Self::Events => false,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A size that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not NAME=N.
    #[error("--map-size {0}: write NAME=N, NAME being one of {names}", names = names())]
    Form(String),
    /// No such table.
    #[error("--map-size {0}: no table has this name: name one of {names}", names = names())]
    Name(String),
    /// Out of bounds.
    #[error("--map-size {table}={given}: give a number from {} to {}", table.bounds().start(), table.bounds().end())]
    Range {
        /// Which table.
        table: Table,
        /// What was given.
        given: String,
    },
    /// The ring's bytes.
    #[error("--map-size events={0}: give a power of two")]
    PowerOfTwo(u32),
}

fn names() -> String {
    Table::ALL.map(Table::name).join(", ")
}

/// A table and its size, as `--map-size` takes them: NAME=N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Which table.
    pub table: Table,
    /// Its size, within bounds.
    pub size: u32,
}

impl FromStr for TableSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let (name, number) = text.split_once('=').ok_or_else(|| SizeError::Form(text.to_owned()))?;
        let table = Table::ALL
            .into_iter()
            .find(|table| table.name() == name)
            .ok_or_else(|| SizeError::Name(text.to_owned()))?;
        let size = number
            .parse()
            .ok()
            .filter(|size| table.bounds().contains(size))
            .ok_or_else(|| SizeError::Range { table, given: number.to_owned() })?;
        if matches!(table, Table::Events) && !size.is_power_of_two() {
            return Err(SizeError::PowerOfTwo(size));
        }
        Ok(Self { table, size })
    }
}

/// The sizes of all tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes(BTreeMap<Table, u32>);

impl Sizes {
    /// The size of a table.
    #[must_use]
    pub fn of(&self, table: Table) -> u32 {
        self.0.get(&table).copied().unwrap_or(table.default_size())
    }

    /// What one bank has of it.
    #[must_use]
    pub fn of_bank(&self, table: Table) -> u32 {
        if table.is_divided() { self.of(table) / BANKS } else { self.of(table) }
    }

    /// Which bank's part of the tables a ruleset's number lies in.
    #[must_use]
    pub fn bank_of(&self, ruleset: u32) -> u32 {
        ruleset / self.of_bank(Table::Rulesets).max(1)
    }
}

impl FromIterator<TableSize> for Sizes {
    /// Of several for one table the last counts.
    fn from_iter<T: IntoIterator<Item = TableSize>>(sizes: T) -> Self {
        Self(sizes.into_iter().map(|one| (one.table, one.size)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_what_is_none_names_option_and_range() {
        let read = |text: &str| text.parse::<TableSize>();
        assert_eq!(read("rows=48"), Ok(TableSize { table: Table::Rows, size: 48 }));
        let sizes: Sizes = [read("rows=48").unwrap(), read("rows=96").unwrap()].into_iter().collect();
        assert_eq!((sizes.of(Table::Rows), sizes.of_bank(Table::Rows)), (96, 32));
        assert_eq!(sizes.of(Table::Rules), MAX_RULES);
        for (text, says) in [
            ("rows", "--map-size rows: write NAME=N, NAME being one of endpoints, peers"),
            ("row=48", "--map-size row=48: no table has this name: name one of endpoints"),
            ("rows=11", "--map-size rows=11: give a number from 12 to 4194304"),
            ("rows=-1", "--map-size rows=-1: give a number from 12 to 4194304"),
            ("endpoints=0", "--map-size endpoints=0: give a number from 1 to 65536"),
            ("events=65537", "--map-size events=65537: give a power of two"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(says), "{text}: {error}");
        }
    }

    #[test]
    fn defaults_lie_within_their_bounds() {
        for table in Table::ALL {
            assert!(table.bounds().contains(&table.default_size()), "{table}");
            assert_eq!(table.default_size() % if table.is_divided() { BANKS } else { 1 }, 0, "{table}");
        }
        assert!(Table::Events.default_size().is_power_of_two());
        assert_eq!(u32::from(u16::MAX), *Table::Rulesets.bounds().end() - 1, "numbers are 16 bits");
    }
}
