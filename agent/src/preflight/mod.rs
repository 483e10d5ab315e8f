//! `preflight`: whether a node is fit, a line for each thing that the agent needs, and who else is there. Facts are
//! gathered in [`facts`], [`neighbours`] and [`marks`], and judged here, there and in [`judge`] without looking at anything: so that
//! every verdict can be tested. Nothing on the node is changed.

pub mod facts;
pub mod judge;
pub mod marks;
pub mod neighbours;

use std::fmt::Write as _;
use std::path::Path;

use portcullis_policy::convert::printable;
use serde::{Deserialize, Serialize};

use crate::attach::{Hook, HookChoice};
use crate::bpf::Pins;
use crate::bpf::load::kernel_release;
use crate::mark::MarkMask;
use crate::output::{Colour, Exit};
use crate::verbs::{Face, Failure};
use marks::Colliding;
use neighbours::{Neighbours, Thoroughness};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As needed.
    Ok,
    /// Worth knowing.
    Note,
    /// The agent runs; something does not work as one may expect.
    Warning,
    /// The agent cannot run, or would not enforce.
    Failed,
}

impl State {
    const fn sign(self) -> &'static str {
        match self {
            Self::Ok => "✓",
            Self::Note => "-",
            Self::Warning => "!",
            Self::Failed => "✗",
        }
    }

    /// The sign in its colour.
    fn painted(self, colour: Colour) -> String {
        let code = match self {
            Self::Ok => "32",
            Self::Note => "2",
            Self::Warning => "33",
            Self::Failed => "31",
        };
        match colour {
            Colour::Plain => self.sign().to_owned(),
            Colour::Ansi => format!("\x1b[{code}m{}\x1b[0m", self.sign()),
        }
    }
}

/// How many rules a table shows of a line.
const LISTED: usize = 10;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, a word.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was found.
    pub finding: String,
    /// What to do; `None` where there is nothing to do.
    pub remedy: Option<String>,
    /// The rules that the finding is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Colliding>,
}

impl Check {
    fn new(name: &str, state: State, finding: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            state,
            finding: printable(&finding.into()),
            remedy: None,
            rules: Vec::new(),
        }
    }

    fn ok(name: &str, finding: impl Into<String>) -> Self {
        Self::new(name, State::Ok, finding)
    }

    fn note(name: &str, finding: impl Into<String>) -> Self {
        Self::new(name, State::Note, finding)
    }

    fn warning(name: &str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::new(name, State::Warning, finding) }
    }

    fn failed(name: &str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::new(name, State::Failed, finding) }
    }

    /// For a line of the log or an error.
    #[must_use]
    pub fn sentence(&self) -> String {
        match &self.remedy {
            None => format!("{}: {}", self.name, self.finding),
            Some(remedy) => format!("{}: {}: {remedy}", self.name, self.finding),
        }
    }
}

/// What `preflight` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// Whether the agent can run and would enforce.
    pub fit: bool,
    /// In the order in which they are looked at.
    pub checks: Vec<Check>,
}

impl Preflight {
    fn new(checks: Vec<Check>) -> Self {
        Self { fit: checks.iter().all(|check| check.state != State::Failed), checks }
    }

    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        if self.fit { Exit::Fine } else { Exit::Unfit }
    }
}

/// Looks at the node.
#[must_use]
pub fn preflight(choice: HookChoice, bpffs: &Path, mask: MarkMask) -> Preflight {
    let facts = facts::Facts::gather(bpffs);
    let neighbours = Neighbours::gather(bpffs, Thoroughness::Full);
    let hook = facts.release.as_ref().ok().and_then(|release| choice.resolve(*release).ok());
    let mut checks = judge::node(&facts, choice);
    checks.extend(marks::judge(&marks::look(mask), mask));
    match neighbours {
        Ok(neighbours) => checks.extend(judge::neighbours(&neighbours, hook.unwrap_or(Hook::Clsact))),
        Err(why) => checks.push(Check::warning(
            "neighbours",
            format!("who else is on this node's interfaces cannot be seen: {why}"),
            "run as root in the node's network namespace",
        )),
    }
    Preflight::new(checks)
}

/// Looks and prints.
pub fn run(choice: HookChoice, bpffs: &Path, mask: MarkMask, face: Face) -> Result<Exit, Failure> {
    let result = preflight(choice, bpffs, mask);
    face.show(&result, || table(&result, face.colour))?;
    Ok(result.exit())
}

/// What a starting agent does about its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regard {
    /// It does not start beside one that packets follow around its programs.
    Refuse,
    /// It says so and starts.
    Force,
}

/// Logs who else is on this node; refuses, with a remedy for each, what sends packets around our programs.
pub fn admit(choice: HookChoice, bpffs: &Path, regard: Regard) -> Result<(), String> {
    // What is wrong with the kernel or the rights is told by whoever needs them next.
    let Ok(hook) = kernel_release().and_then(|release| Ok(choice.resolve(release)?)) else { return Ok(()) };
    let neighbours = match Neighbours::gather(bpffs, Thoroughness::Start) {
        Ok(neighbours) => neighbours,
        Err(why) => {
            tracing::warn!("who else is on this node's interfaces cannot be seen: {why}");
            return Ok(());
        }
    };
    let mut refused = Vec::new();
    for check in judge::neighbours(&neighbours, hook) {
        match (check.state, regard) {
            (State::Ok, _) => {}
            (State::Note, _) => tracing::info!("{}", check.sentence()),
            (State::Warning, _) | (State::Failed, Regard::Force) => tracing::warn!("{}", check.sentence()),
            (State::Failed, Regard::Refuse) => refused.push(check.sentence()),
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) }
}

/// Where this version's pins of links are, for telling ours from others'.
fn links(bpffs: &Path) -> std::path::PathBuf {
    Pins::new(bpffs).links()
}

fn table(result: &Preflight, colour: Colour) -> String {
    let width = result.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let indent = " ".repeat(width + 4);
    // Writing to a string cannot fail.
    let mut text = String::new();
    for check in &result.checks {
        let sign = check.state.painted(colour);
        let _ = writeln!(text, "{sign} {:width$}  {}", check.name, check.finding);
        if let Some(remedy) = &check.remedy {
            let _ = writeln!(text, "{indent}{remedy}");
        }
        for rule in check.rules.iter().take(LISTED) {
            let _ = writeln!(text, "{indent}{rule}");
        }
        if check.rules.len() > LISTED {
            let _ = writeln!(text, "{indent}and more, which -o json lists");
        }
    }
    text += if result.fit { "fit\n" } else { "not fit\n" };
    text
}
