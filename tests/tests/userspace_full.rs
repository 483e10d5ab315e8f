//! Random clusters that follow each other in tables too small for them: whoever has room gets the oracle's verdicts,
//! whoever has none keeps a complete ruleset or is closed, and writing the differences leads to what was compiled (T17).
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use portcullis_common::wire::RULESET_CLOSED;
use portcullis_oracle::rng::SplitMix64;
use portcullis_oracle::{Direction, generate};
use portcullis_policy::compile::{Compiler, Fitted, Instead};
use portcullis_policy::desired::Desired;
use portcullis_policy::diff::diff;
use portcullis_policy::sizes::{Sizes, Table, TableSize};
use portcullis_tests::compare::{cluster_of, compare_where, way_of};
use portcullis_tests::privilege::number;

/// Sequences; `PORTCULLIS_CLUSTERS` and `PORTCULLIS_SEED` ask for others.
const SEQUENCES: u64 = 500;
/// Clusters of each.
const LENGTH: u64 = 4;
/// As often as the reconciler settles after a change.
const ROUNDS: u32 = 6;

/// What a sequence came to.
#[derive(Default)]
struct Tally {
    compared: u64,
    held: u64,
    kept: u64,
    refused: u64,
    wrong: Vec<String>,
}

fn sizes(rng: &mut SplitMix64) -> Sizes {
    let some = |table: Table, rng: &mut SplitMix64| {
        let most = match table {
            Table::Prefixes => 12,
            Table::Peers | Table::Counters => 24,
            Table::Rulesets | Table::Rules | Table::Rows | Table::PortRanges | Table::PeerRows => 120,
            Table::Endpoints | Table::Events => return None,
        };
        // Most have room: otherwise always the same one would be full.
        let least = *table.bounds().start();
        (rng.below(3) == 0)
            .then(|| TableSize { table, size: least + u32::try_from(rng.below(most)).unwrap_or(0) })
    };
    Table::ALL.into_iter().filter_map(|table| some(table, rng)).collect()
}

fn sequence(seed: u64, tally: &mut Tally) {
    let mut rng = SplitMix64::new(seed);
    let sizes = sizes(&mut rng);
    let bank = u32::try_from(seed % 3).unwrap_or(0);
    let mut compiler = Compiler::with_sizes(bank, sizes.clone());
    let mut written = Desired { bank, ..Desired::default() };
    for step in 0..LENGTH {
        let case = generate::cluster(seed * LENGTH + step);
        let cluster = cluster_of(&case.manifests);
        let what = format!("seed {seed} step {step} sizes {sizes:?}");
        let mut last = None;
        for _ in 0..ROUNDS {
            let in_force = written.endpoints.clone();
            let Ok(fitted) = compiler.compile_what_fits(&cluster, cluster.pods.keys(), &in_force) else {
                break;
            };
            let plan = diff(&written, &fitted.desired);
            for op in plan.before.iter().chain(&plan.after) {
                op.apply(&mut written);
            }
            written.endpoints.clone_from(&fitted.desired.endpoints);
            written.counters.clone_from(&fitted.desired.counters);
            let has_settled = !compiler.has_unused();
            last = Some(fitted);
            if has_settled {
                break;
            }
            compiler.sweep();
        }
        match last {
            None => tally.refused += 1,
            Some(fitted) => check(&what, &case, &fitted, &written, tally),
        }
    }
}

fn check(what: &str, case: &generate::Cluster, fitted: &Fitted, written: &Desired, tally: &mut Tally) {
    let cluster = cluster_of(&case.manifests);
    let held: BTreeSet<(String, bool)> = fitted
        .held
        .iter()
        .map(|one| (one.pod.to_string(), one.direction == way_of(Direction::Ingress)))
        .collect();
    for one in &fitted.held {
        let ruleset = fitted.desired.endpoints[&one.pod].of(one.direction);
        let is_closed = u32::from(ruleset) == RULESET_CLOSED;
        let is_there = fitted.desired.rulesets.contains_key(&u32::from(ruleset));
        let is_right = match one.instead {
            Instead::Closed => is_closed,
            Instead::Last => is_there && !is_closed,
        };
        if !is_right {
            tally.wrong.push(format!("{what}: {one:?} has ruleset {ruleset}"));
        }
        tally.held += 1;
        tally.kept += u64::from(one.instead == Instead::Last);
    }
    let told = fitted.problems.iter().filter(|problem| problem.message.contains("--map-size")).count();
    if (told == 0) != held.is_empty() {
        tally.wrong.push(format!("{what}: {} held, {told} told", held.len()));
    }
    // Rows and rules that nothing names any more stay written; whatever is named must be the same.
    let differs = |name: &str, same: bool, tally: &mut Tally| {
        if !same {
            tally.wrong.push(format!("{what}: {name} are not as compiled"));
        }
    };
    differs("rulesets", written.rulesets == fitted.desired.rulesets, tally);
    differs("peers", written.peers == fitted.desired.peers, tally);
    differs("prefixes", written.prefixes == fitted.desired.prefixes, tally);
    differs("peer rows", written.peer_rows == fitted.desired.peer_rows, tally);
    differs("rows", holds(&written.rows, &fitted.desired.rows), tally);
    differs("rules", holds(&written.rules, &fitted.desired.rules), tally);
    differs("port ranges", holds(&written.port_ranges, &fitted.desired.port_ranges), tally);
    let outcome = compare_where(case, &cluster, written, |pod, direction| {
        !held.contains(&(pod.to_owned(), matches!(direction, Direction::Ingress)))
    });
    tally.compared += outcome.compared;
    tally.wrong.extend(outcome.mismatches.iter().map(|m| format!("{what}: {m}")));
}

fn holds<K: Ord, V: PartialEq>(all: &BTreeMap<K, V>, some: &BTreeMap<K, V>) -> bool {
    some.iter().all(|(key, value)| all.get(key) == Some(value))
}

#[test]
fn t17_in_tables_that_are_too_small_whoever_has_room_gets_the_oracles_verdicts() {
    let (sequences, seed) = (number("PORTCULLIS_CLUSTERS", SEQUENCES), number("PORTCULLIS_SEED", 1));
    let mut tally = Tally::default();
    for n in 0..sequences {
        sequence(seed + n, &mut tally);
    }
    println!(
        "{sequences} sequences from seed {seed}: {} flows compared, {} directions held, {} of them with their last \
         rules, {} clusters refused, {} wrong",
        tally.compared,
        tally.held,
        tally.kept,
        tally.refused,
        tally.wrong.len()
    );
    let some: Vec<&str> = tally.wrong.iter().take(10).map(String::as_str).collect();
    assert!(some.is_empty(), "{}", some.join("\n"));
    assert!(tally.compared > 0 && tally.held > 0 && tally.kept > 0, "too little was tried");
}
