//! What turns a verdict, as `explain` shows it.

use portcullis_policy::change::{Change, Edit};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::output::Verdict;

/// The smallest change that turns the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedChange {
    /// What the verdict becomes.
    pub verdict: Verdict,
    /// What to do, in this order; none where nothing turns it, and `text` says why.
    pub edits: Vec<ExplainedEdit>,
    /// What to know beside the edits.
    pub text: Option<String>,
}

/// One edit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedEdit {
    /// `KIND NAMESPACE/NAME`.
    pub object: String,
    /// The field's path; empty: the object itself.
    pub field: String,
    /// `create`, `replace`, `append`, `remove` or `merge`.
    pub op: String,
    /// What is written, as in a manifest; null where something goes.
    pub value: Value,
    /// For people.
    pub text: String,
}

impl From<Change> for ExplainedChange {
    fn from(change: Change) -> Self {
        let edits = change.edits.iter().map(Into::into).collect();
        Self { verdict: change.becomes.into(), edits, text: change.text }
    }
}

impl From<&Edit> for ExplainedEdit {
    fn from(edit: &Edit) -> Self {
        Self {
            object: edit.object(),
            field: edit.field(),
            op: edit.op().to_owned(),
            value: edit.value(),
            text: edit.text(),
        }
    }
}
