//! What `bpftool` says of maps, and how a document shows it: dumps as entries in order, with names where values
//! differ from run to run. Knows nothing of what a map means.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A JSON value whose fields keep their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// Text; in a shown dump, a name that stands for a value.
    Text(String),
    /// True or false.
    Bool(bool),
    /// A list.
    List(Vec<Value>),
    /// Fields in order.
    Fields(Vec<(String, Value)>),
}

impl Value {
    /// A field of an object.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Fields(fields) => fields.iter().find(|(field, _)| field == name).map(|(_, value)| value),
            Self::Number(_) | Self::Text(_) | Self::Bool(_) | Self::List(_) => None,
        }
    }

    /// As a number.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(_) | Self::Bool(_) | Self::List(_) | Self::Fields(_) => None,
        }
    }

    /// The elements of a list; none of anything else.
    #[must_use]
    pub fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            Self::Number(_) | Self::Text(_) | Self::Bool(_) | Self::Fields(_) => &[],
        }
    }

    fn is_zero(&self) -> bool {
        match self {
            Self::Number(number) => *number == 0,
            Self::Text(_) => false,
            Self::Bool(value) => !value,
            Self::List(list) => list.iter().all(Self::is_zero),
            Self::Fields(fields) => fields.iter().all(|(name, value)| name == "cpu" || value.is_zero()),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("what bpftool prints")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Number(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = seq.next_element()? {
                    list.push(value);
                }
                Ok(Value::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(Value::Fields(fields))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Runs `bpftool` and returns what it prints.
///
/// # Panics
///
/// If it is not there, or fails.
#[must_use]
pub fn bpftool(arguments: &[&str]) -> String {
    let output = Command::new("bpftool").args(arguments).output().expect("bpftool is installed");
    assert!(
        output.status.success(),
        "bpftool {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("bpftool prints text")
}

/// The same, of JSON.
///
/// # Panics
///
/// If it is none.
#[must_use]
pub fn bpftool_json(arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["-j"].iter().chain(arguments).copied().collect();
    let text = bpftool(&all);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("bpftool {}: {error}: {text}", all.join(" ")))
}

/// The entries of a map, with the names of its fields: the plain dump, which must say the same as the JSON.
///
/// # Panics
///
/// If it does not, or prints a key or value as raw bytes.
#[must_use]
pub fn entries(map: &[&str], show: &Show) -> Vec<String> {
    let arguments: Vec<&str> = ["map", "dump"].iter().chain(map).copied().collect();
    let plain: Value = serde_json::from_str(&bpftool(&arguments))
        .unwrap_or_else(|error| panic!("{map:?} does not print in words: {error}"));
    let formatted: Vec<Value> = bpftool_json(&arguments)
        .list()
        .iter()
        .map(|entry| entry.get("formatted").unwrap_or_else(|| panic!("{map:?} has no types")).clone())
        .collect();
    let [plain, formatted] = [plain.list(), &formatted].map(|entries| show.entries(entries));
    assert_eq!(plain, formatted, "{map:?}: plain and JSON differ");
    plain
}

/// How entries are shown.
#[derive(Clone, Debug, Default)]
pub struct Show {
    /// Interface indexes, by the slots that they lead to.
    pub slots: BTreeMap<u64, u64>,
    /// True for hashes: their order is none.
    pub sorted: bool,
    /// True for hashes: an entry of zeros is one too.
    pub all: bool,
    /// The keys to show; all that are not zero, where this is empty.
    pub keys: Vec<u64>,
    /// True where the key is an interface index.
    pub key_is_interface: bool,
}

/// Fields whose values are moments or depend on them.
const NAMED: [(&str, &str); 4] =
    [("seen", "SECONDS"), ("opened", "SECONDS"), ("second", "SECONDS"), ("sent", "EVENTS")];

impl Show {
    /// One line for each entry that is in use.
    #[must_use]
    pub fn entries(&self, entries: &[Value]) -> Vec<String> {
        let shown = |entry: &&Value| {
            let key = entry.get("key").and_then(Value::number);
            let used = ["value", "values"].into_iter().filter_map(|f| entry.get(f)).any(|v| !v.is_zero());
            if self.keys.is_empty() { used || self.all } else { key.is_some_and(|k| self.keys.contains(&k)) }
        };
        let mut lines: Vec<String> = entries
            .iter()
            .filter(shown)
            .map(|entry| {
                let mut line = String::new();
                put(&mut line, "", &self.named(entry));
                line
            })
            .collect();
        if self.sorted {
            lines.sort();
        }
        lines
    }

    /// Names where values vary; one value where each CPU has one.
    fn named(&self, value: &Value) -> Value {
        let interface = |number: &Value| {
            let slot = number.number().and_then(|index| self.slots.get(&index));
            slot.map_or_else(|| number.clone(), |slot| Value::Text(format!("INTERFACE_{slot}")))
        };
        match value {
            Value::Number(_) | Value::Text(_) | Value::Bool(_) => value.clone(),
            Value::List(list) => Value::List(list.iter().map(|one| self.named(one)).collect()),
            Value::Fields(fields) => {
                let named = fields.iter().map(|(name, value)| {
                    let value = match name.as_str() {
                        "ifindex" => interface(value),
                        "key" if self.key_is_interface => interface(value),
                        "values" => Value::List(vec![self.all_cpus(value.list())]),
                        _ => NAMED
                            .iter()
                            .find(|(field, _)| field == name)
                            .map_or_else(|| self.named(value), |(_, word)| Value::Text((*word).to_owned())),
                    };
                    (name.clone(), value)
                });
                Value::Fields(named.collect())
            }
        }
    }

    /// Which CPU a packet is judged on varies: the sum is shown.
    fn all_cpus(&self, values: &[Value]) -> Value {
        let mut sums: Vec<(String, u64)> = Vec::new();
        for (name, value) in values.iter().filter_map(|one| one.get("value")).flat_map(|value| match value {
            Value::Fields(fields) => fields.as_slice(),
            Value::Number(_) | Value::Text(_) | Value::Bool(_) | Value::List(_) => &[],
        }) {
            let number = value.number().expect("counts are numbers");
            match sums.iter_mut().find(|(held, _)| held == name) {
                Some((_, sum)) => *sum += number,
                None => sums.push((name.clone(), number)),
            }
        }
        let fields = sums.into_iter().map(|(name, sum)| (name, Value::Number(sum))).collect();
        let value = self.named(&Value::Fields(fields));
        Value::Fields(vec![("cpu".to_owned(), Value::Text("CPU".to_owned())), ("value".to_owned(), value)])
    }
}

fn put(out: &mut String, indent: &str, value: &Value) {
    match value {
        Value::Number(number) => write!(out, "{number}").expect("text can be written"),
        Value::Text(word) => out.push_str(word),
        Value::Bool(value) => write!(out, "{value}").expect("text can be written"),
        Value::List(list) if list.iter().all(|one| one.number().is_some()) => {
            let used = list.iter().rposition(|one| !one.is_zero()).map_or(0, |last| last + 1);
            // What fills up names; addresses are shown whole.
            let cut = if list.len() > 16 { (used + 1).min(list.len()) } else { list.len() };
            let mut words: Vec<String> =
                list.iter().take(cut).filter_map(Value::number).map(|n| n.to_string()).collect();
            if cut < list.len() {
                words.push("...".to_owned());
            }
            write!(out, "[{}]", words.join(",")).expect("text can be written");
        }
        Value::List(list) => {
            out.push_str("[ ");
            for (index, one) in list.iter().enumerate() {
                if index > 0 {
                    write!(out, ",\n  {indent}  ").expect("text can be written");
                }
                put(out, &format!("{indent}  "), one);
            }
            out.push_str(" ]");
        }
        Value::Fields(fields) => {
            out.push_str("{ ");
            for (index, (name, one)) in fields.iter().enumerate() {
                if index > 0 {
                    let breaks = matches!(name.as_str(), "value" | "addrs" | "name" | "policy_kind")
                        && matches!(one, Value::Fields(_) | Value::List(_) | Value::Number(_))
                        && long(fields);
                    if breaks {
                        write!(out, ",\n  {indent}").expect("text can be written");
                    } else {
                        out.push_str(", ");
                    }
                }
                write!(out, "\"{name}\": ").expect("text can be written");
                put(out, indent, one);
            }
            out.push_str(" }");
        }
    }
}

/// True where an object would not fit a line.
fn long(fields: &[(String, Value)]) -> bool {
    fn length(value: &Value) -> usize {
        match value {
            Value::Number(number) => number.to_string().len(),
            Value::Text(word) => word.len(),
            Value::Bool(_) => 5,
            Value::List(list) => list.iter().map(|one| length(one) + 1).sum::<usize>() + 2,
            Value::Fields(fields) => fields.iter().map(|(name, one)| name.len() + length(one) + 6).sum(),
        }
    }
    fields.iter().map(|(name, one)| name.len() + length(one) + 6).sum::<usize>() > 130
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_varies_gets_a_name_and_the_rest_stays() {
        let dump = r#"[
            {"key": 5, "value": {"slot": 0, "ifindex": 5}},
            {"key": 9, "values": [{"cpu": 0, "value": {"packets": 1, "seen": 7}}, {"cpu": 1, "value": {"packets": 2, "seen": 8}}]},
            {"key": 10, "value": {"words": [0, 0]}}
        ]"#;
        let dump: Value = serde_json::from_str(dump).unwrap();
        let show = Show { slots: BTreeMap::from([(5, 0)]), key_is_interface: true, ..Show::default() };
        assert_eq!(
            show.entries(dump.list()),
            [
                r#"{ "key": INTERFACE_0, "value": { "slot": 0, "ifindex": INTERFACE_0 } }"#,
                r#"{ "key": 9, "values": [ { "cpu": CPU, "value": { "packets": 3, "seen": SECONDS } } ] }"#,
            ]
        );
    }
}
