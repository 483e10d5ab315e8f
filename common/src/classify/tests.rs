//! The walk over the bits against the rules themselves.

use std::vec::Vec;

use super::*;
use crate::packet::{ICMP, SCTP, TCP, UDP};
use crate::testing::{PEER4, Rng, TestRule, World};
use crate::wire::{ACTION_PASS, KIND_RULE, PeerWord, RULESET_CLOSED};

const RULESET: u32 = 9;
/// Where a Pass goes on.
const BEHIND: u32 = 10;

fn allow(counter: u32) -> Rule {
    Rule { counter, action: ACTION_ALLOW, kind: KIND_RULE, tier: 1, reserved: 0 }
}

fn any(rule: Rule) -> TestRule {
    TestRule { peers: None, ports: None, rule }
}

fn decided(action: Action, reason: Reason, counter: u32) -> Decision {
    of(Peer::Anybody, action, reason, counter)
}

fn of(peer: Peer, action: Action, reason: Reason, counter: u32) -> Decision {
    Decision::Rule { peer, action, audited: false, reason, counter }
}

fn world(rules: &[TestRule]) -> World {
    let mut world = World::new();
    world.set_ruleset(RULESET, 0, rules, RULESET_OPEN);
    world
}

fn ask(world: &World, ruleset: u32) -> Decision {
    classify(world, ruleset, &PEER4, TCP, 80)
}

#[test]
fn open_and_closed_need_no_table() {
    assert_eq!(ask(&World::new(), RULESET_OPEN), Decision::Open);
    let closed = decided(Action::Deny, Reason::InvalidClosed, COUNTER_NONE);
    assert_eq!(ask(&World::new(), RULESET_CLOSED), closed);
    assert_eq!(ask(&World::new(), RULESET), Decision::Unreadable);
}

#[test]
fn an_entry_that_nothing_was_written_to_closes() {
    let mut world = World::new();
    world.rulesets.insert(RULESET, Ruleset::default());
    assert_eq!(ask(&world, RULESET), Decision::Unreadable);
}

#[test]
fn a_ruleset_without_rules_decides_nothing() {
    assert_eq!(ask(&world(&[]), RULESET), Decision::Default(Peer::Anybody));
}

#[test]
fn actions_and_kinds_make_the_reason() {
    for (action, kind, expected) in [
        (ACTION_ALLOW, KIND_RULE, decided(Action::Allow, Reason::Rule, 7)),
        (ACTION_DENY, KIND_RULE, decided(Action::Deny, Reason::Rule, 7)),
        (ACTION_DENY, KIND_ISOLATION, decided(Action::Deny, Reason::Isolated, 7)),
        (ACTION_DENY, KIND_INVALID, decided(Action::Deny, Reason::InvalidClosed, 7)),
    ] {
        let rule = Rule { action, kind, ..allow(7) };
        assert_eq!(ask(&world(&[any(rule)]), RULESET), expected);
    }
}

#[test]
fn a_pass_goes_on_in_the_tiers_behind() {
    let pass = any(Rule { action: ACTION_PASS, ..allow(1) });
    let mut world = world(&[]);
    world.set_ruleset(RULESET, 0, &[pass.clone(), any(allow(2))], BEHIND);
    world.set_ruleset(BEHIND, 0, &[any(allow(3))], RULESET_OPEN);
    assert_eq!(ask(&world, RULESET), decided(Action::Allow, Reason::Rule, 3));
    // Nothing is behind: open by default.
    world.set_ruleset(RULESET, 0, std::slice::from_ref(&pass), RULESET_OPEN);
    assert_eq!(ask(&world, RULESET), Decision::Default(Peer::Anybody));
    // Something is behind that cannot be read: closed.
    world.set_ruleset(RULESET, 0, std::slice::from_ref(&pass), RULESET_CLOSED);
    assert_eq!(ask(&world, RULESET), Decision::Unreadable);
    // In circles: closed, after a bounded number of walks.
    world.set_ruleset(RULESET, 0, &[pass], RULESET);
    assert_eq!(ask(&world, RULESET), Decision::Unreadable);
}

#[test]
fn a_virtual_address_waits_towards_it_and_is_a_peer_from_it() {
    let mut world = world(&[any(allow(1))]);
    world.set_class(PEER4, CLASS_VIRTUAL);
    assert_eq!(ask(&world, RULESET), of(Peer::Pod, Action::Allow, Reason::Rule, 1));
    world.set_ruleset(RULESET, RULESET_EGRESS, &[any(allow(1))], RULESET_OPEN);
    assert_eq!(ask(&world, RULESET), Decision::Virtual { audited: false });
}

#[test]
fn an_element_of_another_key_is_not_believed() {
    let rule = TestRule { peers: Some(std::vec![5]), ..any(allow(1)) };
    let mut world = world(&[rule]);
    world.set_class(PEER4, 5);
    assert_eq!(ask(&world, RULESET), of(Peer::Pod, Action::Allow, Reason::Rule, 1));
    let key = PeerRowKey { ruleset: RULESET, class: 5 };
    world.peer_rows.get_mut(&key).unwrap().tag ^= 1;
    assert_eq!(ask(&world, RULESET), Decision::Unreadable);
    world.peer_rows.get_mut(&key).unwrap().tag ^= 1;
    world.peers.insert((0, PEER4), PeerWord { class: 5, tag: !PEER4.hash() });
    assert_eq!(ask(&world, RULESET), Decision::Unreadable);
}

