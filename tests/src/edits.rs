//! Does what `explain` proposes to the manifests themselves, by the words of its JSON alone. Knows nothing of the
//! model that the proposal was made from, so that an oracle can be asked about the result.

use portcullis_policy::change::Edit;
use serde_json::{Map, Value, json};

/// An edit as JSON tells it.
#[derive(Clone, Debug)]
pub struct Written {
    /// `KIND NAMESPACE/NAME`.
    pub object: String,
    /// The field's path.
    pub field: String,
    /// What to do.
    pub op: String,
    /// What to write.
    pub value: Value,
}

impl From<&Edit> for Written {
    fn from(edit: &Edit) -> Self {
        Self { object: edit.object(), field: edit.field(), op: edit.op().to_owned(), value: edit.value() }
    }
}

/// Edits manifests. Of an object that is there twice, the later: it is the one that counts.
pub fn edit(manifests: &mut Vec<Value>, edit: &Written) {
    if edit.op == "create" {
        manifests.push(edit.value.clone());
        return;
    }
    let object = find_last(manifests, &edit.object).unwrap_or_else(|| panic!("no {}", edit.object));
    match edit.op.as_str() {
        "replace" => *at(object, &edit.field) = edit.value.clone(),
        "append" => {
            let list = at(object, &edit.field);
            match list.as_array_mut() {
                Some(list) => list.push(edit.value.clone()),
                None => *list = json!([edit.value]),
            }
        }
        "merge" => match (at(object, &edit.field), &edit.value) {
            (Value::Object(held), Value::Object(new)) => held.extend(new.clone()),
            (other, new) => *other = new.clone(),
        },
        "remove" => {
            let (list, index) = edit.field.strip_suffix(']').and_then(|f| f.rsplit_once('[')).unwrap();
            at(object, list).as_array_mut().unwrap().remove(index.parse().unwrap());
        }
        other => panic!("{other} is no op"),
    }
}

/// The value at a path of names; what is missing or no mapping on the way becomes one.
fn at<'a>(object: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(object, |value, name| {
        if !value.is_object() {
            *value = Value::Object(Map::new());
        }
        value.as_object_mut().unwrap().entry(name).or_insert(Value::Null)
    })
}

fn find_last<'a>(manifests: &'a mut [Value], object: &str) -> Option<&'a mut Value> {
    manifests.iter_mut().rev().find_map(|manifest| {
        if manifest.get("items").is_some() {
            let items = manifest.get_mut("items")?.as_array_mut()?;
            return find_last(items, object);
        }
        (name_of(manifest) == object).then_some(manifest)
    })
}

fn name_of(manifest: &Value) -> String {
    let text = |path: &str| manifest.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let namespace = match text("/metadata/namespace") {
        "" => "default",
        namespace => namespace,
    };
    match text("/kind") {
        kind @ "HostPolicy" => format!("{kind} {}", text("/metadata/name")),
        kind => format!("{kind} {namespace}/{}", text("/metadata/name")),
    }
}
