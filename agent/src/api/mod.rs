//! What the agent and the verbs say to each other over `agent.sock`: a line of JSON with the request, then a
//! line with the answer, or one for each verdict. An error is `{"error": TEXT, "exit": CODE}`. No stable
//! interface: both ends are this binary.

pub mod client;
pub mod observed;
pub mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use observed::{Observed, ObservedVerdict, PodName};
use serde::{Deserialize, Serialize};

use crate::verbs::ask::{ExplainRequest, MatrixRequest};
use crate::world::{AskKernel, World};

/// Name of the socket in the run directory.
const SOCKET: &str = "agent.sock";

/// The socket of a run directory.
#[must_use]
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Request {
    /// One flow.
    Explain(ExplainRequest),
    /// All pairs.
    Matrix(MatrixRequest),
    /// All pairs, each with its explanation.
    Page(MatrixRequest),
    /// Verdicts as they fall, until one side goes.
    Observe,
}

/// First answer to [`Request::Observe`]: from here on nothing is missed unsaid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observing {
    /// The agent's node.
    pub observing: Option<String>,
}

/// An error on the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For people.
    pub error: String,
    /// [`crate::output::Exit::code`].
    pub exit: u8,
}

/// What the server asks of the agent.
pub trait Backend {
    /// What is in force.
    fn world(&self) -> Arc<World>;
    /// The loaded programs.
    fn kernel(&self) -> Option<&(dyn AskKernel + Sync)>;
    /// Verdicts from now on.
    fn subscribe(&self) -> tokio::sync::broadcast::Receiver<Arc<Observed>>;
}
