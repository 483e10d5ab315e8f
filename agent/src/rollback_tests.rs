//! What is rolled back, and when: by seconds and answers that the test makes up.
#![allow(clippy::unwrap_used)]

use super::court::{HELD_MOST, MEASURE_MOST_AGE, OUTAGE_MOST, RETURNS_WITHIN};
use super::reach::{Answer, answer};
use super::*;

const AFTER: u64 = 60;

type All = BTreeMap<String, Known>;

fn policies(all: &[(&str, u64)]) -> All {
    let known = |hash| Known { hash, effect: Effect::Bites };
    all.iter().map(|(name, hash)| ((*name).to_owned(), known(*hash))).collect()
}

fn hashes(all: &All) -> BTreeMap<String, u64> {
    all.iter().map(|(name, known)| (name.clone(), known.hash)).collect()
}

/// Of the nodes n1 to n4 these.
fn reached(server: bool, nodes: &[&str]) -> Look {
    let told = |is| if is { Answer::Reached } else { Answer::Lost };
    let nodes = ["n1", "n2", "n3", "n4"].map(|name| (name.to_owned(), told(nodes.contains(&name))));
    Look { began: 0, server: told(server), nodes: nodes.into() }
}

/// Without local ports nobody is asked.
fn unknown() -> Look {
    let mut look = reached(true, &[]);
    look.server = Answer::Unknown;
    look.nodes.values_mut().for_each(|answer| *answer = Answer::Unknown);
    look
}

/// One step, and the reconciliation of what it decided.
fn step(court: &mut Court, now: u64, all: &All, began: u64, seen: &Look) {
    court.step(AFTER, now, all, Some(&Look { began, ..seen.clone() }));
    court.reconciled(now, &all.keys().filter(|name| !court.is_out(name)).cloned().collect());
}

/// One second after the other, from the first to the last.
fn run(court: &mut Court, seconds: std::ops::Range<u64>, all: &All, seen: &Look) {
    for now in seconds {
        step(court, now, all, now, seen);
    }
}

fn back(court: &Court) -> Vec<&str> {
    court.kept.rolled_back.keys().map(String::as_str).collect()
}

/// A court that has seen this with no policy on trial, until second 100.
fn idle(seen: &Look) -> Court {
    let mut court = Court::default();
    run(&mut court, 1..100, &All::new(), seen);
    court
}

/// ... and then these came.
fn tried(seen: &Look, all: &All) -> Court {
    let mut court = idle(seen);
    step(&mut court, 100, all, 99, seen);
    court
}

#[test]
fn a_policy_that_cuts_the_node_off_is_rolled_back_until_it_changes() {
    let mut court = Court::default();
    let old = policies(&[("old", 1)]);
    run(&mut court, 1..100, &old, &reached(true, &[]));
    assert_eq!(court.kept.trusted, hashes(&old));
    let both = policies(&[("bad", 7), ("old", 1)]);
    // Before it came the server answered.
    step(&mut court, 100, &both, 99, &reached(true, &[]));
    run(&mut court, 101..160, &both, &reached(false, &[]));
    assert!(court.kept.rolled_back.is_empty(), "not yet");
    run(&mut court, 160..163, &both, &reached(false, &[]));
    assert_eq!(back(&court), ["bad"]);
    assert_eq!((court.kept.total, court.kept.trusted.len()), (1, 1), "the one that was there before stays");
    // Back again: it is still rolled back, and so it is after a restart.
    run(&mut court, 163..170, &both, &reached(true, &[]));
    let mut court = Court::of(court.kept);
    run(&mut court, 200..300, &both, &reached(false, &[]));
    run(&mut court, 300..700, &both, &reached(true, &[]));
    assert_eq!(back(&court), ["bad"], "an outage later is another matter");
    let changed = policies(&[("bad", 8), ("old", 1)]);
    run(&mut court, 700..800, &changed, &reached(true, &[]));
    assert!(court.kept.rolled_back.is_empty());
    assert_eq!(court.kept.trusted, hashes(&changed));
}

#[test]
fn what_was_out_of_reach_before_is_no_reason() {
    let mut court = idle(&reached(false, &["n1"]));
    let all = policies(&[("a", 1)]);
    run(&mut court, 100..200, &all, &reached(false, &["n1"]));
    assert!(court.kept.rolled_back.is_empty());
    assert_eq!(court.kept.trusted, hashes(&all));
}

#[test]
fn most_nodes_are_more_than_half_of_those_that_were_reached() {
    let all = policies(&[("a", 1)]);
    let with = |left: &[&str]| {
        let mut court = tried(&reached(true, &["n1", "n2", "n3", "n4"]), &all);
        run(&mut court, 101..165, &all, &reached(true, left));
        back(&court).len()
    };
    assert_eq!(with(&["n1", "n2"]), 0);
    assert_eq!(with(&["n1", "other"]), 1);
}

