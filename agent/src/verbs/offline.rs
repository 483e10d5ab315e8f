//! The world of a directory of manifests, in which every pod is judged both ways.

use std::path::Path;

use ipnet::IpNet;
use portcullis_policy::compile::{CompileError, Compiler};
use portcullis_policy::manifest::{self, Options};
use portcullis_policy::model::{Host, HostNetworkPods};
use thiserror::Error;

use crate::output::Exit;
use crate::source::KUBE;
use crate::source::read::{ReadError, read_directory};
use crate::world::World;

/// Why a directory cannot be judged.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// It cannot be read.
    #[error("--source {0}")]
    Read(#[from] ReadError),
    /// The API server's name was given where a directory has to stand.
    #[error(
        "--source kube is the agent's: ask the agent, without --source, or name a directory of manifests (./kube if \
         yours is called so)"
    )]
    Kube,
    /// It holds policies that this version does not read, and one of them may deny what the others allow.
    #[error(
        "ClusterNetworkPolicy is not supported by this version yet, and a verdict without it could be wrong: \
         take out of --source {}", .0.join(", ")
    )]
    ClusterPolicies(Vec<String>),
    /// Of a host firewall without a host.
    #[error("--host-firewall needs the name of the node that is judged: give --node-name")]
    Nameless,
    /// The tables have no room for it.
    #[error("compile the policies: {0}")]
    Compile(#[from] CompileError),
}

impl OfflineError {
    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Kube | Self::Nameless => Exit::Usage,
            Self::Read(_) | Self::ClusterPolicies(_) | Self::Compile(_) => Exit::Unfit,
        }
    }
}

/// Reads and compiles a directory. No ranges given: the default ones.
pub fn offline(dir: &Path, node: Option<&str>, pod_cidrs: &[IpNet]) -> Result<World, OfflineError> {
    offline_on(dir, node, pod_cidrs, None)
}

/// As [`offline`]; where the node has a host firewall it is judged too, with the usual failsafe ports.
pub fn offline_on(
    dir: &Path,
    node: Option<&str>,
    pod_cidrs: &[IpNet],
    hosts: Option<HostNetworkPods>,
) -> Result<World, OfflineError> {
    if dir.as_os_str() == KUBE {
        return Err(OfflineError::Kube);
    }
    let reading = read_directory(dir)?;
    let loaded = manifest::load(&reading.files, &Options::with(pod_cidrs));
    if !loaded.cluster_policies.is_empty() {
        return Err(OfflineError::ClusterPolicies(loaded.cluster_policies));
    }
    let mut problems = reading.problems;
    problems.extend(loaded.problems);
    let mut cluster = loaded.cluster;
    cluster.host = match (hosts, node) {
        (Some(selects), Some(node)) => Some(Host { selects, ..Host::new(node) }),
        (Some(_), None) => return Err(OfflineError::Nameless),
        (None, _) => None,
    };
    let (desired, closed) = Compiler::new(0).compile(&cluster, &cluster.subjects())?;
    problems.extend(closed);
    Ok(World { cluster, desired, problems, node: node.map(str::to_owned), audit: false, local: None })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_clusternetworkpolicy_is_refused_by_name() {
        let dir = Scratch::new();
        dir.write(
            "cnp.yaml",
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: deny-all}\n",
        );
        let error = offline(dir.path(), None, &[]).unwrap_err();
        assert_eq!(error.exit(), Exit::Unfit);
        let OfflineError::ClusterPolicies(names) = error else { unreachable!("{error}") };
        assert!(names.iter().any(|name| name.starts_with("deny-all (cnp.yaml")), "{names:?}");
    }

    #[test]
    fn the_api_server_and_a_missing_directory_are_refused() {
        assert!(matches!(offline(Path::new("kube"), None, &[]), Err(OfflineError::Kube)));
        let missing = offline(Path::new("/nonexistent/portcullis"), None, &[]).unwrap_err();
        assert!(matches!(missing, OfflineError::Read(ReadError::List { .. })));
        assert_eq!(missing.exit(), Exit::Unfit);
    }

    #[test]
    fn a_file_that_is_no_yaml_is_reported_and_the_rest_is_used() {
        let dir = Scratch::new();
        dir.write("bad.yaml", "a: [");
        dir.write("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}");
        let world = offline(dir.path(), None, &[]).unwrap();
        assert!(world.cluster.namespaces.contains_key("a"));
        assert_eq!(world.problems.len(), 1);
    }
}
