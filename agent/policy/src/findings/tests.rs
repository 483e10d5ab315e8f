//! Given manifests, when they are looked through, then exactly what is odd is found.

use serde_json::json;

use super::*;
use crate::manifest::{Options, SourceFile, load_sources};
use crate::testing::{load, namespace};

const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: ns, labels: {team: a}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: ns, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: ns, labels: {app: db}}
status: {podIP: 10.0.0.2}
---
";

/// Kind and field of what is found in a policy named `p` with this spec, beside two pods.
fn found(spec: &str) -> Vec<(FindingKind, String)> {
    let text = format!(
        "{PODS}apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: ns}}\nspec: {spec}\n"
    );
    in_text(&text).into_iter().map(|f| (f.kind, f.field)).collect()
}

fn in_text(text: &str) -> Vec<Finding> {
    let loaded =
        load_sources(&[SourceFile { path: "all.yaml", content: text.as_bytes() }], &Options::default());
    findings(&loaded.cluster)
}

fn one(kind: FindingKind, field: &str) -> Vec<(FindingKind, String)> {
    vec![(kind, field.to_owned())]
}

#[test]
fn a_policy_as_it_should_be_has_no_findings() {
    let spec = "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], \
                ports: [{port: http}]}]}";
    assert_eq!(found(spec), []);
}

#[test]
fn a_policy_without_pods() {
    let spec = "{podSelector: {matchLabels: {app: wbe}}, ingress: [{}]}";
    assert_eq!(found(spec), one(FindingKind::SelectsNothing, "spec.podSelector"));
}

#[test]
fn peers_that_match_nothing() {
    let rule = |from: &str| format!("{{podSelector: {{}}, ingress: [{{from: [{from}]}}]}}");
    let nothing = one(FindingKind::PeerMatchesNothing, "spec.ingress[0].from");
    assert_eq!(found(&rule("{podSelector: {matchLabels: {app: x}}}")), nothing);
    assert_eq!(found(&rule("{namespaceSelector: {matchLabels: {team: b}}}")), nothing);
    assert_eq!(found(&rule("{namespaceSelector: {matchLabels: {team: a}}}")), []);
    let halves = "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/9, 10.128.0.0/9]}}";
    assert_eq!(found(&rule(halves)), nothing);
    assert_eq!(found(&rule("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/9]}}")), []);
}

#[test]
fn a_rule_that_could_not_be_read_is_one_finding() {
    let spec = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}";
    assert_eq!(found(spec), one(FindingKind::RuleMatchesNothing, "spec.ingress[0]"));
}

#[test]
fn named_ports_that_nobody_declares() {
    let ports = |subject: &str, port: &str| {
        found(&format!(
            "{{podSelector: {{matchLabels: {{app: {subject}}}}}, ingress: [{{ports: [{port}]}}]}}"
        ))
    };
    let nothing = one(FindingKind::PortMatchesNothing, "spec.ingress[0].ports");
    assert_eq!(ports("web", "{port: http}"), []);
    assert_eq!(ports("web", "{port: http, protocol: UDP}"), nothing);
    assert_eq!(ports("db", "{port: http}"), nothing);
    let egress = |to: &str| {
        found(&format!(
            "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{to}], ports: [{{port: http}}]}}, \
             {{ports: [{{port: 53}}, {{port: 53, protocol: UDP}}]}}]}}"
        ))
    };
    let nothing = one(FindingKind::PortMatchesNothing, "spec.egress[0].ports");
    assert_eq!(egress("{podSelector: {matchLabels: {app: web}}}"), []);
    assert_eq!(egress("{podSelector: {matchLabels: {app: db}}}"), nothing);
    assert_eq!(egress("{ipBlock: {cidr: 10.0.0.1/32}}"), []);
    assert_eq!(egress("{ipBlock: {cidr: 10.0.0.2/32}}"), nothing);
}

#[test]
fn rules_that_an_earlier_one_makes_needless() {
    let pair =
        |first: &str, second: &str| found(&format!("{{podSelector: {{}}, ingress: [{first}, {second}]}}"));
    let second = one(FindingKind::RuleShadowed, "spec.ingress[1]");
    let web = "{podSelector: {matchLabels: {app: web}}}";
    let db = "{podSelector: {matchLabels: {app: db}}}";
    assert_eq!(pair("{}", &format!("{{from: [{web}]}}")), second);
    assert_eq!(pair(&format!("{{from: [{web}]}}"), "{}"), [], "a wider one behind is no matter");
    assert_eq!(pair(&format!("{{from: [{web}]}}"), &format!("{{from: [{db}]}}")), []);
    assert_eq!(pair(&format!("{{from: [{web}, {db}]}}"), &format!("{{from: [{db}]}}")), second);
    assert_eq!(pair("{ports: [{port: 1, endPort: 9}]}", "{ports: [{port: 9}]}"), second);
    assert_eq!(pair("{ports: [{port: 1, endPort: 9}]}", "{ports: [{port: 10}]}"), []);
    assert_eq!(
        pair("{ports: [{port: 1, endPort: 5}, {port: 6}]}", "{ports: [{port: 4, endPort: 6}]}"),
        second
    );
    assert_eq!(pair("{ports: [{port: 9, protocol: UDP}]}", "{ports: [{port: 9}]}"), []);
    assert_eq!(pair("{ports: [{}]}", "{ports: [{port: http}]}").len(), 1, "every TCP port holds a named one");
    let block =
        |cidr: &str, except: &str| format!("{{from: [{{ipBlock: {{cidr: {cidr}, except: [{except}]}}}}]}}");
    assert_eq!(pair(&block("10.0.0.0/8", ""), &block("10.1.0.0/16", "")), second);
    assert_eq!(pair(&block("10.0.0.0/8", "10.1.2.0/24"), &block("10.1.0.0/16", "")), []);
    assert_eq!(pair(&block("10.0.0.0/8", "10.1.2.0/24"), &block("10.1.0.0/16", "10.1.2.0/23")), second);
    assert_eq!(pair(&block("10.0.0.0/8", "10.2.0.0/16"), &block("10.1.0.0/16", "")), second);
    assert_eq!(pair(&block("10.0.0.0/8", "10.0.0.0/9"), &block("10.1.0.0/16", "")), []);
    let named = "{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ns}}}]}";
    assert_eq!(pair(named, "{from: [{podSelector: {}}]}"), second);
    assert_eq!(pair("{from: [{podSelector: {}}]}", named), second);
}