#[test]
fn a_short_loss_is_forgiven_and_a_second_policy_does_not_start_the_clock_anew() {
    let mut court = Court::default();
    let one = policies(&[("a", 1)]);
    step(&mut court, 10, &one, 9, &reached(true, &[]));
    run(&mut court, 11..60, &one, &reached(false, &[]));
    run(&mut court, 60..62, &one, &reached(true, &[]));
    run(&mut court, 62..100, &one, &reached(false, &[]));
    assert!(court.kept.rolled_back.is_empty());
    let two = policies(&[("a", 1), ("b", 1)]);
    run(&mut court, 100..130, &two, &reached(false, &[]));
    assert_eq!(court.kept.rolled_back.len(), 2, "nobody knows which of them it was");
}

#[test]
fn what_is_kept_reads_as_it_was_written() {
    let mut court = Court::default();
    let all = policies(&[("a", 1)]);
    step(&mut court, 10, &all, 9, &reached(true, &["n1"]));
    let text = serde_json::to_vec(&court.kept).unwrap();
    assert_eq!(serde_json::from_slice::<Kept>(&text).unwrap(), court.kept);
    // A restart in the middle of a trial measures by what was reached before it, and opens nothing.
    let mut court = Court::of(court.kept);
    run(&mut court, 20..21, &all, &reached(false, &[]));
    assert!(!court.is_out("a"));
    run(&mut court, 21..83, &all, &reached(false, &[]));
    assert_eq!(back(&court), ["a"]);
    // As agents wrote it before there were appeals.
    let old = r#"{"trusted": {"t": 1}, "rolled_back": {"b": {"hash": 2, "lost": "x"}}, "before": null, "total": 1}"#;
    let mut court = Court::of(serde_json::from_str(old).unwrap());
    step(&mut court, 1, &policies(&[("b", 2), ("t", 1)]), 1, &unknown());
    assert_eq!((back(&court), court.is_out("t")), (vec!["b"], false), "what is trusted is not held");
}

#[test]
fn only_what_the_network_says_is_a_loss() {
    use io::ErrorKind as Kind;
    let of = |kind: Kind| answer(&Err(kind.into()));
    for lost in [Kind::TimedOut, Kind::PermissionDenied, Kind::HostUnreachable, Kind::NetworkUnreachable] {
        assert_eq!(of(lost), Answer::Lost, "{lost}");
    }
    assert_eq!((answer(&Ok(())), of(Kind::ConnectionRefused)), (Answer::Reached, Answer::Reached));
    for local in [Kind::AddrNotAvailable, Kind::AddrInUse, Kind::WouldBlock, Kind::OutOfMemory] {
        assert_eq!(of(local), Answer::Unknown, "{local}");
    }
    // EMFILE.
    assert_eq!(answer(&Err(io::Error::from_raw_os_error(24))), Answer::Unknown);
}

#[test]
fn what_is_not_known_begins_and_ends_no_loss() {
    let all = policies(&[("a", 1)]);
    let mut court = idle(&reached(true, &["n1"]));
    run(&mut court, 100..500, &all, &unknown());
    assert!(court.kept.rolled_back.is_empty(), "nobody takes all ports to have it rolled back");
    assert!(court.kept.trusted.is_empty(), "nor to have it trusted");
    run(&mut court, 500..540, &all, &reached(false, &[]));
    run(&mut court, 540..550, &all, &unknown());
    assert!(court.kept.rolled_back.is_empty());
    run(&mut court, 550..561, &all, &reached(false, &[]));
    assert_eq!(back(&court), ["a"]);
}

#[test]
fn a_policy_that_was_not_the_cause_is_tried_again_once() {
    let (fine, away) = (reached(true, &[]), reached(false, &[]));
    let all = policies(&[("a", 1)]);
    let mut court = tried(&fine, &all);
    // The API server starts anew, and takes minutes.
    run(&mut court, 101..240, &all, &away);
    assert_eq!(back(&court), ["a"]);
    run(&mut court, 240..242, &all, &fine);
    assert!(back(&court).is_empty() && court.trial.is_some(), "back in force, and on trial");
    run(&mut court, 242..310, &all, &fine);
    assert_eq!(court.kept.trusted, hashes(&all));
    // Once more for the same spec it is not asked.
    let mut court = tried(&fine, &all);
    run(&mut court, 101..240, &all, &away);
    run(&mut court, 240..242, &all, &fine);
    run(&mut court, 242..310, &all, &away);
    assert_eq!(back(&court), ["a"]);
    run(&mut court, 310..900, &all, &away);
    run(&mut court, 900..999, &all, &fine);
    assert_eq!(back(&court), ["a"]);
    // Nor for ever where the node stays out of reach.
    let mut court = tried(&fine, &all);
    run(&mut court, 101..165 + OUTAGE_MOST, &all, &away);
    assert!(back(&court).is_empty());
    assert!(
        court.kept.before.as_ref().is_none_or(reach::Reached::is_nobody),
        "nothing can be lost: it is told"
    );
}

