//! Tags, positions and the limits that hang together.

use std::collections::BTreeSet;

use super::*;
use crate::testing::{PEER4, POD4, Rng};

#[test]
fn positions_are_ordered_by_protocol_and_port_and_end_before_the_filler() {
    assert_eq!(port_position(0, 0), 0);
    assert_eq!(port_position(6, u16::MAX) + 1, port_position(7, 0));
    assert!(port_position(u8::MAX, u16::MAX) < PORT_RANGE_END);
}

#[test]
fn a_flow_tag_leaves_room_for_its_flags_and_tells_every_field() {
    let key = FlowKey { remote: PEER4, local_port: 80, remote_port: 4000, protocol: 6, local: 0, kind: 0 };
    assert_eq!(key.tag() & FLOW_TAG_FLAGS, 0);
    assert_eq!((FLOW_OPENED_INGRESS | FLOW_OWN_NODE) & !FLOW_TAG_FLAGS, 0);
    for other in [
        FlowKey { remote: POD4, ..key },
        FlowKey { local_port: 4000, remote_port: 80, ..key },
        FlowKey { local_port: 81, ..key },
        FlowKey { remote_port: 4001, ..key },
        FlowKey { protocol: 17, ..key },
        FlowKey { local: 1, ..key },
    ] {
        assert_ne!(other.tag(), key.tag(), "{other:?}");
    }
}

#[test]
fn row_tags_tell_ruleset_from_class() {
    let mut rng = Rng::new(6);
    let mut tags = BTreeSet::new();
    let mut keys = BTreeSet::new();
    for _ in 0..2_000 {
        let key = PeerRowKey { ruleset: rng.below(64), class: rng.below(64) };
        keys.insert(key);
        tags.insert(key.tag());
    }
    assert_eq!(tags.len(), keys.len());
}

#[test]
fn ids_fit_where_they_are_kept() {
    assert!(u16::try_from(MAX_RULESETS - 1).is_ok(), "a ruleset's id is half of half an endpoint's word");
    const { assert!(MAX_CHUNKS * ROW_BITS <= MAX_RULES) };
    const { assert!(EPOCH_CELLS.is_power_of_two()) };
    assert_eq!(1 << SEARCH_STEPS, MAX_RULESET_RANGES);
}