#[test]
fn a_rule_of_another_policy_shadows_for_the_same_pods_only() {
    let policies = |first: &str, second: &str| {
        let one = |name: &str, subject: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: ns}}\n\
                 spec: {{podSelector: {subject}, ingress: [{{ports: [{{port: 80}}]}}]}}\n---\n"
            )
        };
        let text = format!("{PODS}{}{}", one("a", first), one("b", second));
        in_text(&text).into_iter().map(|f| (f.object, f.kind, f.message)).collect::<Vec<_>>()
    };
    let web = "{matchLabels: {app: web}}";
    let found = policies("{}", web);
    let [(object, FindingKind::RuleShadowed, message)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(object, "NetworkPolicy ns/b");
    assert!(message.starts_with("NetworkPolicy ns/a spec.ingress[0] allows all"), "{message}");
    assert_eq!(policies(web, "{}"), []);
}

#[test]
fn egress_without_dns() {
    let egress =
        |rules: &str| found(&format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{rules}]}}"));
    let none = one(FindingKind::NoDns, "spec.egress");
    assert_eq!(egress(""), none);
    assert_eq!(egress("{ports: [{port: 443}]}"), none);
    assert_eq!(egress("{ports: [{port: 53, protocol: UDP}]}"), none, "long answers come by TCP");
    assert_eq!(egress("{ports: [{port: 53, protocol: UDP}, {port: 1, endPort: 100}]}"), []);
    assert_eq!(egress("{to: [{ipBlock: {cidr: 10.96.0.10/32}}]}"), []);
    let text = |severity: &str| format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{severity}]}}");
    assert_eq!(found(&text("")).len(), 1);
}

#[test]
fn dns_that_another_policy_allows_counts() {
    let one = |name: &str, subject: &str, rules: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: ns}}\n\
             spec: {{podSelector: {subject}, policyTypes: [Egress], egress: [{rules}]}}\n---\n"
        )
    };
    let dns = "{ports: [{port: 53, protocol: UDP}, {port: 53}]}";
    let both = format!("{PODS}{}{}", one("deny", "{}", ""), one("dns", "{}", dns));
    assert_eq!(in_text(&both), []);
    let web_only = format!("{PODS}{}{}", one("deny", "{}", ""), one("dns", "{matchLabels: {app: web}}", dns));
    let found = in_text(&web_only);
    assert_eq!(
        found.iter().map(|f| (f.kind, f.severity)).collect::<Vec<_>>(),
        [(FindingKind::NoDns, Severity::Note)]
    );
    let no_pods = format!("{}{}", one("deny", "{}", ""), one("dns", "{}", dns));
    assert!(
        in_text(&no_pods).iter().all(|f| f.kind == FindingKind::SelectsNothing),
        "also before pods are there"
    );
}

#[test]
fn a_hostpolicy_that_selects_nothing_or_whose_rules_match_nothing_is_told() {
    let peer = json!({"nodes": {"nodeSelector": {"matchLabels": {"role": "core"}}}});
    let manifests = [
        namespace("a", json!({})),
        crate::testing::node("n", json!({"role": "edge"}), "172.18.0.2"),
        crate::testing::host_pod("a", "h", json!({"app": "h"}), "n"),
        crate::testing::host_policy(
            "nodes",
            json!({"subject": {"nodes": {"nodeSelector": {"matchLabels": {"role": "core"}}}}}),
        ),
        crate::testing::host_policy(
            "pods",
            json!({"subject": {"pods": {"podSelector": {"matchLabels": {"app": "x"}}}}}),
        ),
        crate::testing::host_policy(
            "rules",
            json!({"subject": {"nodes": {}}, "ingress": [{"from": [peer], "ports": [{"port": "web"}]}]}),
        ),
        crate::testing::host_policy(
            "fine",
            json!({"subject": {"pods": {}}, "ingress": [{"from": [{"nodes": {}}], "ports": [{"port": "web"}]}]}),
        ),
    ];
    let found = findings(&load(&manifests).cluster);
    let told: Vec<(&str, &str, FindingKind)> =
        found.iter().map(|one| (&*one.object, &*one.field, one.kind)).collect();
    assert_eq!(
        told,
        [
            ("HostPolicy nodes", "spec.subject.nodes", FindingKind::SelectsNothing),
            ("HostPolicy pods", "spec.subject.pods", FindingKind::SelectsNothing),
            ("HostPolicy rules", "spec.ingress[0].from", FindingKind::PeerMatchesNothing),
            ("HostPolicy rules", "spec.ingress[0].ports", FindingKind::PortMatchesNothing),
        ]
    );
    assert!(found.iter().any(|one| one.message.starts_with("no node has a containerPort")), "{found:?}");
}