#[test]
fn whoever_is_in_reach_without_it_at_once_was_cut_off_by_it() {
    let (fine, away) = (reached(true, &[]), reached(false, &[]));
    let all = policies(&[("a", 1)]);
    for unsure in [&away, &unknown()] {
        let mut court = tried(&fine, &all);
        run(&mut court, 101..163, &all, &away);
        run(&mut court, 163..160 + RETURNS_WITHIN, &all, unsure);
        run(&mut court, 160 + RETURNS_WITHIN..999, &all, &fine);
        assert_eq!(back(&court), ["a"]);
        assert_eq!(court.kept.total, 1);
    }
    // A reconciliation that fails leaves it in force: that time does not count.
    let mut court = tried(&fine, &all);
    run(&mut court, 101..162, &all, &away);
    for now in 162..200 {
        court.step(AFTER, now, &all, Some(&Look { began: now, ..away.clone() }));
    }
    run(&mut court, 200..300, &all, &fine);
    assert_eq!(back(&court), ["a"]);
}

#[test]
fn a_measure_is_fresh_and_from_before() {
    let (fine, away) = (reached(true, &["n1"]), reached(false, &[]));
    let new = policies(&[("a", 1)]);
    // The last look is old: the policy waits for another, which is the measure.
    let mut court = idle(&fine);
    let late = 100 + MEASURE_MOST_AGE;
    step(&mut court, late, &new, 99, &fine);
    assert!(court.is_out("a") && court.wants_looks());
    step(&mut court, late + 1, &new, late, &fine);
    assert!(!court.is_out("a"));
    // One that is replaced in the outage that it made leaves no measure to the next.
    let mut court = tried(&fine, &new);
    run(&mut court, 101..120, &new, &away);
    step(&mut court, 120, &All::new(), 119, &away);
    let next = policies(&[("b", 1)]);
    step(&mut court, 121, &next, 119, &away);
    assert!(court.is_out("b"), "the last look was with the other in force");
    step(&mut court, 123, &next, 122, &fine);
    assert!(!court.is_out("b"));
    run(&mut court, 124..190, &next, &away);
    assert_eq!(back(&court), ["b"]);
    // One that counts already is not taken out while it changes.
    let mut court = idle(&fine);
    run(&mut court, 100..200, &new, &fine);
    step(&mut court, 200 + MEASURE_MOST_AGE, &policies(&[("a", 2)]), 199, &fine);
    assert!(!court.is_out("a"));
}

#[test]
fn a_policy_waits_for_a_measure_for_seconds_only() {
    let new = policies(&[("a", 1)]);
    let mut court = Court::default();
    run(&mut court, 10..10 + HELD_MOST, &new, &unknown());
    assert!(court.is_out("a"));
    run(&mut court, 10 + HELD_MOST..200, &new, &unknown());
    assert!(!court.is_out("a"));
    assert!(court.kept.before.is_none() && court.trial.is_some(), "it is told, and proves nothing");
    // With a look from before, however old, that is the measure.
    let mut court = idle(&reached(true, &[]));
    run(&mut court, 200..220, &new, &unknown());
    assert!(court.kept.before.as_ref().unwrap().server);
}

#[test]
fn only_what_is_in_force_proves_harmless() {
    let fine = reached(true, &[]);
    // In audit mode, or where it selects nothing.
    let mut idle_one = policies(&[("a", 1)]);
    idle_one.get_mut("a").unwrap().effect = Effect::Nothing;
    let mut court = Court::default();
    run(&mut court, 1..500, &idle_one, &fine);
    assert!(court.kept.trusted.is_empty() && court.trial.is_none() && !court.is_out("a"));
    let all = policies(&[("a", 1)]);
    step(&mut court, 500, &all, 499, &fine);
    assert!(
        court.trial.is_some() && !court.is_out("a"),
        "its trial begins with what it selects, in force at once"
    );
    run(&mut court, 501..563, &all, &reached(false, &[]));
    assert_eq!(back(&court), ["a"]);
    // A ruleset that is held back, and reconciliations that fail.
    let mut court = Court::default();
    for now in 1..300 {
        court.step(AFTER, now, &all, Some(&Look { began: now, ..fine.clone() }));
        if now % 50 != 0 {
            let in_force = if now < 100 { BTreeSet::new() } else { BTreeSet::from(["a".to_owned()]) };
            court.reconciled(now, &in_force);
        }
    }
    assert!(court.kept.trusted.is_empty(), "never for a minute on end");
    run(&mut court, 300..363, &all, &fine);
    assert_eq!(court.kept.trusted, hashes(&all));
}

#[test]
fn a_loss_before_it_was_turned_off_is_not_held_against_it_after() {
    let all = policies(&[("a", 1)]);
    let mut court = tried(&reached(true, &[]), &all);
    run(&mut court, 101..110, &all, &reached(false, &[]));
    court.turned_off(110);
    run(&mut court, 900..950, &all, &reached(false, &[]));
    assert!(back(&court).is_empty());
    run(&mut court, 950..963, &all, &reached(false, &[]));
    assert_eq!(back(&court), ["a"], "and the measure is the one from before");
}
