//! Cyclonus cases in labs: the states of each one after the other given to a running agent, everybody who can
//! be asked being asked, and after several states the same by an agent that starts in the last.
#![allow(missing_docs)]

use std::collections::BTreeSet;

use portcullis_oracle::Family;
use portcullis_oracle::cyclonus::{self, Case};
use portcullis_tests::live::agreement::Tally;
use portcullis_tests::live::{Live, Rig, State, in_all_rigs};
use portcullis_tests::privilege::is_root;

/// How many cases at least.
const CASES: usize = 20;

/// Family and tag.
type Tag = (Family, String);

fn tags(case: &Case) -> BTreeSet<Tag> {
    case.iter().flat_map(|step| step.tags.iter().map(|tag| (step.family, tag.clone()))).collect()
}

/// All cases of several states, then whichever covers most tags that none has covered yet (the first of several
/// that do), until all are covered; then the first others until there are enough. In the file's order.
fn choose(cases: Vec<Case>) -> Vec<Case> {
    let (mut chosen, mut rest): (Vec<_>, Vec<_>) =
        cases.into_iter().enumerate().partition(|(_, case)| case.len() > 1);
    let mut missing: BTreeSet<Tag> = rest.iter().flat_map(|(_, case)| tags(case)).collect();
    for (_, case) in &chosen {
        missing = missing.difference(&tags(case)).cloned().collect();
    }
    while !rest.is_empty() && (!missing.is_empty() || chosen.len() < CASES) {
        let gain = |case: &Case| tags(case).intersection(&missing).count();
        let best = (0..rest.len()).rev().max_by_key(|i| gain(&rest[*i].1)).unwrap();
        let next = rest.remove(best);
        missing = missing.difference(&tags(&next.1)).cloned().collect();
        chosen.push(next);
    }
    chosen.sort_by_key(|(position, _)| *position);
    chosen.into_iter().map(|(_, case)| case).collect()
}

fn run(cases: &[&Case], rig: Rig) -> Tally {
    let mut tally = Tally::default();
    let mut live = None;
    for case in cases {
        for step in *case {
            let what = || {
                format!(
                    "case {} {:?} step {} ({}): {}",
                    step.id,
                    step.family,
                    step.step,
                    rig.name(),
                    step.description
                )
            };
            let state = State::of_objects(&step.manifests);
            let live = Live::bring(&mut live, &state, &[], rig);
            tally += live.check_agreement(&step.into()).of(&what());
            if case.len() > 1 && step.step + 1 == case.len() {
                live.start_cold();
                tally += live.check_agreement(&step.into()).of(&format!("{} (started cold)", what()));
            }
        }
    }
    tally
}

#[test]
fn the_chosen_cases_cover_every_tag_of_both_families() {
    let every: BTreeSet<Tag> = cyclonus::cases().unwrap().iter().flat_map(tags).collect();
    let chosen = choose(cyclonus::cases().unwrap());
    let covered: BTreeSet<Tag> = chosen.iter().flat_map(tags).collect();
    assert_eq!(covered, every);
    let steps: usize = chosen.iter().map(Vec::len).sum();
    println!("{} cases, {steps} states, {} tags", chosen.len(), every.len());
    assert!(chosen.len() >= CASES);
}

#[test]
fn cases_agree_in_a_lab_whose_agent_is_given_one_state_after_another() {
    if !is_root("a lab") {
        return;
    }
    let cases = choose(cyclonus::cases().unwrap());
    let tally = in_all_rigs(|rig, part| {
        let cases: Vec<&Case> = cases.iter().skip(part).step_by(2).collect();
        run(&cases, rig)
    });
    println!("{} cases: {tally}", cases.len());
    tally.assert_right();
}
