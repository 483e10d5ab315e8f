//! `status`: how the agent and its node do.

use std::fmt::Write as _;
use std::path::Path;

use portcullis_policy::convert::printable;
use serde::{Deserialize, Serialize};

use super::{Face, Failure};
use crate::api::{Request, client};
use crate::older::OlderFlows;
use crate::output::Exit;

/// How the agent and its node do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's node.
    pub node: Option<String>,
    /// The agent's version.
    pub version: String,
    /// `enforce` or `audit`.
    pub mode: String,
    /// True if every pod of this node is enforced as the source says.
    pub ready: bool,
    /// Why not.
    pub not_ready: Vec<String>,
    /// When the agent started; RFC 3339, UTC.
    pub since: String,
    /// `tcx` or `clsact`.
    pub hook: String,
    /// The kernel's release.
    pub kernel: String,
    /// Where objects come from.
    pub source: String,
    /// Seconds since what it says was last known.
    pub source_age_seconds: u64,
    /// Watches of the API server; none of a directory.
    pub watches: Vec<WatchReport>,
    /// Pods here.
    pub endpoints: EndpointCounts,
    /// Policies.
    pub policies: PolicyCounts,
    /// Tables.
    pub maps: Vec<MapFill>,
    /// Flow tables.
    pub flows: FlowCounts,
    /// Flows older than their endpoint, since the agent started.
    pub older_flows: OlderFlows,
    /// Verdicts that the programs did not send, since the pins were made; `None` if that cannot be read.
    pub events_lost: Option<u64>,
    /// The last one; `None` before the first.
    pub reconciliation: Option<LastReconciliation>,
    /// Reconciliations that failed since the agent started.
    pub reconcile_errors: u64,
    /// What to look at.
    pub warnings: Vec<String>,
}

/// A watch of the API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchReport {
    /// Of which kind.
    pub kind: String,
    /// True once everything of it was listed.
    pub listed: bool,
    /// Seconds since anything was heard; `None` if nothing ever was.
    pub heard_seconds_ago: Option<u64>,
    /// What went wrong since.
    pub trouble: Option<String>,
}

/// Pods here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCounts {
    /// Enforced.
    pub enforced: u64,
    /// Known to be here: enforced, or with this node's name.
    pub known: u64,
}

/// Policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCounts {
    /// Known.
    pub total: u64,
    /// That select a pod here.
    pub selecting_here: u64,
    /// With a warning or an error.
    pub with_problems: u64,
}

/// A table's fill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapFill {
    /// Its name.
    pub map: String,
    /// What is in it.
    pub entries: u64,
    /// What would fit.
    pub capacity: u64,
}

/// Flow tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounts {
    /// In all of them; `None` if that cannot be read.
    pub entries: Option<u64>,
    /// For how many all of them together have room now; they grow.
    pub capacity: Option<u64>,
    /// Not made for want of room, since the pins were made; `None` if that cannot be read.
    pub refused: Option<u64>,
}

/// The last reconciliation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReconciliation {
    /// Its end; RFC 3339, UTC.
    pub time: String,
    /// How long it took.
    pub microseconds: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// Asks the running agent.
pub fn status(run_dir: &Path, face: Face) -> Result<Exit, Failure> {
    let status: Status = client::ask(run_dir, &Request::Status)?.answer()?;
    face.show(&status, || table(&status))?;
    Ok(if status.ready { Exit::Fine } else { Exit::Negative })
}

/// When a watch was heard; what is wrong with it is among the warnings.
fn heard(watch: &WatchReport) -> String {
    let when = watch.heard_seconds_ago.map_or_else(|| "never".to_owned(), |ago| format!("{ago} s ago"));
    let unlisted = if watch.listed { "" } else { " (not all yet)" };
    format!("{} {when}{unlisted}", watch.kind)
}

/// For people.
#[must_use]
pub fn table(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<17} {}", printable(&value));
    };
    let unknown = || "?".to_owned();
    line("node", status.node.clone().unwrap_or_else(|| "-".to_owned()));
    line("agent", format!("{}, {}, since {}", status.version, status.mode, status.since));
    line("kernel", format!("{}, by {}", status.kernel, status.hook));
    line(
        "ready",
        if status.ready { "yes".to_owned() } else { format!("NO: {}", status.not_ready.join("; ")) },
    );
    line("source", format!("{}, read {} s ago", status.source, status.source_age_seconds));
    if !status.watches.is_empty() {
        line("heard of", status.watches.iter().map(heard).collect::<Vec<_>>().join(", "));
    }
    line("endpoints", format!("{} of {} enforced", status.endpoints.enforced, status.endpoints.known));
    line(
        "policies",
        format!(
            "{}; {} select pods here, {} with problems",
            status.policies.total, status.policies.selecting_here, status.policies.with_problems
        ),
    );
    let count = |n: Option<u64>| n.map_or_else(unknown, |n| n.to_string());
    line(
        "flows",
        format!(
            "{} of {}, {} refused",
            count(status.flows.entries),
            count(status.flows.capacity),
            count(status.flows.refused)
        ),
    );
    let older = &status.older_flows;
    let mut text_of_older = format!("{} adopted, {} without room", older.adopted, older.no_room);
    if let Some(why) = &older.why {
        let _ = write!(text_of_older, "; unknown of {} endpoints: {why}", older.unknown);
    }
    line("older flows", text_of_older);
    line("events lost", count(status.events_lost));
    let last = match &status.reconciliation {
        None => "none yet".to_owned(),
        Some(LastReconciliation { time, microseconds, error }) => {
            let error = error.as_ref().map(|error| format!(", FAILED: {error}")).unwrap_or_default();
            format!("{time}, took {}.{:03} ms{error}", microseconds / 1_000, microseconds % 1_000)
        }
    };
    line("reconciliation", format!("{last}; {} failed so far", status.reconcile_errors));
    for fill in &status.maps {
        line(&format!("map {}", fill.map), format!("{} of {}", fill.entries, fill.capacity));
    }
    for warning in &status.warnings {
        line("warning", warning.clone());
    }
    text
}
