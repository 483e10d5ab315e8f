//! The agent of a lab: a process inside the node's namespace, with a run directory and a bpffs of the lab's.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::Signal;
use serde::Deserialize;

use std::os::unix::process::CommandExt as _;

use crate::netns::Netns;
use crate::state::ProcessId;
use crate::unfit::Unfit;

/// Where the agent's programs hang.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// What the kernel offers.
    #[default]
    Auto,
    /// TCX links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl Hook {
    /// As `--hook` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    /// The `portcullis` binary.
    pub binary: PathBuf,
    /// The directory of manifests.
    pub source: PathBuf,
    /// Where its programs hang.
    pub hook: Hook,
    /// Further arguments, after those of the lab.
    pub arguments: Vec<OsString>,
}

/// Where an agent of a lab keeps its things.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paths<'a> {
    pub(crate) run_dir: &'a Path,
    pub(crate) bpffs: &'a Path,
    pub(crate) log: &'a Path,
}

/// A started agent.
#[derive(Debug)]
pub(crate) struct Agent {
    process: ProcessId,
    /// Absent where another process started it.
    child: Option<Child>,
}

/// What the agent writes to `ready` in its run directory.
#[derive(Deserialize)]
struct Ready {
    applied: u64,
}

impl Agent {
    /// Starts an agent; [`wait_applied`] tells when it enforces.
    pub(crate) fn start(spec: &AgentSpec, node: &Netns, node_name: &str, paths: Paths<'_>) -> Result<Self> {
        let binary = fs::canonicalize(&spec.binary).map_err(|error| {
            Unfit(format!(
                "no agent at {} ({error}): build it with `cargo xtask build`, name another with --agent, \
                 or do without by --no-agent",
                spec.binary.display()
            ))
        })?;
        let source = fs::canonicalize(&spec.source)
            .with_context(|| format!("opening the manifests in {}", spec.source.display()))?;
        // What an agent that was killed left is not this one's.
        match fs::remove_file(paths.run_dir.join("ready")) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).context("removing `ready`");
            }
            Ok(()) | Err(_) => {}
        }
        let log =
            File::options().create(true).append(true).open(paths.log).context("opening the agent's log")?;
        let mut command = Command::new(&binary);
        command.arg("agent").arg("--source").arg(source);
        command.arg("--run-dir").arg(paths.run_dir).arg("--bpffs").arg(paths.bpffs);
        command.args(["--node-name", node_name, "--hook", spec.hook.name()]).args(&spec.arguments);
        // The machine's own cgroups are no lab's.
        if !spec.arguments.iter().any(|argument| argument == "--cgroup-root") {
            command.args(["--services", "deny"]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().context("opening the agent's log")?).stderr(log);
        // Out of the terminal's foreground group: an interrupt meant for the lab is not the agent's.
        command.process_group(0);
        let mut child =
            node.run(|| command.spawn())?.with_context(|| format!("starting {}", binary.display()))?;
        match ProcessId::of(child.id().cast_signed()) {
            Ok(process) => Ok(Self { process, child: Some(child) }),
            Err(error) => {
                drop(child.kill());
                drop(child.wait());
                Err(error)
            }
        }
    }

    /// One that another process started.
    pub(crate) fn adopt(process: ProcessId) -> Self {
        Self { process, child: None }
    }

    pub(crate) fn process(&self) -> ProcessId {
        self.process
    }

    /// Sends a signal and does not wait for what it does.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits for its end. No status where another process started it.
    pub(crate) fn wait_end(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        let Some(child) = &mut self.child else {
            if self.process.wait_end(patience) {
                return Ok(None);
            }
            bail!("the agent does not end");
        };
        loop {
            if let Some(status) = child.try_wait().context("waiting for the agent")? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                bail!("the agent does not end");
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it as gently as it lets us.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.wait_end(Duration::from_secs(3)).is_ok() {
            return Ok(());
        }
        self.signal(Signal::SIGKILL)?;
        self.wait_end(Duration::from_secs(3)).map(drop)
    }

    fn ended(&mut self) -> Option<String> {
        match &mut self.child {
            Some(child) => child.try_wait().ok().flatten().map(|status| status.to_string()),
            None => (!self.process.is_running()).then(|| "ended".into()),
        }
    }
}

/// The number of the change that the agent has applied last; none before it is ready.
pub(crate) fn applied(run_dir: &Path) -> Option<u64> {
    let text = fs::read(run_dir.join("ready")).ok()?;
    serde_json::from_slice::<Ready>(&text).ok().map(|ready| ready.applied)
}

/// Waits until the agent has applied change `at_least` or a later one, and returns which.
pub(crate) fn wait_applied(
    agent: &mut Agent,
    paths: Paths<'_>,
    at_least: u64,
    patience: Duration,
) -> Result<u64> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(now) = applied(paths.run_dir).filter(|n| *n >= at_least) {
            return Ok(now);
        }
        let failure = match agent.ended() {
            Some(how) => format!("the agent ended ({how})"),
            None if Instant::now() >= deadline => {
                format!("the agent did not apply change {at_least} within {patience:?}")
            }
            None => {
                thread::sleep(Duration::from_millis(2));
                continue;
            }
        };
        let log = fs::read_to_string(paths.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
        return Err(anyhow!("{failure}; the end of {}:\n{tail}", paths.log.display()));
    }
}
