//! Labels of an object.

use serde_json::Value;

use super::report::{Path, Report, quoted};
use super::value::{Object, Read, object, what_is, wrong_type};
use crate::model::{Labels, LabelsRead};

/// Reads `labels` of a `metadata`; `path` leads to the metadata, `else_what` says what follows from labels that
/// cannot be read. Values that are not strings are no labels in Kubernetes: a number or boolean counts as its
/// text, with a warning; a list or mapping says nothing, and then nobody knows what selects the object.
pub(crate) fn labels(
    metadata: &Object,
    path: Path<'_>,
    report: &mut Report,
    else_what: &str,
) -> (Labels, LabelsRead) {
    let entries = match object(metadata, "labels", path, report, else_what) {
        Read::Absent => return (Labels::new(), LabelsRead::Whole),
        Read::WrongType => return (Labels::new(), LabelsRead::Unreadable),
        Read::Is(entries) => entries,
    };
    let path = path.field("labels");
    let mut labels = Labels::new();
    let mut read = LabelsRead::Whole;
    for (key, value) in entries {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => {
                let text = value.to_string();
                report.warning(
                    path.field(key),
                    format_args!("is {} and compares as {}; quote it", what_is(value), quoted(&text)),
                );
                text
            }
            Value::Null => {
                report
                    .warning(path.field(key), "is null and counts as absent; write \"\" for an empty value");
                continue;
            }
            Value::Array(_) | Value::Object(_) => {
                wrong_type(value, "a string", path.field(key), report, else_what);
                read = LabelsRead::Unreadable;
                continue;
            }
        };
        labels.insert(key.clone(), text);
    }
    (labels, read)
}
