//! What a question is answered from: the objects, the tables compiled from them, and a kernel to ask. The
//! verbs that answer (`explain`, `matrix`) see this and nothing else, whether it comes from a directory or
//! from the running agent.

use std::collections::BTreeSet;

use portcullis_common::event::{Action, Reason};
use portcullis_policy::answer::Question;
use portcullis_policy::desired::Desired;
use portcullis_policy::model::{Cluster, ObjectKey, Problem};

/// Objects and their tables at one moment.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The objects.
    pub cluster: Cluster,
    /// Tables in which every live pod is an endpoint.
    pub desired: Desired,
    /// What is wrong with the input.
    pub problems: Vec<Problem>,
    /// This node's name, where it is known.
    pub node: Option<String>,
    /// True if the node drops nothing.
    pub audit: bool,
    /// The pods that the agent enforces; `None` offline, where every pod is judged.
    pub local: Option<BTreeSet<ObjectKey>>,
}

/// What the loaded program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelAnswer {
    /// Allowed or denied, as if everything were enforced.
    pub action: Action,
    /// True if it is denied and would pass.
    pub audited: bool,
    /// Why.
    pub reason: Reason,
    /// Number of the rule that decided in the asked tables, 0 for none.
    pub counter: u32,
}

/// A loaded program that can be asked.
pub trait AskKernel {
    /// Runs a question's packet through the program at the pod's endpoint; `None` where the pod is none of
    /// its endpoints.
    fn ask(&self, question: &Question) -> anyhow::Result<Option<KernelAnswer>>;
}
