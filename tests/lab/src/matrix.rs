//! Who reaches whom, in the shape of `portcullis matrix`: filled in by probes, not by judging policies.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use portcullis_policy::model::{Cluster, ObjectKey, Protocol};
use serde::{Serialize, Serializer};

use crate::traffic::{Family, Outcome};

/// One protocol and port. Serialises as `portcullis matrix -o json` writes an element of its array; a cell
/// that no probe could decide is `?`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MatrixResult {
    /// The protocol.
    #[serde(serialize_with = "name")]
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// The family.
    pub family: Family,
    /// `NS/POD` of every live pod with an address of the family and a network of its own.
    pub order: Vec<String>,
    /// From, then to, as `order`: `.` allowed, `X` denied, `-` self, `?` unknown.
    pub rows: Vec<String>,
    /// Why cells are `?`: from, to, and what happened.
    #[serde(skip)]
    pub unknown: Vec<(String, String, Outcome)>,
}

/// Stands above the names and left of the numbers.
const CORNER: &str = "from \\ to";

/// A table to be read by people.
impl fmt::Display for MatrixResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}/{} {}", self.protocol, self.port, self.family.name())?;
        let count = self.order.len();
        let digits = count.to_string().len();
        let width = self.order.iter().map(String::len).max().unwrap_or(0).max(CORNER.len());
        let head = (1..=count).fold(String::new(), |mut line, n| {
            // Writing to a string cannot fail.
            let _ = write!(line, " {n:>digits$}");
            line
        });
        writeln!(f, "{:>digits$} {CORNER:width$}{head}", "")?;
        for (n, (name, row)) in self.order.iter().zip(&self.rows).enumerate() {
            write!(f, "{:>digits$} {name:width$}", n + 1)?;
            for cell in row.chars() {
                write!(f, " {cell:>digits$}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The pods of a matrix, in its order.
pub(crate) fn order(cluster: &Cluster, family: Family) -> Vec<ObjectKey> {
    cluster
        .pods
        .iter()
        .filter(|(_, pod)| pod.is_live() && pod.has_own_network())
        .filter(|(_, pod)| pod.addresses.iter().any(|a| Family::of(*a) == family))
        .map(|(key, _)| key.clone())
        .collect()
}

/// What a matrix shows where no port is named: every declared containerPort of live pods with a network of
/// their own.
#[must_use]
pub fn default_ports(cluster: &Cluster) -> BTreeSet<(Protocol, u16)> {
    let live = cluster.pods.values().filter(|pod| pod.is_live() && pod.has_own_network());
    live.flat_map(|pod| pod.container_ports.iter().copied()).collect()
}

/// The family of a matrix where none is named: IPv4 where any pod has it.
#[must_use]
pub fn default_family(cluster: &Cluster) -> Family {
    if order(cluster, Family::Ipv4).is_empty() { Family::Ipv6 } else { Family::Ipv4 }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn name<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(protocol.name())
}
