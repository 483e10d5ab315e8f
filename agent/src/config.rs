//! `--config`: the flags of `agent` from a file. Owns the order file < environment < flags and what may stand in a
//! file; it knows no flag by name, for keys, types and values are those of the command line itself: a flag that is
//! added there can be configured at once.
//!
//! A file's values become the defaults of a second reading of the command line, so that clap decides what wins.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use portcullis_policy::convert::printable;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use thiserror::Error;

use crate::output::Exit;

/// The verb that can be configured.
const VERB: &str = "agent";
/// Its flag that names the file.
const CONFIG: &str = "config";
/// Its flag that shows what is in force.
const PRINT: &str = "print_config";
/// The largest file that is read: every flag there is fits many times.
const MAX_BYTES: u64 = 1 << 20;

/// What is wrong with a configuration file.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("--config {}: cannot be read ({cause}): name a file that exists and may be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It is no mapping of keys.
    #[error("{at}: is no configuration ({message}): write a mapping of keys to values, in YAML")]
    Parse {
        /// File and line.
        at: Place,
        /// What the parser says.
        message: String,
    },
    /// A key that is no flag.
    #[error("{at}: {key} is unknown: mend its spelling or take it out (known are {known})")]
    Unknown {
        /// File and line.
        at: Place,
        /// The key.
        key: String,
        /// All keys.
        known: String,
    },
    /// A value of another type.
    #[error("{at}: {key} is {found} and must be {wanted}: write {wanted}")]
    Type {
        /// File and line.
        at: Place,
        /// The key.
        key: String,
        /// What stands there.
        found: &'static str,
        /// What must.
        wanted: String,
    },
    /// A value that the flag does not take.
    #[error("{at}: {key}: {message}")]
    Value {
        /// File and line.
        at: Place,
        /// The key.
        key: String,
        /// What is wrong, and what to write.
        message: String,
    },
}

impl ConfigError {
    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } => Exit::Unfit,
            Self::Parse { .. } | Self::Unknown { .. } | Self::Type { .. } | Self::Value { .. } => Exit::Usage,
        }
    }
}

/// Where something stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = printable(&self.path.to_string_lossy());
        if self.line == 0 { f.write_str(&path) } else { write!(f, "{path}:{}", self.line) }
    }
}

/// A command line that was read, with its file if it names one.
#[derive(Debug)]
pub struct Read {
    /// What the command line, the environment and the file say.
    pub matches: ArgMatches,
    /// What `--print-config` prints, where it is asked for.
    pub shown: Option<String>,
}

/// Reads a command line. A usage error ends the process, as clap does.
pub fn read(command: Command, words: &[OsString]) -> Result<Read, ConfigError> {
    // What the file may give must not be missed yet.
    let asked = relaxed(command.clone()).try_get_matches_from(words).ok();
    let asked = asked.as_ref().and_then(|matches| matches.subcommand_matches(VERB));
    let path = asked.and_then(|matches| matches.get_one::<PathBuf>(CONFIG)).cloned();
    let print = asked.is_some_and(|matches| matches.get_flag(PRINT));
    let (command, from_file) = match path {
        None => (command, BTreeSet::new()),
        Some(path) => with_file(command, &path)?,
    };
    let command = if print { relaxed(command) } else { command };
    let matches = command.clone().get_matches_from(words);
    let shown = match (print, matches.subcommand_matches(VERB)) {
        (true, Some(matches)) => Some(show(&command, matches, &from_file)),
        (false, _) | (_, None) => None,
    };
    Ok(Read { matches, shown })
}

/// The command with no flag of the verb required.
fn relaxed(command: Command) -> Command {
    command.mut_subcommand(VERB, |verb| verb.mut_args(|arg| arg.required(false)))
}

