//! Reading fields whose type the writer of a manifest chose. `null` is absent everywhere; a wrong type is
//! told apart from absence, for the one closes where the other is a default.

use serde_json::Value;

use super::report::{Path, Report};

/// A mapping of a manifest.
pub(crate) type Object = serde_json::Map<String, Value>;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read<T> {
    /// Not there, or `null`.
    Absent,
    /// Of another type than it must be; that has been reported.
    WrongType,
    /// This.
    Is(T),
}

impl<T> Read<T> {
    /// The value, where there is a readable one.
    pub(crate) fn is(self) -> Option<T> {
        match self {
            Self::Absent | Self::WrongType => None,
            Self::Is(value) => Some(value),
        }
    }
}

/// The field's value, unless it is absent or `null`.
pub(crate) fn field<'v>(object: &'v Object, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// Reads a list; `else_what` says what follows from a wrong type.
pub(crate) fn list<'v>(
    parent: &'v Object,
    name: &str,
    path: Path<'_>,
    report: &mut Report,
    else_what: &str,
) -> Read<&'v [Value]> {
    match field(parent, name) {
        None => Read::Absent,
        Some(Value::Array(entries)) => Read::Is(entries),
        Some(other) => {
            wrong_type(other, "a list", path.field(name), report, else_what);
            Read::WrongType
        }
    }
}

/// Reads a mapping; `else_what` says what follows from a wrong type.
pub(crate) fn object<'v>(
    parent: &'v Object,
    name: &str,
    path: Path<'_>,
    report: &mut Report,
    else_what: &str,
) -> Read<&'v Object> {
    match field(parent, name) {
        None => Read::Absent,
        Some(Value::Object(fields)) => Read::Is(fields),
        Some(other) => {
            wrong_type(other, "a mapping", path.field(name), report, else_what);
            Read::WrongType
        }
    }
}

/// Reads a string; `else_what` says what follows from a wrong type.
pub(crate) fn text<'v>(
    parent: &'v Object,
    name: &str,
    path: Path<'_>,
    report: &mut Report,
    else_what: &str,
) -> Read<&'v str> {
    match field(parent, name) {
        None => Read::Absent,
        Some(Value::String(text)) => Read::Is(text),
        Some(other) => {
            wrong_type(other, "a string", path.field(name), report, else_what);
            Read::WrongType
        }
    }
}

/// An entry of a list that must be a mapping; `null` is not one.
pub(crate) fn entry<'v>(
    value: &'v Value,
    path: Path<'_>,
    report: &mut Report,
    else_what: &str,
) -> Option<&'v Object> {
    let entry = value.as_object();
    if entry.is_none() {
        wrong_type(value, "a mapping", path, report, else_what);
    }
    entry
}

/// Reports a value of a wrong type.
pub(crate) fn wrong_type(value: &Value, wanted: &str, path: Path<'_>, report: &mut Report, else_what: &str) {
    report
        .error(path, format_args!("is {} and must be {wanted}: {else_what}; write {wanted}", what_is(value)));
}

/// The type of a value, in words.
pub(crate) fn what_is(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}
