//! Changes that take the compiler's short way, against compiling everything anew and against the oracle: pods that
//! come, go, are relabelled, finish, take each other's addresses, and namespaces that are relabelled.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeSet;

use portcullis_oracle::generate;
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::Desired;
use portcullis_policy::model::ObjectKey;
use portcullis_tests::compare::{cluster_of, compare_where, key_of};
use portcullis_tests::privilege::number;
use serde_json::{Value, json};

/// Clusters, and changes of each; `PORTCULLIS_FOLLOW_CLUSTERS` and `PORTCULLIS_SEED` ask for others.
const CLUSTERS: u64 = 500;
const CHANGES: usize = 12;
const SEED: u64 = 3_000_000;

/// Changes a pod or namespace in some way; policies and Services stay.
fn change(
    objects: &mut Vec<Value>,
    gone: &mut Vec<Value>,
    subjects: &BTreeSet<ObjectKey>,
    rng: &mut SplitMix64,
) {
    let key = |object: &Value| {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let namespace = if text("namespace").is_empty() { "default".to_owned() } else { text("namespace") };
        ObjectKey::new(namespace, text("name"))
    };
    let pods: Vec<usize> = (0..objects.len())
        .filter(|at| objects[*at]["kind"] == "Pod" && !subjects.contains(&key(&objects[*at])))
        .collect();
    let namespaces: Vec<usize> =
        (0..objects.len()).filter(|at| objects[*at]["kind"] == "Namespace").collect();
    let labels = |rng: &mut SplitMix64| json!({"app": *rng.pick(&["a", "b", "web", "db"]), "tier": *rng.pick(&["x", "y"])});
    if pods.is_empty() {
        return;
    }
    let at = *rng.pick(&pods);
    match rng.below(7) {
        0 | 1 => objects[at]["metadata"]["labels"] = labels(rng),
        // Those of another pod, which somebody may still have.
        2 => {
            let other = *rng.pick(&pods);
            let donor = objects[other].clone();
            objects[at]["metadata"]["labels"] = donor["metadata"]["labels"].clone();
        }
        3 => {
            let other = objects[*rng.pick(&pods)]["status"].clone();
            objects[at]["status"] = other;
        }
        4 => objects[at]["status"]["phase"] = json!(*rng.pick(&["Running", "Succeeded", "Failed"])),
        5 => gone.push(objects.remove(at)),
        _ => {
            if let (Some(back), true) = (gone.pop(), rng.below(2) == 0) {
                objects.push(back);
            } else if !namespaces.is_empty() {
                let at = *rng.pick(&namespaces);
                objects[at]["metadata"]["labels"] = labels(rng);
            }
        }
    }
}

#[test]
fn changes_of_peers_take_the_short_way_to_the_oracles_verdicts() {
    let (clusters, first) = (number("PORTCULLIS_FOLLOW_CLUSTERS", CLUSTERS), number("PORTCULLIS_SEED", SEED));
    let (mut followed, mut whole, mut wrong) = (0u64, 0u64, Vec::new());
    for seed in first..first + clusters {
        let case = generate::cluster(seed);
        let mut rng = SplitMix64::new(seed);
        let mut objects = generate::flat(&case.manifests);
        let mut cluster = cluster_of(&objects);
        let subjects: BTreeSet<ObjectKey> = cluster.pods.keys().step_by(2).cloned().collect();
        let mut compiler = Compiler::new(0);
        let (mut tables, _) = compiler.compile(&cluster, &subjects).unwrap();
        let mut gone = Vec::new();
        for step in 0..CHANGES {
            change(&mut objects, &mut gone, &subjects, &mut rng);
            let next = cluster_of(&objects);
            if compiler.follow(&cluster, &next, &subjects, &mut tables).is_some() {
                followed += 1;
            } else {
                whole += 1;
                (tables, _) = compiler.compile(&next, &subjects).unwrap();
            }
            cluster = next;
            // Only subjects have tables.
            let now = generate::Cluster { manifests: objects.clone(), ..case.clone() };
            let outcome = compare_where(&now, &cluster, &tables, |pod, _| subjects.contains(&key_of(pod)));
            wrong.extend(outcome.mismatches.iter().map(|what| format!("seed {seed} step {step}: {what}")));
            // No address is left behind, and none is missing.
            let (anew, _) = Compiler::new(0).compile(&cluster, &subjects).unwrap();
            let keys = |tables: &Desired| tables.peers.keys().copied().collect::<BTreeSet<_>>();
            if keys(&anew) != keys(&tables) {
                wrong.push(format!(
                    "seed {seed} step {step}: {:?} but anew {:?}",
                    keys(&tables),
                    keys(&anew)
                ));
            }
        }
        if wrong.len() > 10 {
            break;
        }
    }
    println!(
        "{clusters} clusters from seed {first}: {followed} changes followed, {whole} compiled, {} wrong",
        wrong.len()
    );
    assert!(followed > whole, "too few take the short way to tell anything");
    assert!(wrong.is_empty(), "{}", wrong[..wrong.len().min(10)].join("\n"));
}
