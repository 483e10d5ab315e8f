//! Manifests as users have them, in; a [`Cluster`] and everything that is wrong with it, out. Pure: the
//! caller reads files and hands over their bytes in byte order of path. This module owns what only a
//! directory has: lists, duplicates, workloads that stand for pods, and made-up addresses. What one object
//! means is [`crate::convert`]'s.
//!
//! ```
//! use portcullis_policy::manifest::{Options, SourceFile, load_sources};
//!
//! let file = SourceFile { path: "ns.yaml", content: b"kind: Namespace\napiVersion: v1\nmetadata: {name: a}" };
//! let loaded = load_sources(&[file], &Options::default());
//! assert!(loaded.cluster.namespaces.contains_key("a"));
//! ```

mod addresses;
mod collect;
mod owners;
#[cfg(test)]
mod tests;
mod text;
mod workloads;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use crate::convert::{self, Path, Report};
use crate::model::{Cluster, ObjectKey, Problem};
use collect::{Collected, Found, Kind};
pub use text::MAX_FILE_BYTES;
pub use workloads::{MAX_REPLICAS, MAX_STAND_INS};

/// How many pods are named where many have the same problem.
const NAMED_PODS: usize = 5;

/// A manifest file.
#[derive(Clone, Copy, Debug)]
pub struct SourceFile<'a> {
    /// Its path below the directory, as problems show it. The name's end tells JSON (`.json`) from YAML.
    pub path: &'a str,
    /// Its bytes.
    pub content: &'a [u8],
}

/// How manifests are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where pods without an address get one: from the first range of each family that has one left.
    pub pod_cidrs: Vec<IpNet>,
}

impl Options {
    /// These ranges; none: the default ones.
    #[must_use]
    pub fn with(pod_cidrs: &[IpNet]) -> Self {
        if pod_cidrs.is_empty() { Self::default() } else { Self { pod_cidrs: pod_cidrs.to_vec() } }
    }
}

impl Default for Options {
    /// 10.244.0.0/16 and `fd00:10:244::/64`.
    fn default() -> Self {
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16);
        let v6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 64);
        Self { pod_cidrs: vec![IpNet::V4(v4), IpNet::V6(v6)] }
    }
}

/// One document of a file, unknown fields kept.
#[derive(Clone, Debug, PartialEq)]
pub struct ManifestObject {
    /// The 1-based line at which it begins.
    pub line: u64,
    /// What it holds; a mapping, unless somebody wrote something else.
    pub value: Value,
}

/// A file whose text could be read. The agent keeps the last good one for as long as the file has errors.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedFile {
    /// [`SourceFile::path`].
    pub path: String,
    /// Its documents, empty ones left out.
    pub objects: Vec<ManifestObject>,
}

/// What the manifests say.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Everything that verdicts depend on.
    pub cluster: Cluster,
    /// What is wrong, in order of reading, then by object.
    pub problems: Vec<Problem>,
    /// Every ClusterNetworkPolicy and forerunner of it, as `NAME (FILE:LINE)`. They are not read yet; who
    /// enforces or judges must refuse, for one may deny what every NetworkPolicy allows.
    pub cluster_policies: Vec<String>,
    /// Paths of files whose text could not be read. Filled by [`load_sources`]; [`load`] sees only files
    /// that could be.
    pub unreadable_files: Vec<String>,
    /// Paths of files that could be read, with an object in them that is left out though it may be a policy or a
    /// pod: its namespace or kind cannot be read. Who keeps what files said last treats them as unreadable.
    pub incomplete_files: Vec<String>,
    /// Where objects stand, `FILE:LINE`, by their names in [`Problem::object`].
    pub locations: BTreeMap<String, String>,
}

/// Reads the text of a file: YAML of many documents, or JSON values one after the other.
///
/// # Errors
/// The text is no YAML or JSON, has a key twice in a mapping, or is larger or nested deeper than the limits
/// that keep a hostile file from exhausting memory (T22). The problem names file and line.
pub fn parse_file(file: &SourceFile<'_>) -> Result<ParsedFile, Problem> {
    let objects = text::parse(file)?;
    Ok(ParsedFile { path: file.path.to_owned(), objects })
}

