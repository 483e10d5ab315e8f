//! Text to JSON values. The limits here are what a hostile file meets first (T22).

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use super::{ManifestObject, SourceFile};
use crate::convert::printable;
use crate::model::{Problem, Severity};

/// The largest file that is read. `kubectl get pods -A -o yaml` of a cluster of 5,000 pods has about 40 MB.
pub const MAX_FILE_BYTES: usize = 64 << 20;

/// The most scalars, lists and mappings in a YAML file, what aliases repeat included.
const MAX_NODES: usize = 4_000_000;

/// The most YAML events: a list or mapping has two, an alias one more.
const MAX_EVENTS: usize = 3 * MAX_NODES;

/// The most events that aliases may repeat: manifests that people write use a few.
const MAX_ALIAS_EVENTS: usize = 100_000;

/// The most aliases in a file.
const MAX_ALIASES: usize = 10_000;

/// The deepest nesting. A NetworkPolicy in a List has 12 levels, schemas of CRDs up to about 40. A level takes
/// up to 24 kB of stack in a debug build, and a thread may have no more than 2 MB.
const MAX_DEPTH: usize = 64;

/// The most documents in a file.
const MAX_DOCUMENTS: usize = 100_000;

/// The longest message of a parser that is shown, in characters.
const MAX_MESSAGE: usize = 300;

/// Reads every document of a file; empty ones are left out.
pub(super) fn parse(file: &SourceFile<'_>) -> Result<Vec<ManifestObject>, Problem> {
    if file.content.len() > MAX_FILE_BYTES {
        let message = format!("is larger than {MAX_FILE_BYTES} bytes and is not read; split it");
        return Err(problem(file, None, message));
    }
    let text = std::str::from_utf8(file.content).map_err(|e| {
        let line = line_of(file.content, e.valid_up_to());
        problem(file, Some(line), "is not UTF-8 and is not read; save it as UTF-8".to_owned())
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if file.path.to_ascii_lowercase().ends_with(".json") { json(file, text) } else { yaml(file, text) }
}

fn yaml(file: &SourceFile<'_>, text: &str) -> Result<Vec<ManifestObject>, Problem> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: MAX_EVENTS,
            max_aliases: MAX_ALIASES,
            max_depth: MAX_DEPTH,
            max_documents: MAX_DOCUMENTS,
            max_total_scalar_bytes: MAX_FILE_BYTES,
            max_total_comment_bytes: MAX_FILE_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
        // Labels such as `enabled: on` and `country: no` keep the text that their writer sees.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
        ignore_binary_tag_for_string: true,
        emit_comments: false,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Strict>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|e| {
            let line = e.location().map(|location| location.line());
            let message = shortened(&e.to_string());
            problem(file, line, format!("is no YAML that can be read ({message}); mend it"))
        })?;
    let objects = documents.into_iter().filter(|document| !document.value.0.is_null());
    Ok(objects.map(|d| ManifestObject { line: d.referenced.line(), value: d.value.0 }).collect())
}

fn json(file: &SourceFile<'_>, text: &str) -> Result<Vec<ManifestObject>, Problem> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Strict>();
    let mut objects = Vec::new();
    let mut line = 1;
    let mut counted = 0;
    loop {
        let behind = text.get(values.byte_offset()..).unwrap_or_default();
        let start = text.len() - behind.trim_start().len();
        let passed = text.get(counted..start).unwrap_or_default();
        line += newlines(passed.as_bytes());
        counted = start;
        match values.next() {
            None => return Ok(objects),
            Some(Ok(Strict(Value::Null))) => {}
            Some(Ok(Strict(value))) => objects.push(ManifestObject { line, value }),
            Some(Err(e)) => {
                let message = shortened(&e.to_string());
                let line = u64::try_from(e.line()).ok();
                return Err(problem(file, line, format!("is no JSON that can be read ({message}); mend it")));
            }
        }
    }
}

fn problem(file: &SourceFile<'_>, line: Option<u64>, message: String) -> Problem {
    let path = printable(file.path);
    let location = match line.filter(|line| *line > 0) {
        Some(line) => format!("{path}:{line}"),
        None => path.clone(),
    };
    Problem {
        severity: Severity::Error,
        object: path,
        field: String::new(),
        message,
        location: Some(location),
    }
}

fn shortened(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    printable(&line.chars().take(MAX_MESSAGE).collect::<String>())
}

fn line_of(content: &[u8], offset: usize) -> u64 {
    1 + newlines(content.get(..offset).unwrap_or_default())
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

/// A JSON value whose mappings hold no key twice: of two `ports` nobody knows which was meant.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Number::from_i128(value).map_or_else(|| Value::String(value.to_string()), Value::Number))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Number::from_u128(value).map_or_else(|| Value::String(value.to_string()), Value::Number))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or_else(|| Value::String(value.to_string()), Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(Strict(entry)) = access.next_element()? {
            entries.push(entry);
        }
        Ok(Value::Array(entries))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((key, Strict(value))) = access.next_entry::<String, Strict>()? {
            if fields.contains_key(&key) {
                return Err(de::Error::custom(format_args!("the key {key:?} stands twice in a mapping")));
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}
