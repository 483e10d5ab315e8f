//! Where objects come from.

pub mod dir;
pub mod kube;
pub mod read;

use std::fmt;
use std::path::{Path, PathBuf};

use dir::{DirSource, Signature};
use kube::{HostPolicyState, KubeSource, ServerView, WatchState};
use tokio::time::Instant;

/// What `--source` says for the API server. A directory of this name is `./kube`.
pub const KUBE: &str = "kube";

/// Which source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A directory of manifests.
    Directory(PathBuf),
    /// The API server.
    Kube {
        /// Of `--kubeconfig`; else the service account's, else what kubectl uses.
        kubeconfig: Option<PathBuf>,
    },
}

impl Choice {
    /// From `--source` and `--kubeconfig`.
    #[must_use]
    pub fn new(source: PathBuf, kubeconfig: Option<PathBuf>) -> Self {
        if source.as_os_str() == KUBE { Self::Kube { kubeconfig } } else { Self::Directory(source) }
    }

    /// The directory, of one.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(dir) => Some(dir),
            Self::Kube { .. } => None,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => write!(f, "{}", dir.display()),
            Self::Kube { .. } => f.write_str(KUBE),
        }
    }
}

/// A source that is followed.
#[derive(Debug)]
pub enum Source {
    /// Read anew when it changes.
    Dir(DirSource),
    /// Tells by itself.
    Kube(Box<KubeSource>),
}

impl Source {
    /// Returns when a source that tells by itself has something new; never for a directory, which others look at.
    pub async fn changed(&mut self) {
        match self {
            Self::Dir(_) => std::future::pending().await,
            Self::Kube(kube) => kube.changed().await,
        }
    }

    /// What a directory looks like from outside.
    #[must_use]
    pub fn signature(&self) -> Option<Signature> {
        match self {
            Self::Dir(dir) => dir.signature(),
            Self::Kube(_) => None,
        }
    }

    /// Files that nobody could ever read.
    #[must_use]
    pub fn never_read(&self) -> &[String] {
        match self {
            Self::Dir(dir) => dir.never_read(),
            Self::Kube(_) => &[],
        }
    }

    /// When what [`Source::changed`] returned for was heard first.
    #[must_use]
    pub fn noticed(&mut self) -> Option<Instant> {
        match self {
            Self::Dir(_) => None,
            Self::Kube(kube) => kube.noticed(),
        }
    }

    /// The API server, to be asked by itself.
    #[must_use]
    pub fn server(&self) -> Option<ServerView> {
        match self {
            Self::Dir(_) => None,
            Self::Kube(kube) => Some(kube.view()),
        }
    }

    /// Says what became of each HostPolicy on this node, for its status; a directory has nowhere to write it.
    pub fn tell_status(&mut self, states: Vec<HostPolicyState>) {
        match self {
            Self::Dir(_) => {}
            Self::Kube(kube) => kube.tell_status(states),
        }
    }

    /// How watches do; a directory has none.
    #[must_use]
    pub fn watches(&self) -> Vec<WatchState> {
        match self {
            Self::Dir(_) => Vec::new(),
            Self::Kube(kube) => kube.watches(),
        }
    }
}
