//! Problems of one object, as they are found: where a field stands, and text that is safe to print. A tenant
//! writes what is quoted here, so no control character and no endless text reaches a terminal.

use std::fmt::{self, Display};

use crate::model::{Problem, Severity};

/// The longest quotation of a manifest in a message, in characters.
const MAX_QUOTED: usize = 80;

/// The most problems that one object may report; one more says how many were left out.
const MAX_PROBLEMS: usize = 200;

/// Collects the problems of one object.
#[derive(Debug)]
pub struct Report {
    object: String,
    location: Option<String>,
    problems: Vec<Problem>,
    left_out: usize,
}

impl Report {
    /// A report on `object` (`KIND NAMESPACE/NAME`), which stands at `location` (`FILE` or `FILE:LINE`).
    #[must_use]
    pub fn new(object: &str, location: Option<&str>) -> Self {
        Self {
            object: printable(object),
            location: location.map(printable),
            problems: Vec::new(),
            left_out: 0,
        }
    }

    /// The problems, in the order in which they were found.
    #[must_use]
    pub fn into_problems(mut self) -> Vec<Problem> {
        if self.left_out > 0 {
            self.problems.push(Problem {
                severity: Severity::Warning,
                object: self.object,
                field: String::new(),
                message: format!("{} more problems are not shown; mend those above first", self.left_out),
                location: self.location,
            });
        }
        self.problems
    }

    pub(crate) fn error(&mut self, path: Path<'_>, message: impl Display) {
        self.push(Severity::Error, path, message);
    }

    pub(crate) fn warning(&mut self, path: Path<'_>, message: impl Display) {
        self.push(Severity::Warning, path, message);
    }

    pub(crate) fn push(&mut self, severity: Severity, path: Path<'_>, message: impl Display) {
        if self.problems.len() >= MAX_PROBLEMS {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.problems.push(Problem {
            severity,
            object: self.object.clone(),
            field: path.to_string(),
            message: message.to_string(),
            location: self.location.clone(),
        });
    }
}

/// The way to a field. It borrows its parent, so that building one costs nothing until it is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    /// The object itself.
    pub(crate) const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    /// A field of what this path leads to.
    pub(crate) fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    /// An entry of the list that this path leads to.
    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    fn is_root(&self) -> bool {
        matches!(self.step, Step::Root)
    }
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below_root = self.parent.is_none_or(Path::is_root);
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if below_root => f.write_str(&shortened(name)),
            Step::Field(name) => write!(f, ".{}", shortened(name)),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// Text of a manifest made fit for a terminal: control characters escaped.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unprintable(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, and the invisible ones that reorder what surrounds them.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A quotation: printable, in quotes, and cut where it is long.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", shortened(text).replace('"', "\\\""))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        None => printable(text),
        Some((end, _)) => printable(text.get(..end).unwrap_or_default()) + "...",
    }
}