/// Reads the objects of files that stand in byte order of path.
#[must_use]
pub fn load(files: &[ParsedFile], options: &Options) -> Loaded {
    let mut problems = Vec::new();
    let Collected { objects, cluster_policies, incomplete } = collect::collect(files, &mut problems);
    let mut cluster = Cluster::default();
    for ((kind, key), found) in &objects {
        convert_one(*kind, key, found, &mut cluster, &mut problems);
    }
    let declared = |name: &str| objects.contains_key(&(Kind::Namespace, ObjectKey::new("", name)));
    workloads::expand(&objects, &mut cluster, &mut problems);
    addresses::assign(&mut cluster, options, &mut problems);
    report_undeclared_namespaces(&cluster, declared, &mut problems);
    let locations = objects.iter().map(|((kind, key), found)| found.place(*kind, key)).collect();
    Loaded {
        cluster,
        problems,
        cluster_policies,
        unreadable_files: Vec::new(),
        incomplete_files: incomplete.into_iter().collect(),
        locations,
    }
}

/// [`parse_file`] and [`load`] in one, for callers that keep nothing: what cannot be parsed is reported and
/// the rest is used.
#[must_use]
pub fn load_sources(files: &[SourceFile<'_>], options: &Options) -> Loaded {
    let mut parsed = Vec::new();
    let mut problems = Vec::new();
    let mut unreadable_files = Vec::new();
    for file in files {
        match parse_file(file) {
            Ok(file) => parsed.push(file),
            Err(problem) => {
                problems.push(problem);
                unreadable_files.push(file.path.to_owned());
            }
        }
    }
    let mut loaded = load(&parsed, options);
    problems.append(&mut loaded.problems);
    Loaded { problems, unreadable_files, ..loaded }
}

fn convert_one(
    kind: Kind,
    key: &ObjectKey,
    found: &Found<'_>,
    cluster: &mut Cluster,
    problems: &mut Vec<Problem>,
) {
    let mut report = found.report(kind, key);
    match kind {
        Kind::Namespace => {
            if let Some(namespace) = convert::namespace(found.value, &key.name, &mut report) {
                cluster.namespaces.insert(key.name.clone(), namespace);
            }
        }
        Kind::Node => {
            cluster.nodes.insert(key.name.clone(), convert::node(found.value, &mut report));
        }
        Kind::Pod => {
            cluster.pods.insert(key.clone(), convert::pod(found.value, key, &mut report));
        }
        Kind::Service => {
            cluster.services.insert(key.clone(), convert::service(found.value, &mut report));
        }
        Kind::NetworkPolicy => {
            let policy = convert::network_policy(found.value, &key.namespace, &mut report);
            cluster.policies.insert(key.clone(), policy);
        }
        Kind::HostPolicy => {
            cluster.host_policies.insert(key.name.clone(), convert::host_policy(found.value, &mut report));
        }
        Kind::EndpointSlice => {
            if let Some(slice) = convert::endpoint_slice(found.value, &key.namespace, &mut report) {
                cluster.slices.insert(key.clone(), slice);
            }
        }
        Kind::Workload(_) => {}
    }
    problems.append(&mut report.into_problems());
}

/// S34: such a pod stays listed and is isolated both ways, for nobody knows its namespace's labels. A declared
/// namespace whose labels cannot be read has its report already.
fn report_undeclared_namespaces(
    cluster: &Cluster,
    declared: impl Fn(&str) -> bool,
    problems: &mut Vec<Problem>,
) {
    let mut undeclared: BTreeMap<&str, Vec<&ObjectKey>> = BTreeMap::new();
    for (key, pod) in &cluster.pods {
        if pod.is_live() && !cluster.namespaces.contains_key(&key.namespace) {
            undeclared.entry(&key.namespace).or_default().push(key);
        }
    }
    for (namespace, pods) in undeclared.into_iter().filter(|(namespace, _)| !declared(namespace)) {
        let mut names: Vec<String> =
            pods.iter().take(NAMED_PODS).map(|key| convert::printable(&key.to_string())).collect();
        let more = pods.len().saturating_sub(NAMED_PODS);
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        let mut report = Report::new(&format!("Namespace {namespace}"), None);
        report.error(
            Path::ROOT,
            format_args!(
                "no file declares it: its pods are isolated both ways ({}); add a manifest of kind Namespace \
                 with this name",
                names.join(", ")
            ),
        );
        problems.append(&mut report.into_problems());
    }
}

/// The addresses that a pod of this cluster must not be given, for somebody has them.
fn used_addresses(cluster: &Cluster) -> impl Iterator<Item = IpAddr> {
    let pods = cluster.pods.values().flat_map(|pod| &pod.addresses);
    let nodes = cluster.nodes.values().flat_map(|node| &node.addresses);
    let services = cluster.services.values().flat_map(|service| &service.addresses);
    pods.chain(nodes).chain(services).copied()
}
