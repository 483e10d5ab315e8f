//! What annotations say: the mode of a policy or of a namespace's policies, and the source binding of a namespace's pods.

use serde_json::Value;

use super::report::{Path, Report, quoted};
use super::value::{Read, field, object, wrong_type};
use crate::model::{Mode, SourceBinding};

/// The annotation, on a NetworkPolicy or on its Namespace; the policy's own goes first.
pub const MODE_ANNOTATION: &str = "portcullis.dev/mode";
/// The annotation on a Namespace. On a pod it means nothing: who writes pods is who is bound.
pub const SOURCE_BINDING_ANNOTATION: &str = "portcullis.dev/source-binding";

const ENFORCED: &str = "it does not count: what is denied is dropped; write \"audit\" or \"enforce\"";
const BOUND: &str = "it does not count: pods send from their own addresses only; write \"on\" or \"off\"";

/// Reads the annotation of an object. One that cannot be read enforces, whatever the namespace's says: an error
/// never opens.
pub(crate) fn mode(value: &Value, report: &mut Report) -> Option<Mode> {
    annotation(value, MODE_ANNOTATION, Mode::from_name, "mode", ENFORCED, report)
}

/// Reads the annotation of a Namespace. One that cannot be read binds, whatever the agent was told.
pub(crate) fn source_binding(value: &Value, report: &mut Report) -> Option<SourceBinding> {
    let read = SourceBinding::from_name;
    annotation(value, SOURCE_BINDING_ANNOTATION, read, "source binding", BOUND, report)
}

/// What an annotation says, if it is there. One that cannot be read is reported, and says what goes without saying.
fn annotation<T: Default>(
    value: &Value,
    key: &str,
    read: impl FnOnce(&str) -> Option<T>,
    what: &str,
    means: &str,
    report: &mut Report,
) -> Option<T> {
    let path = Path::ROOT.field("metadata");
    let metadata =
        value.as_object().and_then(|fields| field(fields, "metadata")).and_then(Value::as_object)?;
    let annotations = match object(metadata, "annotations", path, report, means) {
        Read::Absent => return None,
        Read::WrongType => return Some(T::default()),
        Read::Is(annotations) => annotations,
    };
    // Somebody wrote the key: null is no way to say nothing.
    let value = annotations.get(key)?;
    let path = path.field("annotations");
    let path = path.field(key);
    let Some(text) = value.as_str() else {
        wrong_type(value, "a string", path, report, means);
        return Some(T::default());
    };
    let read = read(text);
    if read.is_none() {
        report.error(path, format_args!("{} is no {what}: {means}", quoted(text)));
    }
    Some(read.unwrap_or_default())
}
