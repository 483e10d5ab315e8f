//! The walk from ruleset, peer and port to the rule that decides. Generic over the tables, so that the
//! kernel's maps and the compiler's own output run the same code.

use crate::addr::Addr;
use crate::event::{Action, Reason};
use crate::wire::{
    ACTION_ALLOW, ACTION_AUDIT, ACTION_DENY, ACTION_PASS, CLASS_CLAIMED, CLASS_NONE, CLASS_VIRTUAL,
    COUNTER_NONE, KIND_FAILSAFE, KIND_INVALID, KIND_ISOLATION, KIND_OWN_NODE, MAX_CHUNKS, PeerRowKey,
    PeerRowWord, PeerWord, PortRange, ROW_BITS, RULESET_AUDIT, RULESET_CLOSED, RULESET_EGRESS, RULESET_OPEN,
    Row, Rule, Ruleset, SEARCH_STEPS, port_position,
};

/// The policy tables, as they stand at this moment. A reader may see an element of a hash that is being
/// recycled: the tag tells, and [`classify`] looks again.
pub trait Tables {
    /// `rulesets[id]`.
    fn ruleset(&self, id: u32) -> Option<&Ruleset>;
    /// `peers[bank][addr]`.
    fn peer(&self, bank: u32, addr: &Addr) -> Option<PeerWord>;
    /// `prefixes[bank]`, longest prefix of the address.
    fn prefix(&self, bank: u32, addr: &Addr) -> Option<PeerWord>;
    /// `peer_rows[key]`.
    fn peer_row(&self, key: &PeerRowKey) -> Option<PeerRowWord>;
    /// `rows[id]`.
    fn row(&self, id: u32) -> Option<&Row>;
    /// `port_ranges[index]`.
    fn port_range(&self, index: u32) -> Option<PortRange>;
    /// `rules[index]`.
    fn rule(&self, index: u32) -> Option<Rule>;
}

/// What the policies say about one direction of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No ruleset: the direction is open.
    Open,
    /// A rule decided.
    Rule {
        /// Whose address the peer's is.
        peer: Peer,
        /// What it says.
        action: Action,
        /// True if the packet passes though it is denied.
        audited: bool,
        /// Rule, isolation or invalid policies.
        reason: Reason,
        /// Its counter.
        counter: u32,
    },
    /// No rule matched and nothing isolates: open by default.
    Default(Peer),
    /// A virtual address: the verdict waits for translation.
    Virtual {
        /// True if the packet passes though it is denied.
        audited: bool,
    },
    /// The tables could not be read. Closes, and makes no state.
    Unreadable,
}

/// Whose address a peer's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A pod's that a selector here matches: nobody translates it.
    Pod,
    /// Anybody's: what a pod sends there may still be translated.
    Anybody,
}

/// Marks tables that could not be read.
struct Unreadable;

/// Judges one direction: `remote` is the peer, `protocol` and `port` are the destination's.
#[inline(always)]
pub fn classify<T: Tables>(tables: &T, ruleset: u32, remote: &Addr, protocol: u8, port: u16) -> Decision {
    if ruleset == RULESET_OPEN {
        return Decision::Open;
    }
    // Needs no tables: an endpoint that could not be programmed, or whose policies cannot be.
    if ruleset == RULESET_CLOSED {
        return Decision::Rule {
            action: Action::Deny,
            peer: Peer::Anybody,
            audited: false,
            reason: Reason::InvalidClosed,
            counter: COUNTER_NONE,
        };
    }
    let position = port_position(protocol, port);
    let mut id = ruleset;
    for _ in 0..MAX_PASSES {
        let peer = match walk(tables, id, remote, position) {
            Ok(Step::Decided(decision)) => return decision,
            Ok(Step::Passed(next, peer)) => {
                id = next;
                peer
            }
            Err(Unreadable) => return Decision::Unreadable,
        };
        if id == RULESET_OPEN {
            return Decision::Default(peer);
        }
    }
    Decision::Unreadable
}

/// Walks that one packet can take: the ruleset, and what remains of it after a Pass in each tier but the last.
const MAX_PASSES: u32 = 3;

/// Where one walk ended.
enum Step {
    Decided(Decision),
    /// A Pass: goes on with the ruleset of the tiers behind.
    Passed(u32, Peer),
}

