//! What is rolled back, and when: by seconds and answers that the test makes up.
#![allow(clippy::unwrap_used)]

use super::*;

const AFTER: u64 = 60;

fn policies(all: &[(&str, u64)]) -> BTreeMap<String, u64> {
    all.iter().map(|(name, hash)| ((*name).to_owned(), *hash)).collect()
}

fn reached(server: bool, nodes: &[&str]) -> Reached {
    Reached { server, nodes: nodes.iter().map(|name| (*name).to_owned()).collect() }
}

/// One second after the other, from the first to the last.
fn run(court: &mut Court, seconds: std::ops::Range<u64>, all: &BTreeMap<String, u64>, reached: &Reached) {
    for now in seconds {
        court.step(AFTER, now, all, Some(&(now, reached.clone())));
    }
}

#[test]
fn a_policy_that_cuts_the_node_off_is_rolled_back_until_it_changes() {
    let mut court = Court::default();
    run(&mut court, 0..100, &policies(&[("old", 1)]), &reached(true, &[]));
    assert_eq!(court.kept.trusted, policies(&[("old", 1)]));
    let both = policies(&[("bad", 7), ("old", 1)]);
    // Before it came the server answered.
    court.step(AFTER, 100, &both, Some(&(99, reached(true, &[]))));
    run(&mut court, 101..160, &both, &reached(false, &[]));
    assert!(court.kept.rolled_back.is_empty(), "not yet");
    run(&mut court, 160..163, &both, &reached(false, &[]));
    assert_eq!(court.kept.rolled_back.keys().collect::<Vec<_>>(), ["bad"]);
    assert_eq!((court.kept.total, court.kept.trusted.len()), (1, 1), "the one that was there before stays");
    // Back again: it is still rolled back, and so it is after a restart.
    let mut court = Court { kept: court.kept, trial: None };
    run(&mut court, 200..400, &both, &reached(true, &[]));
    assert!(court.kept.rolled_back.contains_key("bad"));
    let changed = policies(&[("bad", 8), ("old", 1)]);
    run(&mut court, 400..500, &changed, &reached(true, &[]));
    assert!(court.kept.rolled_back.is_empty());
    assert_eq!(court.kept.trusted, changed);
}

#[test]
fn what_was_out_of_reach_before_is_no_reason() {
    let mut court = Court::default();
    let all = policies(&[("a", 1)]);
    court.step(AFTER, 10, &all, Some(&(9, reached(false, &["n1"]))));
    run(&mut court, 11..200, &all, &reached(false, &["n1"]));
    assert!(court.kept.rolled_back.is_empty());
    assert_eq!(court.kept.trusted, all);
}

#[test]
fn most_nodes_are_more_than_half_of_those_that_were_reached() {
    let all = policies(&[("a", 1)]);
    let with = |left: &[&str]| {
        let mut court = Court::default();
        court.step(AFTER, 10, &all, Some(&(9, reached(true, &["n1", "n2", "n3", "n4"]))));
        run(&mut court, 11..200, &all, &reached(true, left));
        court.kept.rolled_back.len()
    };
    assert_eq!(with(&["n1", "n2"]), 0);
    assert_eq!(with(&["n1", "other"]), 1);
}

#[test]
fn a_short_loss_is_forgiven_and_a_second_policy_does_not_start_the_clock_anew() {
    let mut court = Court::default();
    let one = policies(&[("a", 1)]);
    court.step(AFTER, 10, &one, Some(&(9, reached(true, &[]))));
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
    court.step(AFTER, 10, &all, Some(&(9, reached(true, &["n"]))));
    let text = serde_json::to_vec(&court.kept).unwrap();
    assert_eq!(serde_json::from_slice::<Kept>(&text).unwrap(), court.kept);
    // A restart in the middle of a trial measures by what was reached before it.
    let mut court = Court { kept: court.kept, trial: None };
    run(&mut court, 20..100, &all, &reached(false, &[]));
    assert_eq!(court.kept.rolled_back.len(), 1);
}
