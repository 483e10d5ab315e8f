//! The fuzzers of the packet path, bounded: a fixed seed, one that is new each time, and every failure ever found.
//! `cargo xtask fuzz` runs them for as long as one likes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_tests::fuzz::rig::Rig;
use portcullis_tests::fuzz::{Extent, Findings, stateful, stateless};
use portcullis_tests::live::data;
use portcullis_tests::privilege::{is_root, number};
use serde_json::Value;

/// Clusters of one run, of 20,000 packets each.
const CLUSTERS: u64 = 20;
/// Scripts of one run, and sequences in each.
const SCRIPTS: u64 = 3;
const SEQUENCES: u64 = 40;

fn read(name: &str) -> Value {
    let path = data().join("fuzz").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

/// Both seeds: the one that is always the same, and one that never is (or the one that is asked for).
fn seeds() -> [u64; 2] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    [1, number("PORTCULLIS_SEED", u64::try_from(now).unwrap())]
}

fn extent(units: u64) -> Extent {
    Extent { time: Duration::MAX, units }
}

fn finish(what: &str, seed: u64, findings: &Findings) {
    println!(
        "{what}: {} compared from seed {seed}, {} packets in the kernel, {} mismatches",
        findings.compared,
        findings.packets,
        findings.mismatches()
    );
    let wrong: Vec<String> = findings
        .wrong
        .iter()
        .map(|(difference, times)| {
            format!("{times} times {difference}, as in {}", findings.cases[difference])
        })
        .collect();
    assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
}

#[test]
fn random_packets_get_the_oracles_verdict_and_reason() {
    if !is_root("loading programs") {
        return;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for seed in seeds() {
        let units = number("PORTCULLIS_FUZZ_CLUSTERS", CLUSTERS);
        let findings = stateless::run(seed, threads, extent(units), stateless::PACKETS).unwrap();
        finish("packets", seed, &findings);
    }
}

#[test]
fn what_is_found_does_not_depend_on_the_number_of_threads() {
    if !is_root("loading programs") {
        return;
    }
    let found = |threads| {
        let findings = stateless::run(7, threads, extent(6), 500).unwrap();
        (findings.compared, findings.packets, findings.answers, findings.wrong)
    };
    assert_eq!(found(1), found(3));
}

#[test]
fn random_sequences_get_the_verdicts_and_leave_the_flows_of_the_model() {
    if !is_root("loading programs") {
        return;
    }
    for seed in seeds() {
        let units = number("PORTCULLIS_FUZZ_SCRIPTS", SCRIPTS);
        let findings = stateful::run(seed, 2, extent(units), SEQUENCES).unwrap();
        finish("sequences", seed, &findings);
    }
}

#[test]
fn packets_that_once_were_judged_wrong_are_judged_right() {
    if !is_root("loading programs") {
        return;
    }
    let wrong = stateless::replay(&read("packets.json")).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn sequences_that_once_went_wrong_go_right() {
    if !is_root("loading programs") {
        return;
    }
    // The namespaces are the thread's.
    let cases = read("sequences.json");
    let worker = std::thread::spawn(move || {
        let mut rig = Rig::new().unwrap();
        for case in cases.as_array().unwrap() {
            let wrong = stateful::replay(&mut rig, case).unwrap();
            assert!(wrong.is_none(), "{}: {wrong:?}", case["why"]);
        }
    });
    worker.join().unwrap();
}