/// The command with a file's values as defaults, and the flags that have one.
fn with_file(command: Command, path: &Path) -> Result<(Command, BTreeSet<String>), ConfigError> {
    let text = fs::metadata(path)
        .and_then(|facts| {
            if facts.len() > MAX_BYTES {
                return Err(io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
            }
            fs::read_to_string(path)
        })
        .map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
    let at = |line| Place { path: path.to_owned(), line };
    let entries = parse(&text).map_err(|(line, message)| ConfigError::Parse { at: at(line), message })?;
    let flags = flags(&command);
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Entry { line, key, value } in entries {
        let Some(flag) = flags.get(&key) else {
            let known: Vec<&str> = flags.keys().map(String::as_str).collect();
            let key = printable(&key);
            return Err(ConfigError::Unknown { at: at(line), key, known: known.join(", ") });
        };
        let texts = Kind::of(flag).texts(&value).map_err(|wanted| ConfigError::Type {
            at: at(line),
            key: key.clone(),
            found: value.name(),
            wanted,
        })?;
        for text in &texts {
            accept(flag, text).map_err(|message| ConfigError::Value {
                at: at(line),
                key: key.clone(),
                message,
            })?;
        }
        values.insert(flag.get_id().to_string(), texts);
    }
    let from_file = values.keys().cloned().collect();
    let command = command.mut_subcommand(VERB, |verb| {
        values
            .into_iter()
            .fold(verb, |verb, (id, texts)| verb.mut_arg(id, |arg| arg.required(false).default_values(texts)))
    });
    Ok((command, from_file))
}

/// The verb's flags by their keys.
fn flags(command: &Command) -> BTreeMap<String, Arg> {
    let Some(verb) = command.find_subcommand(VERB) else { return BTreeMap::new() };
    verb.get_arguments()
        .filter(|arg| !matches!(arg.get_id().as_str(), CONFIG | PRINT | "help" | "version"))
        .filter_map(|arg| Some((camel_case(arg.get_long()?), arg.clone())))
        .collect()
}

/// `pod-cidr` is `podCidr` in a file.
fn camel_case(flag: &str) -> String {
    let mut words = flag.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |key, word| {
        let mut letters = word.chars();
        let head = letters.next().map(|letter| letter.to_ascii_uppercase());
        key + &head.into_iter().chain(letters).collect::<String>()
    })
}

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Switch,
    Number,
    Text,
    Texts,
}

impl Kind {
    fn of(flag: &Arg) -> Self {
        let parser = flag.get_value_parser().type_id();
        let numbers = [TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()];
        if matches!(flag.get_action(), ArgAction::SetTrue | ArgAction::SetFalse) {
            Self::Switch
        } else if matches!(flag.get_action(), ArgAction::Append) {
            Self::Texts
        } else if numbers.iter().any(|number| parser == *number) {
            Self::Number
        } else {
            Self::Text
        }
    }

    /// The value as the words of a command line; else what should stand there.
    fn texts(self, value: &Scalar) -> Result<Vec<String>, String> {
        match (self, value) {
            (Self::Switch, Scalar::Bool(value)) => Ok(vec![value.to_string()]),
            (Self::Number, Scalar::Number(number)) => Ok(vec![number.clone()]),
            (Self::Text | Self::Texts, Scalar::Text(text)) => Ok(vec![text.clone()]),
            (Self::Texts, Scalar::List(entries)) => {
                let text = |entry: &Scalar| match entry {
                    Scalar::Text(text) => Ok(text.clone()),
                    Scalar::Null
                    | Scalar::Bool(_)
                    | Scalar::Number(_)
                    | Scalar::List(_)
                    | Scalar::Mapping => Err("a list of strings".to_owned()),
                };
                entries.iter().map(text).collect()
            }
            (Self::Switch, _) => Err("true or false".to_owned()),
            (Self::Number, _) => Err("a number".to_owned()),
            (Self::Text, _) => Err("a string".to_owned()),
            (Self::Texts, _) => Err("a string or a list of strings".to_owned()),
        }
    }
}

