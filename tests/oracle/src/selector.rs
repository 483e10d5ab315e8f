//! Label selectors: reading them, with what is wrong about an unreadable one, and matching labels.
//! It does not know whose labels they are, nor what an unreadable selector means for a policy.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::read::{field, has_unknown_field, items};

/// A label selector that could be read in full.
#[derive(Debug)]
pub(crate) struct Selector {
    labels: Vec<(String, String)>,
    expressions: Vec<(String, Operator)>,
}

#[derive(Debug)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// Why a selector cannot be read; the worse one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flaw {
    /// S13: unknown operator, `In` or `NotIn` without values, `Exists` or `DoesNotExist` with values, empty key.
    Invalid,
    /// A field of the wrong JSON type, at any depth.
    WrongType,
}

impl Selector {
    /// Reads a selector whole: with any flaw there is none, and the worst flaw is told.
    pub(crate) fn read(value: &Value) -> Result<Selector, Flaw> {
        if !value.is_object() {
            return Err(Flaw::WrongType);
        }
        let mut flaws = Vec::new();
        let mut selector = Selector { labels: Vec::new(), expressions: Vec::new() };

        if let Some(labels) = field(value, "matchLabels") {
            match labels.as_object() {
                None => flaws.push(Flaw::WrongType),
                Some(labels) => {
                    for (key, value) in labels {
                        match value.as_str() {
                            None => flaws.push(Flaw::WrongType),
                            // S13: an empty key.
                            Some(_) if key.is_empty() => flaws.push(Flaw::Invalid),
                            Some(value) => selector.labels.push((key.clone(), value.to_owned())),
                        }
                    }
                }
            }
        }
        if let Some(expressions) = field(value, "matchExpressions") {
            match expressions.as_array() {
                None => flaws.push(Flaw::WrongType),
                Some(expressions) => {
                    for expression in expressions {
                        match read_expression(expression) {
                            Ok(expression) => selector.expressions.push(expression),
                            Err(flaw) => flaws.push(flaw),
                        }
                    }
                }
            }
        }
        match flaws.into_iter().max() {
            None => Ok(selector),
            Some(worst) => Err(worst),
        }
    }

    /// Whether labels satisfy every requirement; an empty selector matches everything.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        // S14: matchLabels {k: ""} needs the key, with an empty value: absent is not empty.
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|(key, operator)| {
                let value = labels.get(key);
                match operator {
                    // S14: In and Exists do not match where the key is missing.
                    Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                    Operator::Exists => value.is_some(),
                    // S14: NotIn and DoesNotExist do.
                    Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

/// S13: one matchExpressions entry. Values are compared as strings, whatever validation thinks of them today.
fn read_expression(value: &Value) -> Result<(String, Operator), Flaw> {
    if !value.is_object() {
        return Err(Flaw::WrongType);
    }
    let string = |name: &str| match field(value, name) {
        None => Ok(""),
        Some(value) => value.as_str().ok_or(Flaw::WrongType),
    };
    let key = string("key")?;
    let operator = string("operator")?;
    let values: Vec<String> = match field(value, "values") {
        None => Vec::new(),
        Some(values) => values
            .as_array()
            .ok_or(Flaw::WrongType)?
            .iter()
            .map(|value| value.as_str().map(str::to_owned).ok_or(Flaw::WrongType))
            .collect::<Result<_, _>>()?,
    };
    if key.is_empty() {
        return Err(Flaw::Invalid);
    }
    let operator = match (operator, values.is_empty()) {
        ("In", false) => Operator::In(values),
        ("NotIn", false) => Operator::NotIn(values),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        _ => return Err(Flaw::Invalid),
    };
    Ok((key.to_owned(), operator))
}

/// S49: whether a selector, or one of its expressions, has an unknown field.
pub(crate) fn has_unknown_fields(selector: &Value) -> bool {
    has_unknown_field(selector, &["matchLabels", "matchExpressions"])
        || items(selector, "matchExpressions")
            .any(|expression| has_unknown_field(expression, &["key", "operator", "values"]))
}
