//! Reading raw JSON leniently: null counts as absent, and unknown fields can be seen.
//! It knows no Kubernetes kind.

use std::collections::BTreeMap;

use serde_json::Value;

/// A field's value; an explicit null is an absent field.
pub(crate) fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// A field that is a string; one of another type is as good as absent.
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    field(object, name).and_then(Value::as_str)
}

/// The items of a field that is a list; none where it is absent or of another type.
pub(crate) fn items<'a>(object: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    field(object, name).and_then(Value::as_array).into_iter().flatten()
}

/// The string values of a field that is a map.
pub(crate) fn labels(object: &Value, name: &str) -> BTreeMap<String, String> {
    field(object, name)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// S49: whether an object has a field that is not among the known ones, whatever its value.
pub(crate) fn has_unknown_field(object: &Value, known: &[&str]) -> bool {
    object.as_object().is_some_and(|map| map.keys().any(|key| !known.contains(&key.as_str())))
}

/// A valid port number: an integer from 1 to 65535 (S24).
pub(crate) fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0)
}
