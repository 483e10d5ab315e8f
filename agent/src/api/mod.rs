//! What the agent and the verbs say to each other over `agent.sock`: a line of JSON with the request, then a
//! line with the answer, or one for each verdict. An error is `{"error": TEXT, "exit": CODE}`. No stable
//! interface: both ends are this binary.

pub mod client;
pub mod cni;
pub mod observed;
mod observing;
pub mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cni::{CniAnswer, CniRequest};
pub use observed::{Observed, ObservedVerdict, PodName, Told, Via};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::observe::Recorder;
use crate::observe::filter::Filter;
use crate::observe::fold::Folding;
use crate::verbs::ask::{ExplainRequest, MatrixRequest};
use crate::verbs::endpoints::{Endpoint, Scope};
use crate::verbs::policies::{PoliciesRequest, PolicyReport};
use crate::verbs::status::Status;
use crate::verbs::wait::WaitRequest;
use crate::waiting::Waiter;
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
    /// Verdicts that fell, and those that fall until one side goes.
    Observe(ObserveRequest),
    /// How the agent and its node do.
    Status,
    /// The pods that are enforced here.
    Endpoints(Scope),
    /// What each policy does here.
    Policies(PoliciesRequest),
    /// Until something is in force.
    Wait(WaitRequest),
    /// What the CNI plugin wants.
    Cni(CniRequest),
}

/// What `observe` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObserveRequest {
    /// Which verdicts.
    pub filter: Filter,
    /// How many lines of those that fell.
    pub last: u64,
    /// Whether to go on with those that fall.
    pub follow: bool,
    /// Whether repeats become one line.
    pub folding: Folding,
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
pub(crate) trait Backend {
    /// What is in force.
    fn world(&self) -> Arc<World>;
    /// The loaded programs.
    fn kernel(&self) -> Option<&(dyn AskKernel + Sync)>;
    /// How the agent and its node do.
    fn status(&self) -> Status;
    /// The pods that are enforced here.
    fn endpoints(&self, scope: &Scope) -> Vec<Endpoint>;
    /// What each policy does here.
    fn policies(&self, request: &PoliciesRequest) -> Result<Vec<PolicyReport>, Refusal>;
    /// The agent's node.
    fn node(&self) -> Option<String>;
    /// Waits for what the main loop says is in force.
    fn waiter(&self) -> Waiter;
    /// Verdicts.
    fn recorder(&self) -> &Recorder;
    /// Where what the CNI plugin wants goes; nowhere without a main loop.
    fn cni(&self) -> Option<&mpsc::Sender<CniAsk>>;
}

/// A plugin's request on its way to the main loop.
#[derive(Debug)]
pub struct CniAsk {
    /// What it wants.
    pub request: CniRequest,
    /// Where the answer goes: the last one counts, and one that is final is the last.
    pub answer: watch::Sender<CniAnswer>,
}
