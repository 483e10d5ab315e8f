//! Manifests: whatever a file says, reading and compiling it ends, and a pod that another file isolates stays isolated.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_common::wire::RULESET_OPEN;
use portcullis_policy::compile::Compiler;
use portcullis_policy::manifest::{Options, SourceFile, load_sources};
use portcullis_policy::model::ObjectKey;

/// Read last: of objects that come twice the later counts.
const CLOSED: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: closed-by-us}}
---
{apiVersion: v1, kind: Pod, metadata: {name: pod, namespace: closed-by-us},
 spec: {containers: [{name: c}]}, status: {podIPs: [{ip: 10.77.0.1}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed, namespace: closed-by-us},
 spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}
"#;

fuzz_target!(|data: &[u8]| {
    let files = [
        SourceFile { path: "a.yaml", content: data },
        SourceFile { path: "b.yaml", content: CLOSED.as_bytes() },
    ];
    let loaded = load_sources(&files, &Options::default());
    let cluster = loaded.cluster;
    let Ok((desired, _)) = Compiler::new(0).compile(&cluster, cluster.pods.keys()) else { return };
    if let Some(rulesets) = desired.endpoints.get(&ObjectKey::new("closed-by-us", "pod")) {
        let open = [rulesets.ingress, rulesets.egress].map(|id| u32::from(id) == RULESET_OPEN);
        assert_eq!(open, [false, false]);
    }
});
