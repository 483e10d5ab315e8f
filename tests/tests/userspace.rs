//! The compiler and the shared classification in userspace, against the oracle and the Cyclonus cases.
#![allow(missing_docs)]

use portcullis_common::event::Action;
use portcullis_oracle::cyclonus;
use portcullis_oracle::generate;
use portcullis_policy::answer::{Answers, Party};
use portcullis_policy::frame::Traffic;
use portcullis_tests::compare::{cluster_of, compare, compile, family_of};
use portcullis_tests::privilege::number;
use portcullis_tests::seeds::tallied;

/// Clusters of the property test; `PORTCULLIS_CLUSTERS` and `PORTCULLIS_SEED` ask for others.
const CLUSTERS: u64 = 100_000;

/// After so many wrong answers a thread asks no more.
const ENOUGH: usize = 20;

#[test]
fn random_clusters_get_the_oracles_verdicts_and_attributions() {
    let (clusters, seed) = (number("PORTCULLIS_CLUSTERS", CLUSTERS), number("PORTCULLIS_SEED", 1));
    let started = std::time::Instant::now();
    let tally = tallied(&(seed..seed + clusters), one, |sum, more| Tally {
        compared: sum.compared + more.compared,
        wrong: [sum.wrong, more.wrong].concat(),
    });
    let Tally { compared, wrong } = tally;
    println!(
        "{clusters} clusters from seed {seed}, {compared} answers, {} mismatches, {:.1} s",
        wrong.len(),
        started.elapsed().as_secs_f64()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[derive(Default)]
struct Tally {
    compared: u64,
    wrong: Vec<String>,
}

fn one(seed: u64, tally: &mut Tally) {
    if tally.wrong.len() > ENOUGH {
        return;
    }
    let outcome = compare(&generate::cluster(seed));
    tally.compared += outcome.compared;
    tally.wrong.extend(outcome.mismatches.iter().map(|mismatch| format!("seed {seed}: {mismatch}")));
}

#[test]
fn cyclonus_cases_have_no_wrong_cell() {
    let mut cells = 0;
    for step in cyclonus::load().unwrap() {
        let cluster = cluster_of(&step.manifests);
        let desired = compile(&cluster);
        let answers = Answers::new(&cluster, &desired);
        let order = answers.order(family_of(step.family));
        let names: Vec<String> = order.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(names, step.order);
        for ((protocol, port), expected) in &step.expected {
            let traffic: Traffic = format!("{protocol}/{port}").parse().unwrap();
            for ((from, row), source) in order.iter().zip(expected).zip(&names) {
                for ((to, cell), target) in order.iter().zip(row.chars()).zip(&names) {
                    if cell == '-' {
                        continue;
                    }
                    let party = |(key, address): &(_, _)| Party::Pod(Clone::clone(key), *address);
                    let action = answers.answer(&party(from), &party(to), traffic).action();
                    let ours = match action {
                        Action::Allow => '.',
                        Action::Deny => 'X',
                    };
                    assert_eq!(
                        ours, cell,
                        "case {} step {}: {source} -> {target} {protocol}/{port} ({})",
                        step.id, step.step, step.description
                    );
                    cells += 1;
                }
            }
        }
    }
    println!("{cells} cells");
}
