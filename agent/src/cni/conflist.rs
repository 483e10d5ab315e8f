//! Our configuration, made from the primary's: the same network, with our plugin at the end of its chain. Pure. What
//! the primary wrote stays in its own bytes: numbers, order and keys that we do not know.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use thiserror::Error;

use super::PLUGIN;
use super::conf::{VERSIONS, WhenUnavailable};

/// What our plugin is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// How long a pod may wait for its policies.
    pub timeout: Duration,
    /// What happens without an agent.
    pub when_unavailable: WhenUnavailable,
}

impl Settings {
    fn plugin(&self) -> Value {
        json!({
            "type": PLUGIN,
            "runDir": self.run_dir,
            "timeoutSeconds": self.timeout.as_secs(),
            "whenUnavailable": self.when_unavailable.name(),
        })
    }
}

/// How a configuration is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `.conflist`: a list of plugins.
    List,
    /// `.conf` and `.json`: one plugin.
    Single,
}

/// Why a configuration cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// No JSON, or no object.
    #[error("is no JSON object ({0}): mend what writes it")]
    NoObject(String),
    /// A key is missing or of another type.
    #[error("{0} is missing or of the wrong type: mend what writes it")]
    Key(&'static str),
    /// Too old to chain.
    #[error(
        "cniVersion is `{0}`, in which plugins cannot be chained: write one of {versions}",
        versions = VERSIONS.join(", ")
    )]
    Version(String),
}

/// Our configuration, or none where the primary's chains our plugin already.
pub fn chained(primary: &str, shape: Shape, settings: &Settings) -> Result<Option<String>, Unusable> {
    let mut keys: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(primary).map_err(|error| Unusable::NoObject(error.to_string()))?;
    check_version(&keys)?;
    let name = text(&keys, "name").filter(|name| !name.is_empty()).ok_or(Unusable::Key("name"))?;
    let plugins: Vec<Box<RawValue>> = match shape {
        Shape::List => keys
            .get("plugins")
            .and_then(|raw| serde_json::from_str(raw.get()).ok())
            .filter(|plugins: &Vec<_>| !plugins.is_empty())
            .ok_or(Unusable::Key("plugins"))?,
        Shape::Single => {
            let version = keys.get("cniVersion").cloned();
            let single = RawValue::from_string(primary.trim().to_owned());
            keys = BTreeMap::new();
            keys.extend(version.map(|version| ("cniVersion".to_owned(), version)));
            keys.insert("name".to_owned(), raw(&json!(name))?);
            vec![single.map_err(|error| Unusable::NoObject(error.to_string()))?]
        }
    };
    for plugin in &plugins {
        let plugin: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(plugin.get()).map_err(|_| Unusable::Key("plugins"))?;
        match text(&plugin, "type").as_deref() {
            None | Some("") => return Err(Unusable::Key("type of a plugin")),
            Some(PLUGIN) => return Ok(None),
            Some(_) => {}
        }
    }
    let mut list = plugins;
    list.push(raw(&settings.plugin())?);
    let list = serde_json::to_string(&list).map_err(|error| Unusable::NoObject(error.to_string()))?;
    let list = RawValue::from_string(list).map_err(|error| Unusable::NoObject(error.to_string()))?;
    keys.insert("plugins".to_owned(), list);
    let text = serde_json::to_string_pretty(&keys).map_err(|error| Unusable::NoObject(error.to_string()))?;
    Ok(Some(text + "\n"))
}

/// One of the versions that the runtime may choose from has to be one that we speak.
fn check_version(keys: &BTreeMap<String, Box<RawValue>>) -> Result<(), Unusable> {
    let version = text(keys, "cniVersion").unwrap_or_default();
    let more: Vec<String> =
        keys.get("cniVersions").and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    if more.iter().chain([&version]).any(|one| VERSIONS.contains(&one.as_str())) {
        return Ok(());
    }
    Err(Unusable::Version(version))
}

fn text(keys: &BTreeMap<String, Box<RawValue>>, key: &str) -> Option<String> {
    keys.get(key).and_then(|raw| serde_json::from_str(raw.get()).ok())
}

fn raw(value: &Value) -> Result<Box<RawValue>, Unusable> {
    serde_json::value::to_raw_value(value).map_err(|error| Unusable::NoObject(error.to_string()))
}

#[cfg(test)]
#[path = "conflist_tests.rs"]
pub(crate) mod tests;
