//! The loaded programs, by `BPF_PROG_TEST_RUN`, against the Cyclonus cases and the oracle's random clusters.
#![allow(missing_docs)]

use portcullis_oracle::{cyclonus, generate};
use portcullis_tests::kernel::{Loaded, Tally};
use portcullis_tests::privilege::{is_root, number};
use portcullis_tests::{device, flow};

/// Clusters of the property test in the kernel.
const CLUSTERS: u64 = 2_000;

fn finish(what: &str, tally: &Tally) {
    println!("{what}: {} packets in the kernel, {} wrong", tally.packets, tally.wrong.len());
    let some: Vec<&str> = tally.wrong.iter().take(10).map(String::as_str).collect();
    assert!(some.is_empty(), "{}", some.join("\n"));
}

#[test]
fn cyclonus_cases_have_no_wrong_cell_in_the_kernel() {
    if !is_root("loading programs") {
        return;
    }
    let (mut loaded, mut tally) = (Loaded::default(), Tally::default());
    for step in cyclonus::load().unwrap() {
        loaded.step(&step, &mut tally);
    }
    finish("cyclonus", &tally);
}

#[test]
fn random_clusters_get_the_oracles_verdicts_in_the_kernel() {
    if !is_root("loading programs") {
        return;
    }
    let (clusters, seed) =
        (number("PORTCULLIS_KERNEL_CLUSTERS", CLUSTERS), number("PORTCULLIS_SEED", 1_000_000));
    let (mut loaded, mut tally) = (Loaded::default(), Tally::default());
    for n in 0..clusters {
        loaded.random(&generate::cluster(seed + n), &mut tally);
    }
    finish(&format!("{clusters} clusters from seed {seed}"), &tally);
}

#[test]
fn flows_and_their_icmp_errors_pass_the_attached_load() {
    if !is_root("loading programs") {
        return;
    }
    // Of this test's thread alone.
    device::own_namespace().unwrap();
    flow::follow().unwrap();
}
