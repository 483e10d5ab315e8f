//! The verbs: each takes what the command line said, asks the agent or a directory, and prints.

pub mod ask;
pub mod cleanup;
pub mod cni;
pub mod completions;
pub mod diff;
pub mod endpoints;
pub mod ends;
pub mod explain;
pub mod host_firewall;
pub mod lint;
pub mod man;
pub mod matrix;
pub mod observe;
pub mod offline;
pub mod policies;
pub mod service;
pub mod status;
mod table;
pub mod wait;

use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::unistd::geteuid;
use portcullis_policy::model::HostNetworkPods;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::api::Request;
use crate::api::client::{self, ClientError};
use crate::bpf::probe::Private;
use crate::cni::install::InstallError;
use crate::firewall::HostError;
use crate::output::{self, Colour, Exit, Format};
use crate::source::read::ReadError;
use crate::world::{AskKernel, World};
use ask::{AskError, ExplainRequest, Judge, MatrixRequest, Reply, Sent};
use offline::{OfflineError, offline_on};

/// Why a verb failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The question.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The directory.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The socket.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// `--diff` with `-o html`.
    #[error("--diff has no page: use -o table, json or yaml, or leave --diff out")]
    DiffPage,
    /// `--source kube` without a node.
    #[error(
        "--source kube needs this node's name as the API server knows it: give --node-name, or PORTCULLIS_NODE_NAME"
    )]
    Nameless,
    /// The host firewall's own verb.
    #[error(transparent)]
    HostFirewall(#[from] host_firewall::ActError),
    /// Flags of the host firewall.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The daemon ended.
    #[error("agent: {0}")]
    Agent(String),
    /// Not everything of ours could be found or taken.
    #[error("cleanup: {0}: run as root on the node, with the --run-dir and --bpffs of the agent")]
    Cleanup(String),
    /// The CNI plugin or its configuration.
    #[error(transparent)]
    Cni(#[from] InstallError),
    /// An agent would put back what is taken away.
    #[error(
        "cni remove: an agent answers on {}: stop it first, it would put the configuration back",
        .0.display()
    )]
    Followed(PathBuf),
    /// The directory to be checked.
    #[error(transparent)]
    Lint(ReadError),
    /// `man` was asked for the page of no verb.
    #[error("no verb is called `{verb}`: name one of {known}")]
    UnknownVerb {
        /// As asked.
        verb: String,
        /// All of them.
        known: String,
    },
    /// Manual pages.
    #[error("write manual pages to {}: {cause}: name a directory that may be written to with --out", dir.display())]
    WritePages {
        /// Where.
        dir: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Signals, threads.
    #[error("{0}")]
    System(io::Error),
    /// Stdout.
    #[error("write the result: {0}: make room where stdout goes")]
    Output(io::Error),
}

impl Failure {
    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Ask(error) => error.exit(),
            Self::Offline(error) => error.exit(),
            Self::Client(error) => error.exit(),
            Self::UnknownVerb { .. } | Self::DiffPage | Self::Nameless | Self::Host(_) => Exit::Usage,
            Self::Cni(_)
            | Self::HostFirewall(_)
            | Self::Followed(_)
            | Self::Lint(_)
            | Self::WritePages { .. }
            | Self::Agent(_)
            | Self::Cleanup(_)
            | Self::System(_)
            | Self::Output(_) => Exit::Unfit,
        }
    }
}

/// Where answers come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// The running agent.
    Agent {
        /// Where its socket is.
        run_dir: PathBuf,
    },
    /// Manifests.
    Directory {
        /// Where they are.
        dir: PathBuf,
        /// This node's name.
        node: Option<String>,
        /// Where pods without an address get one.
        pod_cidrs: Vec<IpNet>,
        /// Where the node has a host firewall, what selects its hostNetwork pods beside HostPolicies.
        hosts: Option<HostNetworkPods>,
    },
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Face {
    /// `-o`.
    pub format: Format,
    /// Of tables.
    pub colour: Colour,
}

