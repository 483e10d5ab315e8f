//! What cargo says of this workspace: where it is, where its artefacts go, which test binaries it has.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::sh;

/// The packages whose tests need root.
pub(crate) const TESTS: &str = "portcullis-tests";
pub(crate) const LAB: &str = "portcullis-lab";

/// The directory with the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    // Set by `cargo run`; the other is for a binary that was started by hand.
    let xtask =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The answer of `cargo metadata --no-deps`, which asks no registry.
pub(crate) struct Workspace {
    metadata: Value,
}

/// A target of kind `test` of some member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TestTarget {
    /// The package.
    pub(crate) package: String,
    /// What `--test` takes.
    pub(crate) name: String,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> Result<Self> {
        let text = sh::output(sh::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(Self { metadata: serde_json::from_str(text).context("reading `cargo metadata`")? })
    }

    /// Where artefacts go: `target`, unless somebody moved it.
    pub(crate) fn target_dir(&self) -> PathBuf {
        self.metadata
            .get("target_directory")
            .and_then(Value::as_str)
            .map_or_else(|| root().join("target"), PathBuf::from)
    }

    /// A release binary of ours.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target_dir().join("release").join(name)
    }

    /// The version of a member.
    pub(crate) fn version(&self, package: &str) -> Option<String> {
        let packages = array(&self.metadata, "packages");
        packages.iter().find(|found| text(found, "name") == package).map(|found| text(found, "version"))
    }

    /// Every integration test of every member, in order.
    pub(crate) fn test_targets(&self) -> BTreeSet<TestTarget> {
        self.targets("test").map(|(package, name)| TestTarget { package, name }).collect()
    }

    /// True if some member builds this binary.
    pub(crate) fn has_binary(&self, name: &str) -> bool {
        self.targets("bin").any(|(_, n)| n == name)
    }

    fn targets(&self, kind: &str) -> impl Iterator<Item = (String, String)> {
        array(&self.metadata, "packages").iter().flat_map(move |package| {
            array(package, "targets")
                .iter()
                .filter(move |t| array(t, "kind").iter().any(|k| k.as_str() == Some(kind)))
                .map(|t| (text(package, "name"), text(t, "name")))
        })
    }
}

/// The array below a key; empty where there is none.
pub(crate) fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The string below a key; empty where there is none.
pub(crate) fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_targets_by_kind() {
        // given
        let workspace = Workspace::parse(
            r#"{"target_directory":"/t","packages":[
                {"name":"a","targets":[{"kind":["lib"],"name":"a"},{"kind":["test"],"name":"kernel"}]},
                {"name":"b","targets":[{"kind":["bin"],"name":"tool"},{"kind":["custom-build"],"name":"x"}]}]}"#,
        )
        .unwrap();
        // then
        let kernel = TestTarget { package: "a".into(), name: "kernel".into() };
        assert_eq!(workspace.test_targets(), BTreeSet::from([kernel]));
        assert!(workspace.has_binary("tool"));
        assert!(!workspace.has_binary("a"));
        assert_eq!(workspace.binary("tool"), PathBuf::from("/t/release/tool"));
    }
}