#[inline(always)]
fn walk<T: Tables>(tables: &T, id: u32, remote: &Addr, position: u32) -> Result<Step, Unreadable> {
    let ruleset = tables.ruleset(id).ok_or(Unreadable)?;
    // An entry that nothing has been written to closes.
    if ruleset.chunks == 0 {
        return Err(Unreadable);
    }
    let (class, peer) = class_of(tables, ruleset.bank, remote)?;
    if class & CLASS_VIRTUAL != 0 && ruleset.flags & RULESET_EGRESS != 0 {
        return Ok(Step::Decided(Decision::Virtual { audited: ruleset.flags & RULESET_AUDIT != 0 }));
    }
    let peer = if class & CLASS_CLAIMED == 0 { peer } else { Peer::Anybody };
    let class = class & !(CLASS_VIRTUAL | CLASS_CLAIMED);
    let peers = peer_rows(tables, id, class)?.unwrap_or(ruleset.any_row);
    let ports = port_rows(tables, ruleset, position)?;
    let Some(first) = first_match(tables, ruleset, peers, ports)? else {
        return Ok(Step::Decided(Decision::Default(peer)));
    };
    let rule = tables.rule(ruleset.rules_start.wrapping_add(first)).ok_or(Unreadable)?;
    let action = match rule.action {
        ACTION_ALLOW => Action::Allow,
        ACTION_DENY | ACTION_AUDIT => Action::Deny,
        ACTION_PASS => return Ok(Step::Passed(ruleset.pass_to, peer)),
        // What another version means by it is not known here.
        _ => return Err(Unreadable),
    };
    let reason = match rule.kind {
        KIND_ISOLATION => Reason::Isolated,
        KIND_INVALID => Reason::InvalidClosed,
        KIND_OWN_NODE => Reason::OwnNode,
        KIND_FAILSAFE => Reason::Failsafe,
        _ => Reason::Rule,
    };
    let audited = rule.action == ACTION_AUDIT;
    Ok(Step::Decided(Decision::Rule { peer, action, audited, reason, counter: rule.counter }))
}

/// The class of an address: exact, then by longest prefix.
#[inline(always)]
fn class_of<T: Tables>(tables: &T, bank: u32, addr: &Addr) -> Result<(u32, Peer), Unreadable> {
    let tag = addr.hash();
    let first = tables.peer(bank, addr);
    if let Some(word) = first
        && word.tag == tag
    {
        return Ok((word.class, Peer::Pod));
    }
    // A miss is confirmed, and a word with another key's tag is read again.
    match tables.peer(bank, addr) {
        Some(word) if word.tag == tag => Ok((word.class, Peer::Pod)),
        Some(_) => Err(Unreadable),
        None => Ok((tables.prefix(bank, addr).map_or(CLASS_NONE, |word| word.class), Peer::Anybody)),
    }
}

/// The rules of a ruleset whose peers match a class; `None`: only those that match any peer.
#[inline(always)]
fn peer_rows<T: Tables>(tables: &T, ruleset: u32, class: u32) -> Result<Option<u32>, Unreadable> {
    if class == CLASS_NONE {
        return Ok(None);
    }
    let key = PeerRowKey { ruleset, class };
    let tag = key.tag();
    if let Some(word) = tables.peer_row(&key)
        && word.tag == tag
    {
        return Ok(Some(word.row));
    }
    match tables.peer_row(&key) {
        Some(word) if word.tag == tag => Ok(Some(word.row)),
        Some(_) => Err(Unreadable),
        None => Ok(None),
    }
}

/// The rules of a ruleset whose ports match: a binary search for the last range that starts at or before.
/// The number of ranges is a power of two, so that no step asks whether it is still inside.
#[inline(always)]
fn port_rows<T: Tables>(tables: &T, ruleset: &Ruleset, position: u32) -> Result<u32, Unreadable> {
    let mut at = ruleset.ports_start;
    let mut row = tables.port_range(at).ok_or(Unreadable)?.row;
    let mut step = 1u32 << (ruleset.ports_log2 & 31);
    for _ in 0..SEARCH_STEPS {
        step >>= 1;
        if step == 0 {
            break;
        }
        let range = tables.port_range(at.wrapping_add(step)).ok_or(Unreadable)?;
        if range.from <= position {
            at = at.wrapping_add(step);
            row = range.row;
        }
    }
    Ok(row)
}

/// The first rule that both vectors hold.
#[inline(always)]
fn first_match<T: Tables>(
    tables: &T,
    ruleset: &Ruleset,
    peers: u32,
    ports: u32,
) -> Result<Option<u32>, Unreadable> {
    let mut found = 0;
    let mut base = 0;
    'chunks: for chunk in 0..MAX_CHUNKS {
        if chunk >= ruleset.chunks {
            break;
        }
        let a = tables.row(peers.wrapping_add(chunk)).ok_or(Unreadable)?;
        let b = tables.row(ports.wrapping_add(chunk)).ok_or(Unreadable)?;
        base = chunk * ROW_BITS;
        for (x, y) in a.words.iter().zip(b.words.iter()) {
            found = *x & *y;
            if found != 0 || base >= ruleset.rules_len {
                break 'chunks;
            }
            base += 64;
        }
    }
    // Found outside of the loops, so that the verifier sees one way out of them.
    if found == 0 { Ok(None) } else { Ok(Some(base + lowest_bit(found))) }
}

/// Position of the lowest set bit of a non-zero word: eBPF has no instruction for it, so six halvings.
#[inline(always)]
fn lowest_bit(word: u64) -> u32 {
    let mut rest = word;
    let mut position = 0;
    let mut step = 32;
    while step > 0 {
        if rest & ((1u64 << step) - 1) == 0 {
            rest >>= step;
            position += step;
        }
        step /= 2;
    }
    position
}

#[cfg(test)]
mod tests;
