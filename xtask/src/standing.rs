//! A lab that stands while xtask runs: it is taken down when the value goes, whether the verb ended well, badly
//! or by Ctrl-C.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::build::Built;
use crate::sh;

/// Where portcullis-lab keeps what it knows of labs.
const STATE: &str = "/run/portcullis-lab";

/// Ctrl-C and SIGTERM, noted instead of ending us. Children get Ctrl-C too, and end by it.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Notes them from now on.
    pub(crate) fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("listening for signals")?;
        }
        Ok(Self(flag))
    }

    /// True once one came.
    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The command line of portcullis-lab, for a verb and a lab.
pub(crate) fn command(built: &Built, verb: &str, id: &str) -> Command {
    let mut command = sh::command(&built.lab);
    command.args([verb, "--id", id]);
    command
}

/// Where a lab's things are: `state.json`, `agent.log`, the agent's `run` directory.
pub(crate) fn dir(id: &str) -> PathBuf {
    Path::new(STATE).join(id)
}

/// A lab with an agent in it.
pub(crate) struct Standing<'a> {
    built: &'a Built,
    id: &'static str,
    kept: bool,
}

impl<'a> Standing<'a> {
    /// Brings it up. What the lab says goes to our stderr.
    pub(crate) fn up<A: AsRef<OsStr>>(
        built: &'a Built,
        id: &'static str,
        source: &Path,
        further: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let mut command = command(built, "up", id);
        command.arg("--source").arg(source).args(further).stdout(io::stderr());
        // Not before it succeeded: where a lab of this id stands already, it is not ours to take down.
        sh::run(&mut command)?;
        Ok(Self { built, id, kept: false })
    }

    /// The agent's `--run-dir`.
    pub(crate) fn run_dir(&self) -> PathBuf {
        dir(self.id).join("run")
    }

    /// A verb of portcullis that asks the lab's agent.
    pub(crate) fn ask(&self, verb: &str) -> Command {
        let mut command = sh::command(&self.built.agent);
        command.arg(verb).arg("--run-dir").arg(self.run_dir());
        command
    }

    /// Leaves it standing.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = down(self.built, self.id)
        {
            sh::say(format_args!("{error:#}"));
        }
    }
}

/// Takes a lab down; fine if there is none.
pub(crate) fn down(built: &Built, id: &str) -> Result<()> {
    let mut command = command(built, "down", id);
    // The lab lists what it took; that nothing is left is all that matters here.
    let status =
        command.stdin(Stdio::null()).stdout(Stdio::null()).status().context("starting portcullis-lab")?;
    if !status.success() {
        bail!("lab `{id}` could not be taken down whole ({status}): try `{}`", sh::line(&command));
    }
    Ok(())
}
