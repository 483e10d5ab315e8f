//! Namespaces and Nodes.

use std::net::IpAddr;

use serde_json::Value;

use super::cidr::address;
use super::labels::labels;
use super::mode::{mode, source_binding};
use super::report::{Path, Report, quoted};
use super::value::{Object, entry, list, object, text};
use crate::model::{Labels, LabelsRead, Namespace, Node};

/// The label that every Namespace carries, with its own name (S15).
pub const METADATA_NAME: &str = "kubernetes.io/metadata.name";

const LEFT_OUT: &str = "the address is left out";

/// Reads a Namespace, `None` if its labels cannot be read: it then counts as undeclared (S34), for with some of
/// its labels it could match what it must not. What its manifest says of [`METADATA_NAME`] does not count (T13).
#[must_use]
pub fn namespace(value: &Value, name: &str, report: &mut Report) -> Option<Namespace> {
    let means = "the namespace counts as undeclared and its pods are isolated both ways";
    let (mut labels, read) = metadata_labels(value, report, means);
    match read {
        LabelsRead::Whole => {}
        LabelsRead::Unreadable => return None,
    }
    if let Some(claimed) = labels.insert(METADATA_NAME.to_owned(), name.to_owned())
        && claimed != name
    {
        let labels_path = Path::ROOT.field("metadata");
        report.warning(
            labels_path.field("labels").field(METADATA_NAME),
            format_args!(
                "{} is not the namespace's name: it counts as {}; take it out",
                quoted(&claimed),
                quoted(name)
            ),
        );
    }
    Some(Namespace { labels, mode: mode(value, report), source_binding: source_binding(value, report) })
}

/// Reads a Node. Host names in its addresses are no addresses and pass silently.
#[must_use]
pub fn node(value: &Value, report: &mut Report) -> Node {
    let (labels, _) = metadata_labels(value, report, "the label counts as absent");
    let empty = Object::new();
    let fields = value.as_object().unwrap_or(&empty);
    let status = object(fields, "status", Path::ROOT, report, "it counts as empty").is().unwrap_or(&empty);
    let path = Path::ROOT.field("status");
    let entries = list(status, "addresses", path, report, "the node has none").is().unwrap_or_default();
    let path = path.field("addresses");
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (index, value) in entries.iter().enumerate() {
        let Some(fields) = entry(value, path.index(index), report, LEFT_OUT) else { continue };
        let text = text(fields, "address", path.index(index), report, LEFT_OUT).is();
        if let Some(address) = text.and_then(address)
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    Node { labels, addresses }
}

fn metadata_labels(value: &Value, report: &mut Report, else_what: &str) -> (Labels, LabelsRead) {
    match value.get("metadata") {
        Some(Value::Object(metadata)) => labels(metadata, Path::ROOT.field("metadata"), report, else_what),
        Some(_) | None => (Labels::new(), LabelsRead::Whole),
    }
}