impl Face {
    /// Prints a result, as a table by the function.
    pub fn show<T: Serialize>(self, result: &T, table: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = output::render(result, self.format, table).map_err(Failure::Output)?;
        output::print(&text).map_err(Failure::Output)
    }
}

/// `explain`.
pub fn explain(from: &From, request: ExplainRequest, face: Face) -> Result<Exit, Failure> {
    // Whoever would answer: only a Service says itself what is sent.
    if !service::may_be_named(&request.to) && !matches!(request.sent, Some(Sent::Traffic(_))) {
        return Err(AskError::NoTraffic(request.to).into());
    }
    let sender = request.from.clone();
    let Reply { result, notes } = match from {
        From::Agent { run_dir } => live(run_dir, &Request::Explain(request))?,
        From::Directory { dir, node, pod_cidrs, hosts } => {
            let world = read(dir, node.as_deref(), pod_cidrs, *hosts)?;
            let kernel = match private(&world) {
                Ok(kernel) => Some(kernel),
                Err(why) => {
                    output::note(format_args!("the kernel is not asked: {why}"));
                    None
                }
            };
            explain::explain(&world, kernel.as_ref().map(|k| k as &dyn AskKernel), &request)?
        }
    };
    notes.iter().for_each(output::note);
    face.show(&result, || result.table(&sender, face.colour))?;
    match result.agreement() {
        explain::Agreement::Agrees => {}
        explain::Agreement::Disagrees => output::error(
            "the loaded program and the classifier disagree on this packet: a defect of portcullis; report it \
             with the manifests and this output in JSON",
        ),
    }
    Ok(result.exit())
}

/// `matrix`.
pub fn matrix(from: &From, request: MatrixRequest, face: Face) -> Result<Exit, Failure> {
    let Reply { result, notes } = match from {
        From::Agent { run_dir } => live(run_dir, &Request::Matrix(request))?,
        From::Directory { dir, node, pod_cidrs, hosts } => {
            let world = read(dir, node.as_deref(), pod_cidrs, *hosts)?;
            let kernel = loaded(&world, request.judge)?;
            matrix::matrix(&world, kernel.as_ref().map(|k| k as &dyn AskKernel), &request)?
        }
    };
    notes.iter().for_each(output::note);
    face.show(&result, || matrix::table(&result, face.colour))?;
    Ok(Exit::Fine)
}

/// `matrix -o html`.
pub fn page(from: &From, request: MatrixRequest) -> Result<Exit, Failure> {
    let Reply { result, notes } = match from {
        From::Agent { run_dir } => live(run_dir, &Request::Page(request))?,
        From::Directory { dir, node, pod_cidrs, hosts } => {
            let world = read(dir, node.as_deref(), pod_cidrs, *hosts)?;
            let kernel = loaded(&world, request.judge)?;
            matrix::page::page(&world, kernel.as_ref().map(|k| k as &dyn AskKernel), &request)?
        }
    };
    notes.iter().for_each(output::note);
    let text = matrix::page::html(&result).map_err(Failure::Output)?;
    output::print(&text).map_err(Failure::Output)?;
    Ok(Exit::Fine)
}

/// The program of a directory's own, where cells are the kernel's.
fn loaded(world: &World, judge: Judge) -> Result<Option<Private>, AskError> {
    match judge {
        Judge::Userspace => Ok(None),
        Judge::Kernel => private(world).map(Some).map_err(AskError::Kernel),
    }
}

fn live<T: DeserializeOwned>(run_dir: &Path, request: &Request) -> Result<Reply<T>, Failure> {
    Ok(client::ask(run_dir, request)?.answer()?)
}

fn read(
    dir: &Path,
    node: Option<&str>,
    pod_cidrs: &[IpNet],
    hosts: Option<HostNetworkPods>,
) -> Result<World, Failure> {
    let world = offline_on(dir, node, pod_cidrs, hosts)?;
    output::problems(&world.problems);
    Ok(world)
}

/// A copy of the programs of our own, attached to nothing.
fn private(world: &World) -> Result<Private, String> {
    if !geteuid().is_root() {
        return Err("loading its programs needs root".to_owned());
    }
    Private::load(world).map_err(|error| format!("{error:#}"))
}
