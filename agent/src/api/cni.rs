//! What the CNI plugin and the agent say to each other. The plugin may be older than the agent: a field is added with a
//! default, or the plugin of a node that is being upgraded is not understood.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::attach::Mac;

/// The longest that the agent lets a plugin wait.
pub const LONGEST_PATIENCE_MS: u64 = 120_000;

/// A container's interface, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`: the sandbox.
    #[serde(rename = "containerID")]
    pub container: String,
    /// `CNI_IFNAME`: the interface in the sandbox.
    pub ifname: String,
}

/// An interface that a CNI made for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The network's name.
    pub network: String,
    /// Whose it is.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its UID, where the runtime says it.
    pub uid: Option<String>,
    /// Index of the host-side interface.
    pub interface: u32,
    /// Its name.
    pub name: String,
    /// The pod's hardware address.
    pub station: Option<Mac>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// What a plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum CniRequest {
    /// Close the interface at once, and answer when the pod is enforced.
    Hold {
        /// The interface.
        made: Box<Made>,
        /// How long the plugin waits, in milliseconds.
        patience_ms: u64,
    },
    /// Is the pod behind this interface enforced?
    Check(Attachment),
    /// The interface goes.
    Release(Attachment),
    /// Of this network there are no others.
    Retain {
        /// The network's name.
        network: String,
        /// Those that there are.
        valid: Vec<Attachment>,
    },
    /// Could a pod be enforced?
    Ready,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum CniAnswer {
    /// It is so: enforced, forgotten, ready.
    Done,
    /// Not yet.
    Waiting {
        /// For what, and what to do.
        why: String,
    },
    /// And never will be.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

impl CniAnswer {
    /// Not yet.
    #[must_use]
    pub fn waiting(why: impl Into<String>) -> Self {
        Self::Waiting { why: why.into() }
    }

    /// And never.
    #[must_use]
    pub fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into() }
    }
}
