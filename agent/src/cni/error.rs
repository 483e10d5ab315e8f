//! Errors as the CNI specification has them: a number that runtimes know, a message and details, on stdout.

use serde::Serialize;

/// Numbers of the specification, "Error codes" (<https://www.cni.dev/docs/spec/>). From 100 on they are the plugin's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration is of a version that this plugin does not speak.
    IncompatibleVersion,
    /// A variable of the environment is missing or cannot be read.
    InvalidEnvironment,
    /// A device, a namespace or a file cannot be read.
    InputOutput,
    /// What came on stdin is no JSON of the kind.
    Undecodable,
    /// The configuration asks for something that cannot be.
    InvalidConfiguration,
    /// It may be otherwise in a moment.
    TryAgainLater,
    /// `STATUS`: pods cannot be added now.
    Unavailable,
    /// Ours: the interface cannot be enforced at all.
    NotEnforceable,
    /// Ours, of `CHECK`: the pod is not enforced.
    NotEnforced,
}

impl Code {
    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::InvalidEnvironment => 4,
            Self::InputOutput => 5,
            Self::Undecodable => 6,
            Self::InvalidConfiguration => 7,
            Self::TryAgainLater => 11,
            Self::Unavailable => 50,
            Self::NotEnforceable => 100,
            Self::NotEnforced => 101,
        }
    }
}

/// Why the plugin fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// The number.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(rename = "cniVersion")]
    version: &'a str,
    code: u32,
    msg: &'a str,
    details: &'a str,
}

impl CniError {
    /// With its remedy.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: remedy.into() }
    }

    /// As runtimes read it. Most of them show the message alone, so it ends with the remedy.
    #[must_use]
    pub fn json(&self, version: &str) -> String {
        let msg = format!("portcullis: {}: {}", self.message, self.remedy);
        let shown = Shown { version, code: self.code.number(), msg: &msg, details: &self.remedy };
        // Strings and a number: nothing of it can fail.
        serde_json::to_string(&shown).unwrap_or_default()
    }
}
