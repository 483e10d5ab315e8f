//! Given rules, when they are judged, then those that collide are named, with a mask that none of them writes.

use super::*;
use crate::attach::rules::How;

fn writer(handle: u64, bits: u32, how: How) -> Writer {
    let place = |text: &str| text.to_owned();
    let place = Place {
        family: place("ip"),
        table: place("mangle"),
        chain: place("PREROUTING"),
        which: Which::Handle(handle),
    };
    Writer { place, bits, how }
}

/// What was found where 100 rules were read, these among them.
fn found(writers: Vec<Writer>, mask: MarkMask) -> Written {
    let bits = writers.iter().fold(0, |bits, writer| bits | writer.bits);
    let writers: Vec<Writer> = writers.into_iter().filter(|writer| writer.bits & mask.bits() != 0).collect();
    let colliding = u64::try_from(writers.len()).unwrap_or_default();
    Written { rules: 100, bits, writers, colliding, ..Written::default() }
}

fn only(checks: Vec<Check>) -> Check {
    assert_eq!(checks.len(), 1, "{checks:?}");
    checks.into_iter().next().expect("one")
}

#[test]
fn where_nobody_writes_our_bits_all_is_well() {
    let mask = MarkMask::default();
    let kube_proxy = vec![writer(7, 0x4000, How::Target("MARK".to_owned()))];
    let check = only(judge(&found(kube_proxy, mask), mask));
    assert_eq!(check.state, State::Ok);
    assert_eq!(check.finding, "no rule of the node writes 0x0fff0000: 100 rules read");
    let nothing = only(judge(&Written::default(), mask));
    assert_eq!(
        (nothing.state, &*nothing.finding),
        (State::Ok, "no rule of the node writes 0x0fff0000: 0 rules read")
    );
}

#[test]
fn a_rule_that_collides_is_named_with_a_mask_beside_it() {
    let mask = MarkMask::default();
    let tailscale = vec![writer(7, 0x4000, How::Set), writer(9, 0x00ff_0000, How::Target("MARK".to_owned()))];
    let found = found(tailscale, mask);
    let check = only(judge(&found, mask));
    assert_eq!(check.state, State::Warning);
    assert!(check.finding.starts_with("1 of 100 rules can write bits of 0x0fff0000"), "{}", check.finding);
    let remedy = check.remedy.unwrap_or_default();
    assert!(remedy.starts_with("use --mark-mask 0x00003ffc, which no rule here writes"), "{remedy}");
    assert!(remedy.ends_with("or use --services=deny"), "{remedy}");
    let named: Vec<String> = check.rules.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["ip mangle PREROUTING handle 9 writes 0x00ff0000 (MARK)"]);

    let problems = problems(&found, mask);
    assert_eq!(problems.len(), 1);
    assert!(problems.iter().all(|problem| problem.severity == Severity::Warning));
    let said = problems.iter().map(ToString::to_string).collect::<String>();
    assert!(
        said.starts_with("Node: mark: 1 of 100 rules")
            && said.contains(": ip mangle PREROUTING handle 9 writes"),
        "{said}"
    );
}

#[test]
fn a_free_mask_is_near_the_default_and_beside_kube_proxy() {
    let nearest = |written| free(written).map(MarkMask::bits);
    assert_eq!(nearest(0), Some(0x0fff_0000));
    assert_eq!(nearest(0x0001_0000), Some(0x1ffe_0000));
    assert_eq!(nearest(0x00ff_0000), Some(0x3ffc));
    assert_eq!(nearest(0xffff_0000), Some(0x3ffc), "Calico");
    assert_eq!(nearest(0x0000_ffff), Some(0x0fff_0000));
    // Only where kube-proxy's bits are.
    assert_eq!(nearest(0xffff_000f), Some(0xfff0));
    for taken in [u32::MAX, 0x0010_0100 | 0x8000_0000 | 1 << 11 | 1 << 22, 0xffff_f000 | 1] {
        assert!(free(taken).is_none_or(|mask| mask.bits() & taken == 0), "{taken:#x}");
    }
}

#[test]
fn where_every_bit_is_written_no_mask_is_proposed() {
    let mask = MarkMask::default();
    let restores = found(vec![writer(7, u32::MAX, How::Restored)], mask);
    let remedy = only(judge(&restores, mask)).remedy.unwrap_or_default();
    assert!(!remedy.contains("--mark-mask") && remedy.contains("no 12 bits in a row are free"), "{remedy}");
}

#[test]
fn what_could_not_be_read_is_never_taken_for_no_collision() {
    let mask = MarkMask::default();
    let blind = Written { unread: vec!["rules of nf_tables: EPERM".to_owned()], ..found(Vec::new(), mask) };
    let check = only(judge(&blind, mask));
    assert_eq!(check.state, State::Note);
    assert!(check.finding.contains("is not known") && check.finding.ends_with("EPERM"), "{}", check.finding);
    let both = Written { unread: blind.unread, ..found(vec![writer(7, u32::MAX, How::Opaque)], mask) };
    let states: Vec<State> = judge(&both, mask).into_iter().map(|check| check.state).collect();
    assert_eq!(states, [State::Warning, State::Note]);
    let severities: Vec<Severity> =
        problems(&both, mask).into_iter().map(|problem| problem.severity).collect();
    assert_eq!(severities, [Severity::Warning, Severity::Note]);
}

#[test]
fn a_problem_names_three_rules_and_where_the_others_are() {
    let mask = MarkMask::default();
    let many = found((1..=4).map(|handle| writer(handle, u32::MAX, How::Restored)).collect(), mask);
    let said = problems(&many, mask).iter().map(ToString::to_string).collect::<String>();
    assert!(said.contains("handle 3 ") && !said.contains("handle 4 "), "{said}");
    assert!(said.contains("`preflight` names the others: no 12 bits"), "{said}");
}

#[test]
fn a_rule_of_iptables_legacy_is_named_by_its_number() {
    let mut legacy = writer(0, 0x1_0000, How::Target("MARK".to_owned()));
    legacy.place.which = Which::Position(3);
    let colliding = Colliding::from(&legacy);
    assert_eq!(
        colliding.to_string(),
        "ip mangle PREROUTING rule 3 (iptables-legacy) writes 0x00010000 (MARK)"
    );
    assert_eq!((colliding.handle, colliding.number), (None, Some(3)));
}

#[test]
fn names_of_others_cannot_move_the_cursor() {
    let mut odd = writer(7, 1, How::UnknownTarget("\x1b[2J".to_owned()));
    odd.place.chain = "a\x1b[1;31m".to_owned();
    let said = Colliding::from(&odd).to_string();
    assert!(!said.contains('\x1b'), "{said:?}");
}
