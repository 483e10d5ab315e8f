//! `cargo xtask build`: the agent, which carries the eBPF object, and the lab.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::setup::{self, Group};
use crate::sh;
use crate::workspace::Workspace;

/// Packages and the binaries that they bring.
const AGENT: &str = "portcullis-agent";
const AGENT_BINARY: &str = "portcullis";
const LAB: &str = "portcullis-lab";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimised; the default
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// The dev profile instead
    #[arg(long)]
    debug: bool,
}

/// The binaries of the release profile.
pub(crate) struct Built {
    /// `portcullis`.
    pub(crate) agent: PathBuf,
    /// `portcullis-lab`.
    pub(crate) lab: PathBuf,
}

impl Built {
    fn of(workspace: &Workspace) -> Self {
        Self { agent: workspace.binary(AGENT_BINARY), lab: workspace.binary(LAB) }
    }
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    if args.debug && !args.release {
        setup::ensure(&[Group::Ebpf])?;
        sh::run(sh::cargo().args(["build", "--package", AGENT, "--package", LAB]))?;
        println!("{}", Workspace::load()?.target_dir().join("debug").join(AGENT_BINARY).display());
    } else {
        println!("{}", release(&Workspace::load()?)?.agent.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds agent and lab for release.
pub(crate) fn release(workspace: &Workspace) -> Result<Built> {
    setup::ensure(&[Group::Ebpf])?;
    sh::run(sh::cargo().args(["build", "--release", "--package", AGENT, "--package", LAB]))?;
    let built = Built::of(workspace);
    for path in [&built.agent, &built.lab] {
        ensure!(path.exists(), "cargo built no {}", path.display());
    }
    Ok(built)
}

/// What is built already, else builds it: a lab must be able to go when the tree does not compile.
pub(crate) fn existing_or_release(workspace: &Workspace) -> Result<Built> {
    let built = Built::of(workspace);
    if built.agent.exists() && built.lab.exists() { Ok(built) } else { release(workspace) }
}
