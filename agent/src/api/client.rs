//! The verbs' end of the socket.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::{Refusal, Request, socket};
use crate::output::Exit;

/// The longest answer: a matrix of 5,000 pods has 25 MB a port.
const MAX_ANSWER: u64 = 1 << 30;

/// How long an agent may take to answer: a large matrix by the kernel takes minutes.
const ANSWER_TIME: Duration = Duration::from_mins(10);

/// Why the agent gave no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error(
        "no agent answers on {}: start one with `portcullis agent`, or ask files with --source DIR", .0.display()
    )]
    NoAgent(PathBuf),
    /// Somebody is, and not for this user.
    #[error("no permission to speak to the agent on {}: run as root", .0.display())]
    NoPermission(PathBuf),
    /// It did not answer to the end.
    #[error("ask the agent on {}: {cause}: look at the agent's log", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        cause: io::Error,
    },
    /// It answered something else.
    #[error("the agent on {} is not of this version ({cause}): use its own binary", path.display())]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// What was not understood.
        cause: serde_json::Error,
    },
    /// It refused, with its reason.
    #[error("{error}")]
    Refused {
        /// For people.
        error: String,
        /// How the program ends.
        exit: Exit,
    },
}

impl ClientError {
    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Refused { exit, .. } => *exit,
            Self::NoAgent(_) | Self::NoPermission(_) | Self::Io { .. } | Self::Garbled { .. } => Exit::Unfit,
        }
    }
}

/// A request that was sent.
#[derive(Debug)]
pub struct Asked {
    path: PathBuf,
    reader: BufReader<UnixStream>,
}

/// Sends a request to the agent of a run directory.
pub fn ask(run_dir: &Path, request: &Request) -> Result<Asked, ClientError> {
    let path = socket(run_dir);
    // The kinds are std's and more may come; none of the others has a remedy of its own.
    #[allow(clippy::wildcard_enum_match_arm)]
    let mut stream = UnixStream::connect(&path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
            ClientError::NoAgent(path.clone())
        }
        io::ErrorKind::PermissionDenied => ClientError::NoPermission(path.clone()),
        _ => ClientError::Io { path: path.clone(), cause },
    })?;
    let failed = |cause| ClientError::Io { path: path.clone(), cause };
    let mut line =
        serde_json::to_vec(request).map_err(|cause| ClientError::Garbled { path: path.clone(), cause })?;
    line.push(b'\n');
    stream.set_read_timeout(Some(ANSWER_TIME)).map_err(failed)?;
    stream.write_all(&line).map_err(failed)?;
    Ok(Asked { path, reader: BufReader::new(stream) })
}

impl Asked {
    /// The next answer; `None` when the agent closed the connection.
    // No iterator: each answer may be of another type, and an error does not end them.
    #[allow(clippy::should_implement_trait)]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(MAX_ANSWER).read_until(b'\n', &mut line);
        if read.map_err(|cause| ClientError::Io { path: self.path.clone(), cause })? == 0 {
            return Ok(None);
        }
        let garbled = |cause| ClientError::Garbled { path: self.path.clone(), cause };
        let value: Value = serde_json::from_slice(&line).map_err(garbled)?;
        if value.get("error").is_some() {
            let Refusal { error, exit } = serde_json::from_value(value).map_err(garbled)?;
            return Err(ClientError::Refused { error, exit: Exit::from_code(exit) });
        }
        serde_json::from_value(value).map(Some).map_err(garbled)
    }

    /// The only answer.
    pub fn answer<T: DeserializeOwned>(mut self) -> Result<T, ClientError> {
        let closed = ClientError::Io { path: self.path.clone(), cause: io::ErrorKind::UnexpectedEof.into() };
        self.next()?.ok_or(closed)
    }

    /// From here on silence is no failure.
    pub fn wait_for_ever(&self) -> Result<(), ClientError> {
        let set = self.reader.get_ref().set_read_timeout(None);
        set.map_err(|cause| ClientError::Io { path: self.path.clone(), cause })
    }
}
