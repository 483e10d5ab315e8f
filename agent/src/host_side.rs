//! The node's own sockets in enforcement: which endpoints there are for the node and the pods in its network, and which
//! cgroups lead to them. Knows no policies.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use portcullis_common::wire::{
    CGROUP_ELSEWHERE, ENDPOINT_HOST, ENDPOINT_UNBOUND, ENDPOINT_USED, EndpointConfig, HOST_ON, HostState,
    LINK_ETHERNET,
};
use portcullis_policy::model::{Cluster, ObjectKey, Pod, Problem, Severity};
use portcullis_policy::select::{Directory, is_local};

use crate::attach::cgroup::Root;
use crate::attach::pods::PodCgroups;
use crate::bpf::network_cookie;
use crate::reconcile::identity;

/// What happens to pods of which nothing is known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownPod {
    /// What always passes does, nothing else.
    #[default]
    Deny,
    /// They are judged by nobody.
    Allow,
}

/// How the node's own sockets are enforced.
#[derive(Debug)]
pub struct HostSide {
    /// The node's cgroups.
    pub root: Root,
    unknown: UnknownPod,
    /// As they were last seen.
    cgroups: PodCgroups,
}

impl HostSide {
    /// Of sockets below this cgroup.
    #[must_use]
    pub fn new(root: Root, unknown: UnknownPod) -> Self {
        Self { root, unknown, cgroups: PodCgroups::default() }
    }

    /// True where pods of which nothing is known pass.
    #[must_use]
    pub const fn opens_unknown(&self) -> bool {
        matches!(self.unknown, UnknownPod::Allow)
    }

    /// Where pods' cgroups appear, in order of their paths.
    #[must_use]
    pub fn directories(&self) -> &[PathBuf] {
        &self.cgroups.directories
    }

    /// Looks at the cgroups anew. An error leaves what was seen last.
    pub fn look(&mut self) -> io::Result<()> {
        self.cgroups = PodCgroups::look(self.root.directory())?;
        Ok(())
    }

    /// The endpoints that should be here: the node, pods in its network whose cgroup is there, and what stands for those
    /// of which nothing is known yet.
    pub fn endpoints(
        &self,
        directory: &Directory<'_>,
        cluster: &Cluster,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<ObjectKey, EndpointConfig> {
        let Some(host) = &cluster.host else {
            return BTreeMap::new();
        };
        let node = ObjectKey::of_node(&host.node);
        let mut wanted = BTreeMap::from([(node.clone(), config(identity("", &node), 0))]);
        if let UnknownPod::Deny = self.unknown {
            let key = ObjectKey::of_unknown();
            wanted.insert(key.clone(), config(identity("", &key), 0));
        }
        if self.cgroups.root == 0 && !directory.hosts.is_empty() {
            problems.push(Problem::of_node(
                Severity::Error,
                format!(
                    "no cgroup kubepods lies below {}: hostNetwork pods cannot be told from the node's own processes, and are judged \
                     as these; let the kubelet use cgroup2, or name the directory with --cgroup-root",
                    self.root.directory().display()
                ),
            ));
        }
        for (cgroup, (key, pod)) in self.owners(cluster, &host.node) {
            if directory.hosts.contains_key(&key) {
                wanted.insert(key.clone(), config(identity(&pod.uid, key), cgroup));
            }
        }
        wanted
    }

    /// The cgroups of known pods that have networks of their own.
    #[must_use]
    pub fn elsewhere(&self, cluster: &Cluster) -> BTreeSet<u64> {
        let Some(host) = &cluster.host else {
            return BTreeSet::new();
        };
        let owners = self.owners(cluster, &host.node).into_iter();
        owners.filter(|(_, (_, pod))| pod.has_own_network()).map(|(cgroup, _)| cgroup).collect()
    }

    /// Whose the cgroups are, each one pod's of this node. The UID that the API server gave a pod counts before the one that a mirror
    /// names; of several mirrors that name one the pod that started first has it.
    fn owners<'a>(&self, cluster: &'a Cluster, node: &str) -> BTreeMap<u64, (&'a ObjectKey, &'a Pod)> {
        let of = |uid: &String| self.cgroups.pods.get(&uid.to_ascii_lowercase()).copied();
        let mut claims = Vec::new();
        for (key, pod) in cluster.pods.iter().filter(|(_, pod)| is_local(pod, node)) {
            let started = (pod.start_time.is_none(), pod.start_time);
            if let Some(cgroup) = of(&pod.uid) {
                claims.push((cgroup, 0, started, key, pod));
            } else if let Some(cgroup) = pod.static_uid.as_ref().and_then(of) {
                claims.push((cgroup, 1, started, key, pod));
            }
        }
        claims.sort_by_key(|(cgroup, rank, started, key, _)| (*cgroup, *rank, *started, *key));
        let mut owners = BTreeMap::new();
        for (cgroup, _, _, key, pod) in claims {
            owners.entry(cgroup).or_insert((key, pod));
        }
        owners
    }

    /// What the programs are told, the node's endpoint and that of unknown pods being these.
    pub fn state(&self, node: u32, unknown: Option<u32>) -> io::Result<HostState> {
        Ok(HostState {
            pods: self.cgroups.root,
            flags: HOST_ON,
            node,
            unknown: unknown.unwrap_or(CGROUP_ELSEWHERE),
            reserved: 0,
            network: network_cookie()?,
        })
    }
}

fn config(pod: u64, cgroup: u64) -> EndpointConfig {
    let flags = ENDPOINT_USED | ENDPOINT_UNBOUND | ENDPOINT_HOST;
    EndpointConfig { flags, link: LINK_ETHERNET, pod, cgroup, ..EndpointConfig::default() }
}

#[cfg(test)]
#[path = "host_side_tests.rs"]
mod tests;
