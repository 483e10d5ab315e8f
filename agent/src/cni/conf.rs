//! What the runtime hands to the plugin: the network's configuration on stdin, and the environment. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::{CniError, Code};
use crate::api::cni::Attachment;

/// The versions that are spoken. 0.3.1 is the first in which a result of a chain can be passed on.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What is answered where no configuration says a version.
pub const NEWEST: &str = "1.1.0";
/// How long a pod may wait for its policies. Runtimes give a sandbox some minutes; a fault should show sooner.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds of `timeoutSeconds`.
const TIMEOUTS: std::ops::RangeInclusive<u64> = 1..=120;
/// Where the agent is, unless the configuration says otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/portcullis";

/// What happens to a pod while no agent is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum WhenUnavailable {
    /// It does not start
    #[default]
    Deny,
    /// It starts, and is open until an agent comes
    Allow,
}

impl WhenUnavailable {
    /// The word in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

/// The network's configuration, as far as it concerns us.
#[derive(Clone, Debug)]
pub struct Conf {
    /// The version that the runtime speaks.
    pub version: String,
    /// The network's name.
    pub name: String,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// How long to wait.
    pub timeout: Duration,
    /// What to do without an agent.
    pub when_unavailable: WhenUnavailable,
    /// The result of the plugin before, in its own bytes.
    pub previous: Option<Box<RawValue>>,
    /// `GC`: what there is.
    pub valid: Option<Vec<Attachment>>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    name: Option<String>,
    #[serde(rename = "runDir")]
    run_dir: Option<Value>,
    #[serde(rename = "timeoutSeconds")]
    timeout: Option<Value>,
    #[serde(rename = "whenUnavailable")]
    when_unavailable: Option<Value>,
    #[serde(rename = "prevResult")]
    previous: Option<Box<RawValue>>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
}

impl Conf {
    /// Reads it. The version is checked first: of another one nothing else is understood.
    pub fn read(text: &str) -> Result<Self, CniError> {
        let written: Written = serde_json::from_str(text).map_err(|error| {
            CniError::new(
                Code::Undecodable,
                format!("the configuration on stdin cannot be read ({error})"),
                "mend the network's configuration; the plugin is run by a container runtime, not by hand",
            )
        })?;
        let version = written.version.unwrap_or_default();
        if !VERSIONS.contains(&version.as_str()) {
            return Err(CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion `{version}` is not spoken"),
                format!("write one of {} in the network's configuration", VERSIONS.join(", ")),
            ));
        }
        Ok(Self {
            version,
            name: written.name.unwrap_or_default(),
            run_dir: run_dir(written.run_dir.as_ref())?,
            timeout: timeout(written.timeout.as_ref())?,
            when_unavailable: when_unavailable(written.when_unavailable.as_ref())?,
            previous: written.previous.filter(|raw| raw.get() != "null"),
            valid: written.valid,
        })
    }

    /// The result of the plugin before.
    pub fn previous(&self) -> Result<Previous, CniError> {
        let Some(raw) = &self.previous else {
            return Err(CniError::new(
                Code::InvalidConfiguration,
                "prevResult is missing",
                "chain portcullis-cni behind the plugin that makes the pod's interface, never first or alone",
            ));
        };
        serde_json::from_str(raw.get()).map_err(|error| {
            CniError::new(
                Code::Undecodable,
                format!("prevResult cannot be read ({error})"),
                "look at what the plugin before portcullis-cni answers",
            )
        })
    }
}

fn run_dir(value: Option<&Value>) -> Result<PathBuf, CniError> {
    match value {
        None => Ok(DEFAULT_RUN_DIR.into()),
        Some(Value::String(path)) if path.starts_with('/') => Ok(path.into()),
        Some(other) => Err(invalid("runDir", other, "write the absolute path that `agent --run-dir` has")),
    }
}

