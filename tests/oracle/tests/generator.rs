//! The generator is deterministic and reaches what it is for; the oracle keeps promises that hold in any cluster.

use std::collections::BTreeMap;

use portcullis_oracle::{Direction, Family, Reason, Verdict, World, generate};
use serde_json::Value;

const SEEDS: u64 = 1000;

#[test]
fn a_seed_gives_the_same_cluster_again_and_another_gives_another() {
    for seed in 0..50 {
        let (one, other) = (generate::cluster(seed), generate::cluster(seed));
        assert_eq!(one.manifests, other.manifests);
        assert_eq!(one.probes, other.probes);
        assert_eq!(one.external_probes, other.external_probes);
        assert_ne!(one.manifests, generate::cluster(seed + 1).manifests);
    }
}

#[test]
fn every_reason_occurs_often_and_verdicts_are_balanced() {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut allowed, mut denied) = (0, 0);
    for seed in 0..SEEDS {
        let cluster = generate::cluster(seed);
        let world = World::new(&cluster.manifests);
        for probe in &cluster.probes {
            let Some(pair) = world.pod_to_pod(&probe.from, &probe.to, probe.traffic, probe.family) else {
                continue;
            };
            if pair.egress.reason == Reason::SelfTraffic {
                continue;
            }
            match pair.verdict() {
                Verdict::Allow => allowed += 1,
                Verdict::Deny => denied += 1,
            }
        }
        for probe in &cluster.external_probes {
            if let Some(verdict) = world.judge(&probe.pod, probe.direction, probe.remote, probe.traffic) {
                *reasons.entry(verdict.reason.name()).or_default() += 1;
            }
        }
    }
    assert_eq!(reasons.len(), 7, "{reasons:?}");
    assert!(reasons.values().all(|count| *count > 50), "{reasons:?}");
    assert!(allowed > denied / 4 && denied > allowed / 4, "{allowed} allowed, {denied} denied");
}

#[test]
fn the_features_that_break_evaluators_are_all_there() {
    let mut text = String::new();
    for seed in 0..SEEDS {
        text.push_str(&Value::Array(generate::cluster(seed).manifests).to_string());
    }
    let features = [
        "\"endPort\":",
        "\"except\":[",
        "\"except\":null",
        "\"port\":\"web\"",
        "\"port\":\"80\"",
        "\"port\":0",
        "\"from\":null",
        "\"from\":[]",
        "\"to\":[]",
        "\"ports\":[]",
        "\"ports\":null",
        "\"policyTypes\":[]",
        "\"policyTypes\":null",
        "\"policyTypes\":[\"Ingress\",\"Foo\"]",
        "\"podSelector\":null",
        "\"podSelector\":7",
        "\"spec\":\"wrong\"",
        "\"form\":",
        "\"endport\":",
        "\"matchLabel\":",
        "\"NotIn\"",
        "\"DoesNotExist\"",
        "\"Gt\"",
        "\"hostNetwork\":true",
        "\"Succeeded\"",
        "\"deletionTimestamp\"",
        "\"restartPolicy\":\"Always\"",
        "\"clusterIP\":\"None\"",
        "\"kind\":\"List\"",
        "\"0.0.0.0/0\"",
        "\"::/0\"",
        "\"010.00.0.",
        "extensions/v1beta1",
        "+02:00",
        "\"protocol\":\"tcp\"",
        "\"ingress\":[{}]",
    ];
    for feature in features {
        assert!(text.contains(feature), "no {feature} in {SEEDS} clusters");
    }
}

#[test]
fn rows_agree_with_pairs_and_pairs_with_both_ends() {
    for seed in 0..300 {
        let cluster = generate::cluster(seed);
        let world = World::new(&cluster.manifests);
        for family in [Family::Ipv4, Family::Ipv6] {
            let order = world.order(family);
            for traffic in &cluster.traffics {
                let rows = world.matrix(*traffic, family);
                for (from, row) in order.iter().zip(&rows) {
                    for (to, cell) in order.iter().zip(row.chars()) {
                        let there = world.address(to, family).unwrap();
                        let here = world.address(from, family).unwrap();
                        let out = world.judge(from, Direction::Egress, there, *traffic).unwrap();
                        let back = world.judge(to, Direction::Ingress, here, *traffic).unwrap();
                        let allowed = out.verdict == Verdict::Allow && back.verdict == Verdict::Allow;
                        let expected = if from == to { '-' } else { ['X', '.'][usize::from(allowed)] };
                        assert_eq!(cell, expected, "seed {seed}: {from} to {to} {traffic}: {out:?} {back:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn without_policies_nobody_is_isolated_and_a_list_is_nothing_but_its_items() {
    for seed in 0..300 {
        let cluster = generate::cluster(seed);
        let flat = generate::flat(&cluster.manifests);
        let bare: Vec<Value> =
            flat.iter().filter(|manifest| manifest["kind"] != "NetworkPolicy").cloned().collect();
        let world = World::new(&bare);
        for probe in &cluster.external_probes {
            let Some(verdict) = world.judge(&probe.pod, probe.direction, probe.remote, probe.traffic) else {
                continue;
            };
            let open = matches!(
                verdict.reason,
                Reason::NotIsolated | Reason::SelfTraffic | Reason::UndeclaredNamespace
            );
            assert!(open, "seed {seed}: {probe:?}: {verdict:?}");
        }
        // A list is nothing but its items
        let (listed, flat) = (World::new(&cluster.manifests), World::new(&flat));
        for traffic in &cluster.traffics {
            assert_eq!(
                listed.matrix(*traffic, Family::Ipv4),
                flat.matrix(*traffic, Family::Ipv4),
                "seed {seed}"
            );
        }
    }
}
