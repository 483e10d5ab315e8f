//! The walk-through of docs/kind.md: a policy that nobody enforces, the agent, the same policy, and the exceptions.

use anyhow::Result;
use portcullis_tests::cluster::{Cluster, DEADLINE, until};

const POLICIES: [&str; 3] = [
    "tests/data/seeds/netpol-demo/1-default-deny-ingress.yaml",
    "tests/data/seeds/netpol-demo/2-web-allow-frontend.yaml",
    "tests/data/seeds/netpol-demo/3-db-policy.yaml",
];
const WEB: &str = "web-app.netpol-demo.svc.cluster.local:80";
const DATABASE: &str = "postgres.netpol-demo.svc.cluster.local:5432";
/// A client of another namespace, one of a namespace of front ends, and a web server.
const STRANGER: (&str, &str) = ("default", "client");
const SHOP: (&str, &str) = ("shop", "client");
const SERVER: (&str, &str) = ("netpol-demo", "deployment/web-app");

/// True if the pod's connection by name and Service is answered.
fn connects(cluster: &Cluster, (namespace, pod): (&str, &str), to: &str) -> bool {
    let words = ["-n", namespace, "exec", pod, "--", "/agnhost", "connect", to, "--timeout=2s"];
    cluster.kubectl(&words).is_ok()
}

/// Waits until it is so: what was applied is in force a moment later.
fn comes_to(cluster: &Cluster, from: (&str, &str), to: &str, answered: bool) {
    let is_so = || -> Result<Option<()>> { Ok((connects(cluster, from, to) == answered).then_some(())) };
    let came = until(DEADLINE, is_so).unwrap();
    assert!(came.is_some(), "{from:?} -> {to}: should be answered: {answered}");
}

fn stands(cluster: &Cluster) -> Result<()> {
    cluster.apply_file("deploy/kind/demo.yaml")?;
    for deployment in ["deployment/web-app", "deployment/database"] {
        cluster.kubectl(&["-n", "netpol-demo", "rollout", "status", deployment, "--timeout=120s"])?;
    }
    for (namespace, pod) in [STRANGER, SHOP] {
        cluster.kubectl(&["-n", namespace, "wait", "--for=condition=Ready", "--timeout=60s", "pod", pod])?;
    }
    Ok(())
}

fn take_down(cluster: &Cluster) {
    cluster.kubectl(&["-n", "default", "delete", "pod", "client", "--ignore-not-found"]).unwrap();
    cluster.delete_namespaces(&["netpol-demo", "shop"]).unwrap();
}

#[test]
fn a_policy_that_nobody_enforced_is_in_force_once_the_agent_is_installed() {
    let Some(cluster) = Cluster::of_environment() else { return };
    // given an application and a policy on a cluster without us
    if cluster.is_installed() {
        cluster.remove().unwrap();
    }
    stands(&cluster).unwrap();
    cluster.apply_file(POLICIES[0]).unwrap();
    // Nothing is to come, so asking once, after all is ready, is enough.
    assert!(connects(&cluster, STRANGER, WEB), "somebody else enforces NetworkPolicy on this cluster");
    // when
    cluster.install().unwrap();
    // then
    for from in [STRANGER, SHOP] {
        comes_to(&cluster, from, WEB, false);
    }
    comes_to(&cluster, SERVER, DATABASE, false);
    // The kubelet's probes are the own node's.
    stands(&cluster).unwrap();

    // when the front ends are let in
    cluster.apply_file(POLICIES[1]).unwrap();
    // then they are, and nobody else
    comes_to(&cluster, SHOP, WEB, true);
    comes_to(&cluster, STRANGER, WEB, false);
    comes_to(&cluster, SHOP, DATABASE, false);

    // when the servers are let to their database
    cluster.apply_file(POLICIES[2]).unwrap();
    // then
    comes_to(&cluster, SERVER, DATABASE, true);
    comes_to(&cluster, SHOP, DATABASE, false);

    // when the policies go
    cluster.kubectl(&["-n", "netpol-demo", "delete", "networkpolicies", "--all"]).unwrap();
    // then all are let in again
    comes_to(&cluster, STRANGER, WEB, true);
    take_down(&cluster);
}
