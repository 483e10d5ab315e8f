//! What must be written to come from one state of the tables to another, in an order in which whatever is
//! pointed at is there before. A packet that is judged meanwhile meets old or new classes, under old or new policies.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_common::addr::Addr;
use portcullis_common::wire::{
    CLASS_VIRTUAL, EPOCH_ANY, EPOCH_CELLS, PeerRowKey, PeerRowWord, PeerWord, PortRange, Row, Rule, Ruleset,
};

use crate::desired::{Desired, WirePrefix};

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// `rows[id]`.
    PutRow(u32, Row),
    /// `rules[index]`.
    PutRule(u32, Rule),
    /// `port_ranges[index]`.
    PutPortRange(u32, PortRange),
    /// `rulesets[id]`; its absence is the empty one.
    PutRuleset(u32, Ruleset),
    /// `peer_rows[key]`.
    PutPeerRow(PeerRowKey, PeerRowWord),
    /// The key leaves `peer_rows`.
    DeletePeerRow(PeerRowKey),
    /// `peers[bank][addr]`.
    PutPeer(Addr, PeerWord),
    /// The address leaves `peers[bank]`.
    DeletePeer(Addr),
    /// A new trie for `prefixes[bank]`.
    SwapPrefixes(BTreeMap<WirePrefix, PeerWord>),
    /// `epochs[cell]` grows: flows of peers there are judged again; of [`EPOCH_ANY`] those whose backend nobody knows.
    BumpEpoch(u32),
    /// `node_state.prefix_epoch` grows: all flows are judged again.
    BumpPrefixEpoch,
}

/// The writes of one change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Before the endpoints are flipped, in order.
    pub before: Vec<MapOp>,
    /// After the endpoints are flipped and a grace period has passed.
    pub after: Vec<MapOp>,
}

/// The writes while nothing can be compiled: an address that no pod owns any more matches nothing (S32), and all
/// else stays as it is.
#[must_use]
pub fn released(old: &Desired, is_owned: impl Fn(&Addr) -> bool) -> Plan {
    let mut new = old.clone();
    new.peers.retain(|addr, word| word.class & CLASS_VIRTUAL != 0 || is_owned(addr));
    diff(old, &new)
}

/// The writes that lead from `old` to `new`, both of one bank.
#[must_use]
pub fn diff(old: &Desired, new: &Desired) -> Plan {
    let mut plan = Plan::default();
    let mut cells = BTreeSet::new();
    // An address that is gone matches nothing from here on, before anyone else can get it (S32).
    for addr in old.peers.keys().filter(|addr| !new.peers.contains_key(*addr)) {
        plan.before.push(MapOp::DeletePeer(*addr));
        cells.insert(cell(addr));
    }
    plan.before.extend(bumps(&cells));
    changed(&old.rows, &new.rows, |id, row| plan.before.push(MapOp::PutRow(*id, *row)));
    changed(&old.rules, &new.rules, |id, rule| plan.before.push(MapOp::PutRule(*id, *rule)));
    changed(&old.port_ranges, &new.port_ranges, |id, range| {
        plan.before.push(MapOp::PutPortRange(*id, *range));
    });
    changed(&old.rulesets, &new.rulesets, |id, ruleset| plan.before.push(MapOp::PutRuleset(*id, *ruleset)));
    changed(&old.peer_rows, &new.peer_rows, |key, word| plan.before.push(MapOp::PutPeerRow(*key, *word)));
    cells.clear();
    changed(&old.peers, &new.peers, |addr, word| {
        plan.before.push(MapOp::PutPeer(*addr, *word));
        cells.insert(cell(addr));
    });
    plan.before.extend(bumps(&cells));
    if old.prefixes != new.prefixes {
        plan.before.push(MapOp::SwapPrefixes(new.prefixes.clone()));
        plan.before.push(MapOp::BumpPrefixEpoch);
    }
    plan.after = leftovers(old, new).collect();
    plan
}

/// The writes of [`Plan::after`]: what `old` holds and `new` does not need.
pub fn leftovers(old: &Desired, new: &Desired) -> impl Iterator<Item = MapOp> {
    let rows = old.peer_rows.keys().filter(|key| !new.peer_rows.contains_key(*key));
    let rulesets = old.rulesets.keys().filter(|id| !new.rulesets.contains_key(*id));
    rows.map(|key| MapOp::DeletePeerRow(*key))
        .chain(rulesets.map(|id| MapOp::PutRuleset(*id, Ruleset::default())))
}

impl MapOp {
    /// Does to a copy of the tables what the write does to the kernel's.
    pub fn apply(&self, tables: &mut Desired) {
        match self {
            Self::PutRow(id, row) => {
                tables.rows.insert(*id, *row);
            }
            Self::PutRule(id, rule) => {
                tables.rules.insert(*id, *rule);
            }
            Self::PutPortRange(id, range) => {
                tables.port_ranges.insert(*id, *range);
            }
            Self::PutRuleset(id, ruleset) if *ruleset == Ruleset::default() => {
                tables.rulesets.remove(id);
            }
            Self::PutRuleset(id, ruleset) => {
                tables.rulesets.insert(*id, *ruleset);
            }
            Self::PutPeerRow(key, word) => {
                tables.peer_rows.insert(*key, *word);
            }
            Self::DeletePeerRow(key) => {
                tables.peer_rows.remove(key);
            }
            Self::PutPeer(addr, word) => {
                tables.peers.insert(*addr, *word);
            }
            Self::DeletePeer(addr) => {
                tables.peers.remove(addr);
            }
            Self::SwapPrefixes(prefixes) => tables.prefixes.clone_from(prefixes),
            Self::BumpEpoch(_) | Self::BumpPrefixEpoch => {}
        }
    }
}

fn changed<K: Ord, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>, mut put: impl FnMut(&K, &V)) {
    for (key, value) in new {
        if old.get(key) != Some(value) {
            put(key, value);
        }
    }
}

/// Cells of addresses that changed; with any of them the one of all.
fn bumps(cells: &BTreeSet<u32>) -> impl Iterator<Item = MapOp> {
    let any = (!cells.is_empty()).then_some(EPOCH_ANY);
    cells.iter().copied().chain(any).map(MapOp::BumpEpoch)
}

fn cell(addr: &Addr) -> u32 {
    addr.hash() & (EPOCH_CELLS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s32_a_pod_that_is_gone_frees_its_address_though_nothing_compiles() {
        let [stays, goes, service] = [1, 2, 3].map(|last| Addr::v4([10, 0, 0, last]));
        let word = |addr: &Addr, class| PeerWord { class, tag: addr.hash() };
        let old = Desired {
            peers: BTreeMap::from([
                (stays, word(&stays, 1)),
                (goes, word(&goes, 1)),
                (service, word(&service, CLASS_VIRTUAL)),
            ]),
            ..Desired::default()
        };
        let plan = released(&old, |addr| *addr == stays);
        assert_eq!(
            plan.before,
            [MapOp::DeletePeer(goes), MapOp::BumpEpoch(cell(&goes)), MapOp::BumpEpoch(EPOCH_ANY)]
        );
        assert_eq!(plan.after, []);
    }
}
