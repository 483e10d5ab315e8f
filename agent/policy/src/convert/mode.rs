//! The mode that an annotation gives a policy, or the policies of a namespace.

use serde_json::Value;

use super::report::{Path, Report, quoted};
use super::value::{Read, field, object, wrong_type};
use crate::model::Mode;

/// The annotation, on a NetworkPolicy or on its Namespace; the policy's own goes first.
pub const MODE_ANNOTATION: &str = "portcullis.dev/mode";

const ENFORCED: &str = "it does not count: what is denied is dropped; write \"audit\" or \"enforce\"";

/// Reads the annotation of an object. One that cannot be read enforces, whatever the namespace's says: an error
/// never opens.
pub(crate) fn mode(value: &Value, report: &mut Report) -> Option<Mode> {
    let path = Path::ROOT.field("metadata");
    let metadata =
        value.as_object().and_then(|fields| field(fields, "metadata")).and_then(Value::as_object)?;
    let annotations = match object(metadata, "annotations", path, report, ENFORCED) {
        Read::Absent => return None,
        Read::WrongType => return Some(Mode::Enforce),
        Read::Is(annotations) => annotations,
    };
    // Somebody wrote the key: null is no way to say nothing.
    let value = annotations.get(MODE_ANNOTATION)?;
    let path = path.field("annotations");
    let path = path.field(MODE_ANNOTATION);
    let Some(text) = value.as_str() else {
        wrong_type(value, "a string", path, report, ENFORCED);
        return Some(Mode::Enforce);
    };
    let read = Mode::from_name(text);
    if read.is_none() {
        report.error(path, format_args!("{} is no mode: {ENFORCED}", quoted(text)));
    }
    Some(read.unwrap_or(Mode::Enforce))
}