#[test]
fn a_table_that_ends_too_early_closes() {
    // given: as many rules as need three rows, the last of which allows
    let mut rules: Vec<TestRule> =
        (0..1_100).map(|n| TestRule { ports: Some(std::vec![(n, n)]), ..any(allow(n)) }).collect();
    rules.push(any(allow(5_000)));
    let whole = || world(&rules);
    assert_eq!(ask(&whole(), RULESET), decided(Action::Allow, Reason::Rule, 5_000));
    // when
    let mut cut = [whole(), whole(), whole()];
    cut[0].rows.clear();
    cut[1].port_ranges.clear();
    cut[2].rules.pop();
    // then
    for world in &cut {
        assert_eq!(ask(world, RULESET), Decision::Unreadable);
    }
}

#[test]
fn the_lowest_bit_of_every_word_is_found() {
    let mut rng = Rng::new(2);
    for bit in 0..64 {
        assert_eq!(lowest_bit(1 << bit), bit);
        for _ in 0..100 {
            let word = rng.next() | 1;
            assert_eq!(lowest_bit(word << bit), bit);
        }
    }
}

fn some_rule(rng: &mut Rng, counter: u32) -> TestRule {
    let (action, kind) = rng.pick(&[
        (ACTION_ALLOW, KIND_RULE),
        (ACTION_DENY, KIND_RULE),
        (ACTION_DENY, KIND_ISOLATION),
        (ACTION_DENY, KIND_INVALID),
        (ACTION_PASS, KIND_RULE),
    ]);
    let peers = (!rng.one_in(3)).then(|| (0..rng.below(3)).map(|_| 1 + rng.below(6)).collect());
    let ports = (!rng.one_in(3)).then(|| {
        let ranges = 1 + rng.below(3);
        (0..ranges).map(|_| some_ports(rng)).collect()
    });
    TestRule { peers, ports, rule: Rule { action, kind, ..allow(counter) } }
}

/// Few protocols and ports, at the edges too, so that rules meet.
fn some_position(rng: &mut Rng) -> (u8, u16) {
    let protocol = rng.pick(&[0, ICMP, TCP, UDP, SCTP, u8::MAX - 1]);
    let port = rng.pick(&[0, 1, 79, 80, 81, 443, 32_767, 65_534, 65_535]);
    (protocol, port)
}

fn some_ports(rng: &mut Rng) -> (u32, u32) {
    let (protocol, port) = some_position(rng);
    let from = port_position(protocol, port);
    let end = port_position(protocol, u16::MAX);
    (from, if rng.one_in(2) { from } else { end.min(from + rng.below(1_000)) })
}

/// The rules one after another, as the words say it.
fn naive(tiers: &[Vec<TestRule>], class: u32, position: u32) -> Decision {
    let peer = if class == CLASS_NONE { Peer::Anybody } else { Peer::Pod };
    for rules in tiers {
        let first = rules.iter().find(|r| r.matches_peer(class) && r.matches_port(position));
        let Some(TestRule { rule, .. }) = first else {
            return Decision::Default(peer);
        };
        let reason = match rule.kind {
            KIND_ISOLATION => Reason::Isolated,
            KIND_INVALID => Reason::InvalidClosed,
            _ => Reason::Rule,
        };
        match rule.action {
            ACTION_ALLOW => return of(peer, Action::Allow, reason, rule.counter),
            ACTION_DENY => return of(peer, Action::Deny, reason, rule.counter),
            _ => {}
        }
    }
    Decision::Default(peer)
}

#[test]
fn the_walk_finds_what_the_rules_say() {
    let mut rng = Rng::new(3);
    for round in 0..400 {
        let len = rng.pick(&[0, 1, 2, 3, 7, 63, 64, 65, 200, 511, 512, 513, 600, 1_025]);
        let mut counter = 0;
        let mut some_rules = |rng: &mut Rng, len: u32| -> Vec<TestRule> {
            (0..len)
                .map(|_| {
                    counter += 1;
                    some_rule(rng, counter)
                })
                .collect()
        };
        let tiers = [some_rules(&mut rng, len), some_rules(&mut rng, 4)];
        let mut world = World::new();
        world.set_ruleset(RULESET, 0, &tiers[0], BEHIND);
        world.set_ruleset(BEHIND, 0, &tiers[1], RULESET_OPEN);
        for question in 0..200 {
            let class = rng.below(8);
            if class == CLASS_NONE {
                world.peers.clear();
            } else {
                world.set_class(PEER4, class);
            }
            let (protocol, port) = some_position(&mut rng);
            assert_eq!(
                classify(&world, RULESET, &PEER4, protocol, port),
                naive(&tiers, class, port_position(protocol, port)),
                "round {round}, question {question}: class {class}, {protocol}/{port}, {len} rules"
            );
        }
    }
}

#[test]
fn an_action_that_nobody_knows_closes() {
    for action in [4, 9, u8::MAX] {
        let world = world(&[any(Rule { action, ..allow(1) }), any(allow(2))]);
        assert_eq!(ask(&world, RULESET), Decision::Unreadable);
    }
}
