//! `endpoints`: the pods that are enforced here.

use std::net::IpAddr;
use std::path::Path;

use portcullis_policy::convert::printable;
use portcullis_policy::model::SourceBinding;
use serde::{Deserialize, Serialize};

use super::table::columns;
use super::{Face, Failure};
use crate::api::{PodName, Request, client};
use crate::output::Exit;

/// Whose objects are wanted; `None`: those of all namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Of this one only.
    pub namespace: Option<String>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod.
    #[serde(flatten)]
    pub pod: PodName,
    /// Its number in the maps.
    pub slot: u32,
    /// The interface's name; `None` if it has just gone.
    pub interface: Option<String>,
    /// Its index.
    pub ifindex: u32,
    /// By which it is known and bound.
    pub addresses: Vec<IpAddr>,
    /// `on`, or `off` where it may send from any.
    pub source_binding: String,
    /// Towards the pod.
    pub ingress: Side,
    /// From the pod.
    pub egress: Side,
    /// Its table of flows.
    pub flows: Flows,
}

/// A direction of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Its ruleset in the maps: 0 is open, 1 closed.
    pub ruleset: u32,
    /// True if only what a rule allows passes, or would.
    pub isolated: bool,
    /// True if what is denied passes nevertheless.
    pub audited: bool,
    /// By these policies; none where the namespace is declared nowhere or the tables have no room.
    pub policies: Vec<PodName>,
}

/// A table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// In it; `None` if that cannot be read.
    pub entries: Option<u64>,
    /// For how many it has room now.
    pub capacity: Option<u64>,
    /// How large it may grow.
    pub largest: u64,
}

/// Asks the running agent.
pub fn endpoints(run_dir: &Path, scope: Scope, face: Face) -> Result<Exit, Failure> {
    let endpoints: Vec<Endpoint> = client::ask(run_dir, &Request::Endpoints(scope))?.answer()?;
    face.show(&endpoints, || table(&endpoints))?;
    Ok(Exit::Fine)
}

/// For people.
#[must_use]
pub fn table(endpoints: &[Endpoint]) -> String {
    let row = |one: &Endpoint| {
        let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
        let interface = one.interface.as_deref().map_or_else(|| "?".to_owned(), printable);
        let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        [
            printable(&one.pod.namespace),
            printable(&one.pod.name),
            format!("{interface} ({})", one.ifindex),
            if one.source_binding == SourceBinding::Off.name() {
                format!("{} (unbound)", addresses.join(","))
            } else {
                addresses.join(",")
            },
            side(&one.ingress),
            side(&one.egress),
            format!("{}/{}", number(one.flows.entries), number(one.flows.capacity)),
        ]
    };
    let rows: Vec<[String; 7]> = endpoints.iter().map(row).collect();
    columns(["NAMESPACE", "POD", "INTERFACE", "ADDRESSES", "INGRESS", "EGRESS", "FLOWS"], &rows)
}

fn side(side: &Side) -> String {
    if !side.isolated {
        return "open".to_owned();
    }
    let names: Vec<String> = side.policies.iter().map(|policy| printable(&policy.name)).collect();
    let word = if side.audited { "audited" } else { "isolated" };
    if names.is_empty() { "closed".to_owned() } else { format!("{word} by {}", names.join(",")) }
}