fn timeout(value: Option<&Value>) -> Result<Duration, CniError> {
    match value {
        None => Ok(DEFAULT_TIMEOUT),
        Some(value) => value
            .as_u64()
            .filter(|seconds| TIMEOUTS.contains(seconds))
            .map(Duration::from_secs)
            .ok_or_else(|| invalid("timeoutSeconds", value, "write a whole number from 1 to 120")),
    }
}

fn when_unavailable(value: Option<&Value>) -> Result<WhenUnavailable, CniError> {
    match value {
        None => Ok(WhenUnavailable::default()),
        Some(value) => [WhenUnavailable::Deny, WhenUnavailable::Allow]
            .into_iter()
            .find(|one| value.as_str() == Some(one.name()))
            .ok_or_else(|| invalid("whenUnavailable", value, "write \"deny\" or \"allow\"")),
    }
}

fn invalid(field: &str, found: &Value, remedy: &str) -> CniError {
    CniError::new(Code::InvalidConfiguration, format!("{field} is {found}"), remedy)
}

/// What the plugin before made. Versions differ in fields that are not read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Previous {
    /// Interfaces.
    #[serde(default)]
    pub interfaces: Vec<PreviousInterface>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<PreviousIp>,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PreviousInterface {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The sandbox that it is in; empty on the host.
    #[serde(default)]
    pub sandbox: String,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PreviousIp {
    /// Which interface has it.
    pub interface: Option<i64>,
    /// With its prefix length.
    pub address: String,
}

impl Previous {
    /// The names of the interfaces on the host.
    pub fn on_host(&self) -> impl Iterator<Item = &str> {
        let on_host = self.interfaces.iter().filter(|one| one.sandbox.is_empty() && !one.name.is_empty());
        on_host.map(|one| one.name.as_str())
    }

    /// The addresses of the sandbox's interface of this name; of an address that names no interface nobody else can be
    /// meant.
    pub fn addresses(&self, ifname: &str) -> Result<Vec<IpAddr>, CniError> {
        let mut addresses = Vec::new();
        for ip in &self.ips {
            let of = ip.interface.and_then(|at| self.interfaces.get(usize::try_from(at).ok()?));
            if of.is_some_and(|of| of.sandbox.is_empty() || of.name != ifname) {
                continue;
            }
            // Results carry a prefix length; one without is an address all the same.
            let bare = ip.address.split('/').next().unwrap_or_default();
            let address = bare.parse().map_err(|_| {
                CniError::new(
                    Code::Undecodable,
                    format!("prevResult.ips has `{}`, which is no address", ip.address),
                    "look at what the plugin before portcullis-cni answers",
                )
            })?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(CniError::new(
                Code::NotEnforceable,
                format!("prevResult.ips has no address for {ifname}"),
                "a pod is bound to its addresses: give the plugin before portcullis-cni an `ipam` section",
            ));
        }
        Ok(addresses)
    }
}

/// A pod, as `CNI_ARGS` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, where the runtime says it.
    pub uid: Option<String>,
}

/// Reads `CNI_ARGS`: `KEY=VALUE` pairs with semicolons between.
pub fn pod_name(args: &str) -> Result<PodName, CniError> {
    let pairs: BTreeMap<&str, &str> = args.split(';').filter_map(|pair| pair.split_once('=')).collect();
    let field = |key: &str| pairs.get(key).filter(|value| !value.is_empty()).map(|value| (*value).to_owned());
    let wanted = |key: &str| {
        field(key).ok_or_else(|| {
            CniError::new(
                Code::InvalidEnvironment,
                format!("CNI_ARGS has no {key}"),
                "this network is for pods of Kubernetes: run other containers in another network",
            )
        })
    };
    Ok(PodName {
        namespace: wanted("K8S_POD_NAMESPACE")?,
        name: wanted("K8S_POD_NAME")?,
        uid: field("K8S_POD_UID"),
    })
}

#[cfg(test)]
#[path = "conf_tests.rs"]
mod tests;
