//! The bill of materials: what `cargo metadata` says is linked, as `CycloneDX` 1.6. Pure.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::workspace::{array, text};

/// The document for one program that is made of the graphs of several workspaces, each with its root package.
pub(crate) fn document(graphs: &[(Value, &str)], version: &str) -> Result<Value> {
    let mut components = BTreeMap::new();
    let mut depends: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut roots = BTreeSet::new();
    for (metadata, root) in graphs {
        roots.insert(walk(metadata, root, &mut components, &mut depends)?);
    }
    let program = format!("portcullis@{version}");
    depends.insert(program.clone(), roots);
    let depends: Vec<Value> =
        depends.iter().map(|(from, to)| json!({"ref": from, "dependsOn": to})).collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": program, "name": "portcullis", "version": version,
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": depends,
    }))
}

/// Collects what the package links, itself included; returns its reference.
fn walk(
    metadata: &Value,
    root: &str,
    components: &mut BTreeMap<String, Value>,
    depends: &mut BTreeMap<String, BTreeSet<String>>,
) -> Result<String> {
    let packages: BTreeMap<String, &Value> =
        array(metadata, "packages").iter().map(|package| (text(package, "id"), package)).collect();
    let nodes: BTreeMap<String, &Value> = metadata
        .get("resolve")
        .map_or(&[][..], |resolve| array(resolve, "nodes"))
        .iter()
        .map(|node| (text(node, "id"), node))
        .collect();
    let (first, package) = packages
        .iter()
        .find(|(_, package)| text(package, "name") == root)
        .with_context(|| format!("`cargo metadata` knows no package {root}"))?;
    let mut waiting = vec![first.clone()];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let Some(package) = packages.get(&id) else { continue };
        let linked: Vec<&str> = nodes
            .get(&id)
            .map_or(&[][..], |node| array(node, "deps"))
            .iter()
            .filter(|dependency| is_normal(dependency))
            .filter_map(|dependency| dependency.get("pkg").and_then(Value::as_str))
            .filter(|id| packages.get(*id).is_some_and(|package| !is_macro(package)))
            .collect();
        let names = linked.iter().filter_map(|id| packages.get(*id)).map(|package| reference(package));
        depends.entry(reference(package)).or_default().extend(names);
        components.insert(reference(package), component(package));
        waiting.extend(linked.into_iter().map(str::to_owned));
    }
    Ok(reference(package))
}

/// True for what is linked, not only built or tested with.
fn is_normal(dependency: &Value) -> bool {
    array(dependency, "dep_kinds").iter().any(|kind| kind.get("kind").is_some_and(Value::is_null))
}

/// True for what runs in the compiler only.
fn is_macro(package: &Value) -> bool {
    let kinds = array(package, "targets").iter().flat_map(|target| array(target, "kind"));
    kinds.filter_map(Value::as_str).any(|kind| kind == "proc-macro")
}

fn reference(package: &Value) -> String {
    format!("{}@{}", text(package, "name"), text(package, "version"))
}

fn component(package: &Value) -> Value {
    let (name, version) = (text(package, "name"), text(package, "version"));
    let mut fields = Map::new();
    fields.insert("type".to_owned(), json!("library"));
    fields.insert("bom-ref".to_owned(), json!(reference(package)));
    fields.insert("name".to_owned(), json!(name));
    fields.insert("version".to_owned(), json!(version));
    // Ours are in no registry.
    if package.get("source").is_some_and(Value::is_string) {
        fields.insert("purl".to_owned(), json!(format!("pkg:cargo/{name}@{version}")));
    }
    let licence = text(package, "license");
    if !licence.is_empty() {
        // An old way to write "or", which SPDX expressions do not know.
        let expression = licence.replace('/', " OR ");
        fields.insert("licenses".to_owned(), json!([{"expression": expression}]));
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Value {
        let package = |name: &str, kind: &str, source: Value| {
            json!({"id": format!("id-{name}"), "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0",
                "source": source, "targets": [{"kind": [kind]}]})
        };
        let dependency =
            |name: &str, kind: Value| json!({"pkg": format!("id-{name}"), "dep_kinds": [{"kind": kind}]});
        json!({
            "packages": [
                package("agent", "bin", Value::Null),
                package("linked", "lib", json!("registry")),
                package("deeper", "lib", json!("registry")),
                package("macro", "proc-macro", json!("registry")),
                package("built-with", "lib", json!("registry")),
                package("elsewhere", "lib", json!("registry")),
            ],
            "resolve": {"nodes": [
                {"id": "id-agent", "deps": [
                    dependency("linked", Value::Null),
                    dependency("macro", Value::Null),
                    dependency("built-with", json!("build")),
                ]},
                {"id": "id-linked", "deps": [dependency("deeper", Value::Null)]},
                {"id": "id-macro", "deps": [dependency("elsewhere", Value::Null)]},
            ]},
        })
    }

    #[test]
    fn what_is_linked_is_listed_and_nothing_else() {
        // when
        let document = document(&[(metadata(), "agent")], "3.0.0").unwrap();
        // then
        let names: Vec<String> = array(&document, "components").iter().map(|c| text(c, "name")).collect();
        assert_eq!(names, ["agent", "deeper", "linked"]);
        let linked = &document["components"][2];
        assert_eq!(linked["purl"], "pkg:cargo/linked@1.0.0");
        assert_eq!(linked["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert!(document["components"][0].get("purl").is_none(), "ours is in no registry");
        let refs: BTreeSet<String> =
            array(&document, "dependencies").iter().map(|d| text(d, "ref")).collect();
        let whole = ["agent@1.0.0", "deeper@1.0.0", "linked@1.0.0", "portcullis@3.0.0"];
        assert_eq!(refs, whole.map(str::to_owned).into());
    }

    #[test]
    fn a_root_that_is_not_there_is_an_error() {
        let error = document(&[(metadata(), "nobody")], "1").unwrap_err();
        assert!(error.to_string().contains("nobody"));
    }
}
