//! `cargo xtask run`: builds, loads, and shows what the agent logs, until Ctrl-C. The programs hang in a lab
//! made from the manifests, so the machine's own network is not touched.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::build;
use crate::setup::{self, Group};
use crate::sh;
use crate::standing::{self, Interrupt, Standing};
use crate::workspace::Workspace;

/// The lab's id: the default of portcullis-lab, so that `cargo xtask lab probe` finds it.
const ID: &str = "lab";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The directory of manifests; the agent follows its changes
    #[arg(long, value_name = "DIR")]
    source: PathBuf,
    /// More for `portcullis-lab up`, such as `--hook clsact`, or `-- --mode audit` for the agent
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    sh::need_root("making network namespaces and loading programs")?;
    setup::ensure(&[Group::Lab])?;
    let built = build::release(&Workspace::load()?)?;
    let interrupt = Interrupt::listen()?;
    let lab = Standing::up(&built, ID, &args.source, &args.args)?;
    sh::say("try, in another terminal:");
    sh::say(format_args!("  cargo xtask lab probe --source {}", args.source.display()));
    for verb in ["matrix", "observe --follow"] {
        sh::say(format_args!("  {} {verb} --run-dir {}", built.agent.display(), lab.run_dir().display()));
    }
    sh::say("here is what the agent logs; Ctrl-C takes all of it down");
    let mut log = follow(&standing::dir(ID).join("agent.log"))?;
    while !interrupt.came() {
        thread::sleep(Duration::from_millis(100));
    }
    // Ctrl-C has reached it already, a signal to us alone has not.
    drop(log.kill());
    drop(log.wait());
    drop(lab);
    sh::say("taken down");
    Ok(ExitCode::SUCCESS)
}

fn follow(log: &std::path::Path) -> Result<Child> {
    let mut command = sh::command("tail");
    command.args(["-n", "+1", "-F"]).arg(log).stdin(Stdio::null());
    command.spawn().context("starting tail")
}