/// Lets the flag's own parser read a value.
fn accept(flag: &Arg, text: &str) -> Result<(), String> {
    let Some(long) = flag.get_long() else { return Ok(()) };
    if matches!(flag.get_action(), ArgAction::SetTrue | ArgAction::SetFalse) {
        return Ok(());
    }
    let alone =
        Command::new(VERB).no_binary_name(true).disable_help_flag(true).arg(flag.clone().required(false));
    let Err(error) = alone.try_get_matches_from([format!("--{long}={text}")]) else { return Ok(()) };
    let quoted = format!("\"{}\"", printable(text));
    let possible = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(words)) if error.kind() == ErrorKind::InvalidValue => words.join(", "),
        Some(_) | None => String::new(),
    };
    if !possible.is_empty() {
        return Err(format!("{quoted} is not known: write one of {possible}"));
    }
    let cause =
        std::error::Error::source(&error).map_or_else(|| error.kind().to_string(), ToString::to_string);
    Err(format!("{quoted} cannot be used ({cause}): write what --{long} takes"))
}

/// A key of the file.
struct Entry {
    line: u64,
    key: String,
    value: Scalar,
}

/// A value of the file.
#[derive(Clone, Debug, PartialEq)]
enum Scalar {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Scalar>),
    Mapping,
}

impl Scalar {
    fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Mapping => "a mapping",
        }
    }
}

/// The keys of a file in their order; the parser refuses one that stands twice. An empty file has none.
fn parse(text: &str) -> Result<Vec<Entry>, (u64, String)> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 8, max_aliases: 0, max_documents: 1 },
        strict_booleans: true,
        emit_comments: false,
        with_snippet: false,
    };
    let documents: Vec<Entries> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(0, |location| location.line());
            (line, printable(error.to_string().lines().next().unwrap_or_default()))
        })?;
    Ok(documents.into_iter().next().map(|entries| entries.0).unwrap_or_default())
}

struct Entries(Vec<Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of keys to values")
    }

    fn visit_unit<E>(self) -> Result<Entries, E> {
        Ok(Entries(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Entries, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some((key, value)) = access.next_entry::<Spanned<String>, Scalar>()? {
            let line = key.referenced.line();
            entries.push(Entry { line, key: key.value, value });
        }
        Ok(Entries(entries))
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_none<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Scalar, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
        Ok(Scalar::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Scalar, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_element()? {
            entries.push(entry);
        }
        Ok(Scalar::List(entries))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Scalar, A::Error> {
        while access.next_entry::<String, Scalar>()?.is_some() {}
        Ok(Scalar::Mapping)
    }
}

/// Every flag with its value and where that is from, as a file that could be read again.
fn show(command: &Command, matches: &ArgMatches, from_file: &BTreeSet<String>) -> String {
    let mut lines = Vec::new();
    for (key, flag) in flags(command) {
        let id = flag.get_id().as_str();
        let from = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => "environment",
            Some(_) if from_file.contains(id) => "file",
            Some(_) => "default",
            None => {
                lines.push((format!("# {key}:"), "not set"));
                continue;
            }
        };
        let raw = matches.get_raw(id).into_iter().flatten();
        let kind = Kind::of(&flag);
        let values: Vec<String> = raw.map(|value| scalar(kind, &value.to_string_lossy())).collect();
        let value = match (kind, &values[..]) {
            (Kind::Texts, all) => format!("[{}]", all.join(", ")),
            (Kind::Switch | Kind::Number | Kind::Text, all) => all.join(" "),
        };
        lines.push((format!("{key}: {value}"), from));
    }
    let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or_default();
    lines.iter().fold(String::new(), |text, (line, from)| text + &format!("{line:width$}  # {from}\n"))
}

/// A value as YAML: quoted where it would be read as something else.
fn scalar(kind: Kind, text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let starts_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '.');
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", ".inf", ".nan"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word));
    let number = text.parse::<f64>().is_ok();
    match kind {
        Kind::Switch | Kind::Number => text.to_owned(),
        Kind::Text | Kind::Texts if starts_plain && text.chars().all(plain) && !word && !number => {
            text.to_owned()
        }
        Kind::Text | Kind::Texts => format!("{text:?}"),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
