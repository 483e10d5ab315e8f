//! Who may depend on whom: the rooms of the house, checked against what cargo resolves.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::check::Outcome;
use crate::sh;
use crate::workspace::{array, text};

/// What a package must not depend on, through any number of others.
struct Rule {
    package: &'static str,
    never: Never,
    why: &'static str,
}

enum Never {
    /// Any other member of the workspace, for its tests neither.
    Ours,
    /// Packages by name; what only its tests use is free.
    Named(&'static [&'static str]),
}

const RULES: &[Rule] = &[
    Rule { package: "xtask", never: Never::Ours, why: "it has to run before anything else builds" },
    Rule {
        package: "portcullis-oracle",
        never: Never::Ours,
        why: "an oracle that shares code with what it judges agrees with its mistakes",
    },
    Rule {
        package: "portcullis-common",
        never: Never::Named(&[
            "aya",
            "aya-obj",
            "aya-ebpf",
            "libc",
            "serde",
            "portcullis-policy",
            "portcullis-agent",
        ]),
        why: "it is compiled for the kernel too",
    },
    Rule {
        package: "portcullis-policy",
        never: Never::Named(&["tokio", "kube", "kube-client", "aya", "nix", "portcullis-agent"]),
        why: "it is pure: no runtime, no client, no kernel",
    },
];

/// Checks every rule; the error names each dependency that breaks one, and the way to it.
pub(crate) fn check() -> Result<Outcome> {
    let mut command = sh::cargo();
    command.args(["metadata", "--locked", "--format-version", "1"]);
    let metadata: Value =
        serde_json::from_str(&sh::output(&mut command)?).context("reading `cargo metadata`")?;
    let broken = broken(&Graph::new(&metadata), RULES);
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(Outcome::Passed)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    /// Part of what is built, or of building it.
    Build,
    /// For tests only.
    Dev,
}

/// What depends on what, by package id.
struct Graph {
    names: BTreeMap<String, String>,
    members: BTreeSet<String>,
    edges: BTreeMap<String, Vec<(String, Edge)>>,
}

impl Graph {
    fn new(metadata: &Value) -> Self {
        let names = array(metadata, "packages").iter().map(|p| (text(p, "id"), text(p, "name"))).collect();
        let members =
            array(metadata, "workspace_members").iter().filter_map(Value::as_str).map(str::to_owned);
        let nodes = metadata.get("resolve").map_or(&[][..], |r| array(r, "nodes"));
        let edges = nodes.iter().map(|node| {
            let edges = array(node, "deps").iter().flat_map(|dep| {
                array(dep, "dep_kinds").iter().map(|kind| {
                    let dev = kind.get("kind").and_then(Value::as_str) == Some("dev");
                    (text(dep, "pkg"), if dev { Edge::Dev } else { Edge::Build })
                })
            });
            (text(node, "id"), edges.collect())
        });
        Self { names, members: members.collect(), edges: edges.collect() }
    }

    /// Everything that a package reaches, with the package through which it does. Its own tests' dependencies
    /// count where asked, others' never.
    fn reach(&self, start: &str, own_dev: bool) -> BTreeMap<String, String> {
        let mut from = BTreeMap::new();
        let mut left = vec![start.to_owned()];
        while let Some(at) = left.pop() {
            for (to, edge) in self.edges.get(&at).into_iter().flatten() {
                let counts = *edge == Edge::Build || (own_dev && at == start);
                if counts && to != start && !from.contains_key(to) {
                    from.insert(to.clone(), at.clone());
                    left.push(to.clone());
                }
            }
        }
        from
    }

    fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.names.get(id).map_or(id, String::as_str)
    }
}

fn broken(graph: &Graph, rules: &[Rule]) -> Vec<String> {
    let mut broken = Vec::new();
    for rule in rules {
        let Some(id) = graph.members.iter().find(|id| graph.name(id) == rule.package) else {
            broken.push(format!("{} is not in the workspace, and a rule of xtask names it", rule.package));
            continue;
        };
        let from = graph.reach(id, matches!(rule.never, Never::Ours));
        for (to, _) in from.iter().filter(|(to, _)| match rule.never {
            Never::Ours => graph.members.contains(*to),
            Never::Named(names) => names.contains(&graph.name(to)),
        }) {
            let mut way = vec![graph.name(to)];
            let mut at = to;
            while let Some(before) = from.get(at) {
                way.push(graph.name(before));
                at = before;
            }
            way.reverse();
            broken.push(format!("{}, and must not: {}", way.join(" -> "), rule.why));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURE: Rule = Rule { package: "pure", never: Never::Named(&["runtime"]), why: "it is pure" };
    const NAIVE: Rule = Rule { package: "naive", never: Never::Ours, why: "it stands alone" };

    /// `pure` and `naive` are members; `edges` are (from, to, kind).
    fn graph(edges: &[(&str, &str, Option<&str>)]) -> Graph {
        let nodes: Vec<Value> = edges
            .iter()
            .map(|(from, to, kind)| {
                serde_json::json!({"id": from, "deps": [{"pkg": to, "dep_kinds": [{"kind": kind}]}]})
            })
            .collect();
        let packages =
            ["pure", "naive", "helper", "runtime"].map(|n| serde_json::json!({"id": n, "name": n}));
        Graph::new(&serde_json::json!({
            "packages": packages,
            "workspace_members": ["pure", "naive"],
            "resolve": {"nodes": nodes},
        }))
    }

    #[test]
    fn a_way_through_others_is_found_and_shown() {
        let graph = graph(&[("pure", "helper", None), ("helper", "runtime", Some("build"))]);
        assert_eq!(broken(&graph, &[PURE]), ["pure -> helper -> runtime, and must not: it is pure"]);
    }

    #[test]
    fn tests_may_use_what_is_named() {
        assert!(broken(&graph(&[("pure", "runtime", Some("dev"))]), &[PURE]).is_empty());
    }

    #[test]
    fn tests_may_not_use_ours_where_ours_is_forbidden() {
        let graph = graph(&[("naive", "pure", Some("dev"))]);
        assert_eq!(broken(&graph, &[NAIVE]), ["naive -> pure, and must not: it stands alone"]);
    }

    #[test]
    fn a_rule_about_nobody_is_broken() {
        const GONE: Rule = Rule { package: "gone", never: Never::Ours, why: "" };
        assert_eq!(broken(&graph(&[]), &[GONE]).len(), 1);
    }
}
