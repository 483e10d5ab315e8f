//! Label selectors (S13, S14).

use std::collections::BTreeSet;

use serde_json::Value;

use super::report::{Path, Report, quoted};
use super::value::{Object, Read, entry, list, object, text, wrong_type};
use crate::model::{Operator, Requirement, Selector};

/// Why a selector could not be read. The later variant is the graver one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unreadable {
    /// A requirement says nothing that has a meaning: unknown operator, missing or needless values, empty
    /// key (S13).
    Requirement,
    /// A field has the wrong type: nothing is known of what was meant.
    Type,
}

const CLOSES: &str = "the selector cannot be read and what it stands in closes";

/// Reads a selector that is there. All that is wrong with it is reported, the gravest reason returned.
pub(crate) fn selector(value: &Value, path: Path<'_>, report: &mut Report) -> Result<Selector, Unreadable> {
    let Some(fields) = entry(value, path, report, CLOSES) else {
        return Err(Unreadable::Type);
    };
    let mut worst = None;
    let mut requirements = BTreeSet::new();
    let mut take = |read: Result<Requirement, Unreadable>| match read {
        Ok(requirement) => {
            requirements.insert(requirement);
        }
        Err(why) => worst = worst.max(Some(why)),
    };
    match object(fields, "matchLabels", path, report, CLOSES) {
        Read::Absent => {}
        Read::WrongType => take(Err(Unreadable::Type)),
        Read::Is(labels) => {
            let path = path.field("matchLabels");
            for (key, value) in labels {
                take(match_label(key, value, path.field(key), report));
            }
        }
    }
    match list(fields, "matchExpressions", path, report, CLOSES) {
        Read::Absent => {}
        Read::WrongType => take(Err(Unreadable::Type)),
        Read::Is(expressions) => {
            let path = path.field("matchExpressions");
            for (index, value) in expressions.iter().enumerate() {
                take(expression(value, path.index(index), report));
            }
        }
    }
    match worst {
        None => Ok(Selector { requirements }),
        Some(why) => Err(why),
    }
}

fn match_label(
    key: &str,
    value: &Value,
    path: Path<'_>,
    report: &mut Report,
) -> Result<Requirement, Unreadable> {
    let Value::String(value) = value else {
        wrong_type(value, "a string", path, report, CLOSES);
        return Err(Unreadable::Type);
    };
    if key.is_empty() {
        report.error(path, format_args!("has an empty key: {CLOSES}; name the label"));
        return Err(Unreadable::Requirement);
    }
    Ok(Requirement { key: key.to_owned(), operator: Operator::In(BTreeSet::from([value.clone()])) })
}

fn expression(value: &Value, path: Path<'_>, report: &mut Report) -> Result<Requirement, Unreadable> {
    let Some(fields) = entry(value, path, report, CLOSES) else {
        return Err(Unreadable::Type);
    };
    let key = text(fields, "key", path, report, CLOSES);
    let operator = text(fields, "operator", path, report, CLOSES);
    let values = values(fields, path, report);
    let (Read::Is(_) | Read::Absent, Read::Is(_) | Read::Absent, Some(values)) = (key, operator, values)
    else {
        return Err(Unreadable::Type);
    };
    let Some(key) = key.is().filter(|key| !key.is_empty()) else {
        report.error(path.field("key"), format_args!("is empty: {CLOSES}; name the label"));
        return Err(Unreadable::Requirement);
    };
    let operator = operator_with_values(operator.is().unwrap_or_default(), values, path, report)?;
    Ok(Requirement { key: key.to_owned(), operator })
}

fn operator_with_values(
    operator: &str,
    values: BTreeSet<String>,
    path: Path<'_>,
    report: &mut Report,
) -> Result<Operator, Unreadable> {
    let values_path = path.field("values");
    match (operator, values.is_empty()) {
        ("In", false) => Ok(Operator::In(values)),
        ("NotIn", false) => Ok(Operator::NotIn(values)),
        ("Exists", true) => Ok(Operator::Exists),
        ("DoesNotExist", true) => Ok(Operator::DoesNotExist),
        ("In" | "NotIn", true) => {
            report
                .error(values_path, format_args!("is empty: {CLOSES}; {operator} needs at least one value"));
            Err(Unreadable::Requirement)
        }
        ("Exists" | "DoesNotExist", false) => {
            report.error(values_path, format_args!("must be empty with {operator}: {CLOSES}; take it out"));
            Err(Unreadable::Requirement)
        }
        (unknown, _) => {
            report.error(
                path.field("operator"),
                format_args!(
                    "{} is unknown: {CLOSES}; use In, NotIn, Exists or DoesNotExist",
                    quoted(unknown)
                ),
            );
            Err(Unreadable::Requirement)
        }
    }
}

/// The values of an expression, `None` if one of them is not a string.
fn values(fields: &Object, path: Path<'_>, report: &mut Report) -> Option<BTreeSet<String>> {
    let entries = match list(fields, "values", path, report, CLOSES) {
        Read::Absent => return Some(BTreeSet::new()),
        Read::WrongType => return None,
        Read::Is(entries) => entries,
    };
    let path = path.field("values");
    let mut values = BTreeSet::new();
    let mut readable = true;
    for (index, value) in entries.iter().enumerate() {
        if let Value::String(value) = value {
            values.insert(value.clone());
        } else {
            wrong_type(value, "a string", path.index(index), report, CLOSES);
            readable = false;
        }
    }
    readable.then_some(values)
}
