//! What every verb's output has in common: exit codes, formats, colours. Knows no verb.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::ValueEnum;
use portcullis_common::event::Action;
use portcullis_policy::model::Problem;
use serde::{Deserialize, Serialize};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Fine,
    /// The finding is negative: denied, unhealthy, different.
    Negative,
    /// The question makes no sense: a bad argument, an unknown pod.
    Usage,
    /// The environment is not fit: no agent, no rights, an unreadable directory.
    Unfit,
}

impl Exit {
    /// The process's exit status.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Negative => 1,
            Self::Usage => 2,
            Self::Unfit => 3,
        }
    }

    /// From a status that came over the socket; what is none of ours is [`Exit::Unfit`].
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Fine,
            1 => Self::Negative,
            2 => Self::Usage,
            _ => Self::Unfit,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// To be read by people.
    #[default]
    Table,
    /// JSON and nothing else on stdout.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Allowed or denied, as JSON says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Allowed.
    Allow,
    /// Denied.
    Deny,
}

impl Verdict {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    /// The word that opens a line.
    #[must_use]
    pub const fn shout(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        }
    }
}

impl From<Action> for Verdict {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Deny => Self::Deny,
        }
    }
}

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// ANSI sequences.
    Ansi,
    /// None.
    Plain,
}

impl Colour {
    /// Colours for a terminal, unless the flag, `NO_COLOR` or `TERM=dumb` says otherwise.
    #[must_use]
    pub fn choose(no_color: bool) -> Self {
        let unwanted = no_color
            || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        if !unwanted && io::stdout().is_terminal() { Self::Ansi } else { Self::Plain }
    }

    /// Text in the verdict's colour.
    #[must_use]
    pub fn paint(self, verdict: Verdict, text: &str) -> String {
        match (self, verdict) {
            (Self::Plain, _) => text.to_owned(),
            (Self::Ansi, Verdict::Allow) => format!("\x1b[32m{text}\x1b[0m"),
            (Self::Ansi, Verdict::Deny) => format!("\x1b[31m{text}\x1b[0m"),
        }
    }
}

/// A result in the format asked for; the text of a table is made only where it is wanted.
pub fn render<T: Serialize>(value: &T, format: Format, table: impl FnOnce() -> String) -> io::Result<String> {
    match format {
        Format::Table => Ok(table()),
        Format::Json => serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(io::Error::from),
        Format::Yaml => serde_saphyr::to_string(value).map_err(io::Error::other),
    }
}

/// Writes to stdout. A reader that has gone (`| head`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A line for people that is no part of the result.
pub fn note(text: impl Display) {
    say("note", text);
}

/// What ends the program.
pub fn error(text: impl Display) {
    say("error", text);
}

/// What is wrong with the input.
pub fn problems(problems: &[Problem]) {
    for problem in problems {
        say(problem.severity.name(), problem);
    }
}

fn say(what: &str, text: impl Display) {
    // There is nobody left to tell if stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{what}: {text}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_interface() {
        let all = [Exit::Fine, Exit::Negative, Exit::Usage, Exit::Unfit];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3]);
        assert_eq!([0, 1, 2, 3].map(Exit::from_code), all);
        assert_eq!(Exit::from_code(101), Exit::Unfit);
    }

    #[test]
    fn yaml_keeps_rows_as_strings() {
        let rows = vec!["-..", "-", ".", "X-", "?", "~"];
        let text = render(&rows, Format::Yaml, String::new).unwrap();
        let back: Vec<String> = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, rows);
    }

    #[test]
    fn only_a_terminal_gets_colours() {
        assert_eq!(Colour::Plain.paint(Verdict::Deny, "DENY"), "DENY");
        assert_eq!(Colour::Ansi.paint(Verdict::Deny, "DENY"), "\x1b[31mDENY\x1b[0m");
        assert_eq!(Colour::choose(true), Colour::Plain);
    }
}
