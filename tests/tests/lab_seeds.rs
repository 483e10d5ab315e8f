//! The published examples of policies, each in a lab: everybody who can be asked says what was written down.
#![allow(missing_docs)]

use portcullis_lab::Hook;
use portcullis_tests::live::agreement::Tally;
use portcullis_tests::live::expected::{Expected, Seed};
use portcullis_tests::live::{Live, Rig, in_all_rigs};
use portcullis_tests::privilege::is_root;

/// All of them; a file beside them that is not here would not be tried.
const SEEDS: [&str; 9] = [
    "access-nginx",
    "allow-all-ingress",
    "cloud-metadata",
    "default-deny",
    "default-deny-egress",
    "netpol-demo",
    "project-snake",
    "project-snake-wrong",
    "role-db",
];

fn run(name: &str, rig: Rig) -> Tally {
    let mut tally = Tally::default();
    let seed = Seed::load(name);
    let mut live = None;
    for (number, step) in seed.steps.iter().enumerate() {
        let live = Live::bring(&mut live, &step.state(), &seed.outside(), rig);
        tally += live.check_agreement(&step.expected).of(&format!("{name} step {number} ({})", rig.name()));
    }
    tally
}

#[test]
fn every_example_of_the_seeds_is_enforced_explained_and_counted() {
    if !is_root("a lab") {
        return;
    }
    assert_eq!(Seed::names(), SEEDS.map(str::to_owned).into());
    let tally = in_all_rigs(|rig, part| {
        let mut tally = Tally::default();
        for name in SEEDS.iter().skip(part).step_by(2) {
            tally += run(name, rig);
        }
        tally
    });
    println!("{tally}");
    tally.assert_right();
}

/// What all the other tests here rest on: a wrong expectation is noticed by everybody who is asked.
#[test]
fn a_wrong_expectation_is_contradicted_by_all() {
    if !is_root("a lab") {
        return;
    }
    let seed = Seed::load("default-deny");
    let step = &seed.steps[0];
    let mut live = Live::up(&step.state(), seed.outside(), Hook::Auto);
    for (place, right, wrong) in [(1, "-X.", "-.."), (2, "-X.", "-XX")] {
        let mut expected = step.expected.clone();
        let matrix = expected.matrix.iter_mut().find(|m| m.protocol == "TCP").expect("there is TCP");
        assert_eq!(matrix.rows[0], right);
        wrong.clone_into(&mut matrix.rows[0]);
        let said = live.check_agreement(&expected).wrong;
        for judge in ["matrix `", "matrix --kernel `", "matrix --source `", "explain", "a real one"] {
            let heard = said.iter().filter(|text| text.contains(judge)).count();
            assert!(heard >= 1, "{judge} does not contradict a wrong cell {place}: {said:#?}");
        }
        let flow = format!("default/client -> {} TCP/80 ipv4: ", matrix_name(&expected, place));
        assert!(said.iter().all(|text| text.starts_with(&flow)), "{said:#?}");
    }
}

fn matrix_name(expected: &Expected, place: usize) -> &str {
    &expected.matrix[0].order[place]
}
