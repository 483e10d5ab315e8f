//! Manifests as blogs and documentation print them.

use std::collections::BTreeSet;

use super::{assert_fine, assert_problem, load_yaml, pod_names};
use crate::manifest::Loaded;
use crate::model::{
    DirectionSpec, IsolationCause, NetworkPolicy, ObjectKey, Peers, Ports, Rule, Selector, Severity, Subject,
};

fn policy<'a>(loaded: &'a Loaded, namespace: &str, name: &str) -> &'a NetworkPolicy {
    &loaded.cluster.policies[&ObjectKey::new(namespace, name)]
}

fn rules(direction: &DirectionSpec) -> &[Rule] {
    let DirectionSpec::Isolated { rules, cause: IsolationCause::Written } = direction else {
        panic!("not isolated as written: {direction:?}")
    };
    rules
}

#[test]
fn access_nginx() {
    let loaded = load_yaml(
        "kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata:
 name: access-nginx
spec:
 podSelector:
   matchLabels:
     app: nginx
 ingress:
 - from:
   - podSelector:
       matchLabels:
         app: foo
",
    );
    let policy = policy(&loaded, "default", "access-nginx");
    let [rule] = rules(&policy.ingress) else { panic!("one rule") };
    assert!(matches!(&rule.peers, Peers::Only(peers) if peers.len() == 1));
    assert_eq!(rule.ports, Ports::Any);
    assert_eq!(policy.egress, DirectionSpec::Ignored);
    assert_fine(&loaded);
}

#[test]
fn default_deny_with_a_null_selector() {
    let loaded = load_yaml(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
 name: default-deny
spec:
 podSelector:
",
    );
    let policy = policy(&loaded, "default", "default-deny");
    assert_eq!(policy.subject, Subject::Pods(Selector::default()));
    assert!(rules(&policy.ingress).is_empty());
    assert_fine(&loaded);
}

#[test]
fn allow_all_ingress_and_default_deny_egress() {
    let loaded = load_yaml(
        "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-all-ingress
spec:
  podSelector: {}
  ingress:
  - {}
  policyTypes:
  - Ingress
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: default-deny-egress
spec:
  podSelector: {}
  policyTypes:
  - Egress
",
    );
    let allow = policy(&loaded, "default", "allow-all-ingress");
    assert_eq!(rules(&allow.ingress), [Rule { peers: Peers::Any, ports: Ports::Any }]);
    let deny = policy(&loaded, "default", "default-deny-egress");
    assert_eq!(deny.ingress, DirectionSpec::Ignored);
    assert!(rules(&deny.egress).is_empty());
    assert_fine(&loaded);
}

#[test]
fn project_snake() {
    let loaded = load_yaml(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: np-backend
  namespace: project-snake
spec:
  podSelector:
    matchLabels:
      app: backend
  policyTypes:
    - Egress
  egress:
    - to:
        - podSelector:
            matchLabels:
              app: db1
      ports:
        - protocol: TCP
          port: 1111
    - to:
        - podSelector:
            matchLabels:
              app: db2
      ports:
        - protocol: TCP
          port: 2222
",
    );
    let policy = policy(&loaded, "project-snake", "np-backend");
    assert_eq!(policy.ingress, DirectionSpec::Ignored);
    assert_eq!(rules(&policy.egress).len(), 2);
    assert_fine(&loaded);
}

#[test]
fn netpol_demo() {
    let loaded = load_yaml(
        "# 1. Demo namespace
apiVersion: v1
kind: Namespace
metadata:
  name: netpol-demo

---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web-app
  namespace: netpol-demo
spec:
  selector:
    matchLabels:
      app: web
  replicas: 2
  template:
    metadata:
      labels:
        app: web
    spec:
      containers:
      - name: nginx
        image: nginx:1.14.2
        ports:
        - containerPort: 80

---
apiVersion: v1
kind: Service
metadata:
  name: web-app
  namespace: netpol-demo
spec:
  selector:
    app: web
  ports:
    - protocol: TCP
      port: 80
      targetPort: 80
  type: ClusterIP

---
apiVersion: v1
kind: Secret
metadata:
  name: postgres-secrets
  namespace: netpol-demo
type: Opaque
data:
  postgres-password: cG9zdGdyZXNwYXNzMTIzNA==  # base64 encoded

---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: database
  namespace: netpol-demo
spec:
  selector:
    matchLabels:
      app: db
  replicas: 1
  template:
    metadata:
      labels:
        app: db
    spec:
      containers:
      - name: postgres
        image: postgres:13
        ports:
        - containerPort: 5432
        env:
        - name: POSTGRES_DB
          value: \"testdb\"
",
    );
    assert_eq!(
        pod_names(&loaded),
        ["netpol-demo/database-0", "netpol-demo/web-app-0", "netpol-demo/web-app-1"]
    );
    let web = &loaded.cluster.pods[&ObjectKey::new("netpol-demo", "web-app-1")];
    assert_eq!(web.labels["app"], "web");
    let services = loaded.cluster.services.values();
    assert!(services.map(|service| &service.addresses).all(BTreeSet::is_empty), "no address is known");
    assert_problem(&loaded, Severity::Note, "Secret of v1", "skipped");
    assert_eq!(loaded.problems.len(), 1);
}

#[test]
fn a_policy_that_lost_its_indentation_is_refused() {
    let loaded = load_yaml(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
name: test-network-policy
namespace: default
spec:
podSelector:
namespace.matchLabels:
role: db
policyTypes:
- Ingress
ingress:
- from:
- ipBlock:
cidr: 172.17.0.0/16
- podSelector:
",
    );
    assert_eq!(loaded.unreadable_files, ["f.yaml"]);
    assert_problem(&loaded, Severity::Error, "f.yaml", "mend it");
}
