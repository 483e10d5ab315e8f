//! Labels of an object.

use serde_json::Value;

use super::report::{Path, Report, quoted};
use super::value::{Object, object, what_is, wrong_type};
use crate::model::Labels;

/// Reads `labels` of a `metadata`; `path` leads to the metadata. Values that are not strings are no labels in
/// Kubernetes: a number or boolean counts as its text, with a warning, anything else is left out.
pub(crate) fn labels(metadata: &Object, path: Path<'_>, report: &mut Report) -> Labels {
    let Some(entries) = object(metadata, "labels", path, report, "it counts as having no labels").is() else {
        return Labels::new();
    };
    let path = path.field("labels");
    let mut labels = Labels::new();
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
                wrong_type(value, "a string", path.field(key), report, "the label is left out");
                continue;
            }
        };
        labels.insert(key.clone(), text);
    }
    labels
}
