//! `cargo xtask build`: the agent, which carries the eBPF object, and the lab.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::setup::{self, Group};
use crate::sh;
use crate::workspace::Workspace;

/// The agent's binary, and the lab's.
const AGENT: &str = "portcullis";
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
        Self { agent: workspace.binary(AGENT), lab: workspace.binary(LAB) }
    }
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    if args.debug && !args.release {
        setup::ensure(&[Group::Ebpf])?;
        sh::run(command(&[AGENT, LAB]).stdout(std::io::stderr()))?;
        println!("{}", Workspace::load()?.target_dir().join("debug").join(AGENT).display());
    } else {
        println!("{}", release(&Workspace::load()?)?.agent.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds agent and lab for release.
pub(crate) fn release(workspace: &Workspace) -> Result<Built> {
    binaries(&[AGENT, LAB])?;
    let built = Built::of(workspace);
    for path in [&built.agent, &built.lab] {
        ensure!(path.exists(), "cargo built no {}", path.display());
    }
    Ok(built)
}

/// Builds binaries of any member for release.
pub(crate) fn binaries(names: &[&str]) -> Result<()> {
    setup::ensure(&[Group::Ebpf])?;
    sh::run(command(names).arg("--release").stdout(std::io::stderr()))
}

/// Always of the whole workspace, narrowed by name: with `--package` cargo would unify features differently
/// and compile everything again for the tests.
fn command(names: &[&str]) -> Command {
    let mut command = sh::cargo();
    command.args(["build", "--workspace"]);
    for name in names {
        command.args(["--bin", name]);
    }
    command
}

/// What is built already, else builds it: a lab must be able to go when the tree does not compile.
pub(crate) fn existing_or_release(workspace: &Workspace) -> Result<Built> {
    let built = Built::of(workspace);
    if built.agent.exists() && built.lab.exists() { Ok(built) } else { release(workspace) }
}
