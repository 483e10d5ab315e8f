//! `matrix --diff` of random pairs of clusters against the difference of the oracle's matrices.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use portcullis_agent::verbs::ask::{Family, Judge, MatrixRequest, TrafficText};
use portcullis_agent::verbs::matrix::{self, Matrix, diff};
use portcullis_agent::world::World as Asked;
use portcullis_oracle::{Family as OracleFamily, Traffic, World, generate};
use portcullis_tests::compare::{cluster_of, compile, traffic_of};
use portcullis_tests::privilege::number;
use serde_json::Value;

/// Pairs of clusters; `PORTCULLIS_PAIRS` and `PORTCULLIS_SEED` ask for others.
const PAIRS: u64 = 500;

/// What a pull request may do: some objects go, and policies and pods of another cluster come.
fn changed(before: &[Value], other: &[Value], seed: u64) -> Vec<Value> {
    let kept = (0u64..).zip(before).filter(|(place, _)| !(place + seed).is_multiple_of(4));
    let comes = |manifest: &&Value| matches!(manifest["kind"].as_str(), Some("NetworkPolicy" | "Pod"));
    let new = other.iter().filter(comes).take(3);
    kept.map(|(_, manifest)| manifest).chain(new).cloned().collect()
}

fn matrices(manifests: &[Value], request: &MatrixRequest) -> Option<Vec<Matrix>> {
    let cluster = cluster_of(manifests);
    let desired = compile(&cluster);
    let world = Asked { cluster, desired, ..Asked::default() };
    matrix::matrix(&world, None, request).ok().map(|reply| reply.result)
}

/// Every pair that the oracle knows, and whether it is allowed.
fn cells(manifests: &[Value], traffic: Traffic, family: OracleFamily) -> BTreeMap<(String, String), bool> {
    let world = World::new(manifests);
    let (order, rows) = (world.order(family), world.matrix(traffic, family));
    let row = |(from, row): (&String, &String)| -> Vec<((String, String), bool)> {
        order
            .iter()
            .zip(row.chars())
            .filter(|(_, cell)| *cell != '-')
            .map(|(to, cell)| ((from.clone(), to.clone()), cell == '.'))
            .collect()
    };
    order.iter().zip(&rows).flat_map(row).collect()
}

#[test]
fn the_difference_is_that_of_the_oracles_matrices() {
    let (pairs, seed) = (number("PORTCULLIS_PAIRS", PAIRS), number("PORTCULLIS_SEED", 1));
    let (mut opened, mut closed, mut moved, mut equal) = (0, 0, 0, 0);
    for seed in seed..seed + pairs {
        let case = generate::cluster(seed);
        let before = case.manifests;
        let after = match seed % 10 {
            0 => before.clone(),
            _ => changed(&before, &generate::cluster(seed + 1_000_000).manifests, seed),
        };
        for (family, oracle) in [(Family::Ipv4, OracleFamily::Ipv4), (Family::Ipv6, OracleFamily::Ipv6)] {
            let ports = case.traffics.iter().map(|traffic| TrafficText(traffic_of(*traffic))).collect();
            let request = MatrixRequest {
                ports,
                family: Some(family),
                judge: Judge::Userspace,
                namespaces: Vec::new(),
                services: Vec::new(),
                hosts: portcullis_agent::verbs::ask::Hosts::Out,
            };
            let (Some(first), Some(second)) = (matrices(&before, &request), matrices(&after, &request))
            else {
                continue;
            };
            let found = diff::differences(&first, &second, &[]);
            assert_eq!(found.len(), case.traffics.len());
            for (found, traffic) in found.iter().zip(&case.traffics) {
                let (old, new) = (cells(&before, *traffic, oracle), cells(&after, *traffic, oracle));
                let turned = |to: bool| -> Vec<(String, String)> {
                    let both = old.iter().filter_map(|(pair, was)| Some((pair, *was, *new.get(pair)?)));
                    let turned = both.filter(|(_, was, is)| was != is && *is == to);
                    let mut pairs: Vec<_> = turned.map(|(pair, ..)| pair.clone()).collect();
                    // By namespace, then name: `a-b/x` comes after `a/x`.
                    let split = |pod: &str| pod.split_once('/').map(|(a, b)| (a.to_owned(), b.to_owned()));
                    pairs.sort_by_key(|(from, to)| (split(from), split(to)));
                    pairs
                };
                let told = |pairs: &[diff::Pair]| -> Vec<(String, String)> {
                    pairs.iter().map(|pair| (pair.from.clone(), pair.to.clone())).collect()
                };
                let context = format!("seed {seed} {traffic} {family:?}");
                assert_eq!(told(&found.opened), turned(true), "{context}: opened");
                assert_eq!(told(&found.closed), turned(false), "{context}: closed");
                let names = |manifests: &[Value]| BTreeSet::from_iter(World::new(manifests).order(oracle));
                let (old, new) = (names(&before), names(&after));
                assert_eq!(BTreeSet::from_iter(found.added.clone()), &new - &old, "{context}: added");
                assert_eq!(BTreeSet::from_iter(found.removed.clone()), &old - &new, "{context}: removed");
                opened += found.opened.len();
                closed += found.closed.len();
                moved += found.added.len() + found.removed.len();
            }
            if diff::exit(&found) == portcullis_agent::output::Exit::Fine {
                equal += 1;
            }
        }
    }
    println!("{pairs} pairs: {opened} opened, {closed} closed, {moved} pods came or went, {equal} equal");
    assert!(
        pairs < PAIRS || (opened > 500 && closed > 500 && moved > 500 && equal > 50),
        "too little differs"
    );
}
