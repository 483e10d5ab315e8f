//! What is known of a lab on disk, below `/run/portcullis-lab/ID`: enough for another process to probe it and
//! to take it away, whatever became of the one that made it.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::netns;
use crate::plan::Link;
use crate::shape::Cni;

/// Where labs keep their state.
const ROOT: &str = "/run/portcullis-lab";

/// How long a process has after SIGTERM, and again after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(3);

/// A process that stays the same one: a pid alone may be another's by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: ticks between boot and its start.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> Result<Self> {
        let line = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is not there"))?;
        // The name, in parentheses, may hold anything; fields after it are counted from the third.
        let start = line.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
        Ok(Self { pid, start: start.with_context(|| format!("reading /proc/{pid}/stat"))? })
    }

    /// True while it runs (a zombie does not).
    #[must_use]
    pub fn is_running(self) -> bool {
        let zombie = fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|s| s.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')));
        !zombie && Self::of(self.pid).is_ok_and(|now| now == self)
    }

    /// Sends a signal, if it is still the same process.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("sending {signal} to process {}", self.pid)),
        }
    }

    /// Ends it: SIGTERM, and SIGKILL where that is not enough.
    pub fn end(self) -> Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            self.signal(signal)?;
            if self.wait_end(PATIENCE) {
                return Ok(());
            }
        }
        bail!("process {} does not end", self.pid)
    }

    /// Waits for its end; false if it still runs then.
    #[must_use]
    pub fn wait_end(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

/// A pod that has a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Its network namespace.
    pub netns: String,
    /// The host side of its veth pair, in the node's namespace.
    pub device: String,
    /// Addresses that it owns.
    pub addresses: Vec<IpAddr>,
}

/// All that is known of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its id.
    pub id: String,
    /// The process that takes it down when it ends; none: it stands until `down`.
    pub owner: Option<ProcessId>,
    /// For `--node-name`.
    pub node_name: String,
    /// How pods hang on the node.
    #[serde(default)]
    pub cni: Cni,
    /// The uplink.
    pub link: Link,
    /// The node's addresses beyond its end of the uplink.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The outside's addresses beyond its end of the uplink.
    pub outside: BTreeSet<IpAddr>,
    /// Pods, by namespace and name.
    pub pods: Vec<PodState>,
    /// What is served: protocol and port.
    pub ports: BTreeSet<(String, u16)>,
    /// The process that serves, where it is not the owner.
    pub servers: Option<ProcessId>,
    /// The agent.
    pub agent: Option<ProcessId>,
}

impl State {
    /// Reads a lab's state; none if there is no such lab.
    pub fn read(id: &str) -> Result<Option<Self>> {
        let path = dir(id).join("state.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        serde_json::from_slice(&text).map(Some).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes it, all or nothing.
    pub fn write(&self) -> Result<()> {
        let path = dir(&self.id).join("state.json");
        let next = path.with_extension("next");
        let text = serde_json::to_vec_pretty(self).context("writing a lab's state")?;
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, &path))
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// Where a lab keeps its state, its agent's run directory (`run`), bpffs (`bpf`) and logs.
#[must_use]
pub fn dir(id: &str) -> PathBuf {
    Path::new(ROOT).join(id)
}

/// The name of one of a lab's namespaces: `node`, `out`, or `pN`.
#[must_use]
pub(crate) fn netns_name(id: &str, role: &str) -> String {
    format!("pcl-{id}-{role}")
}

/// Refuses ids that do not fit into names.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        !id.is_empty() && id.len() <= 40 && id.chars().all(fits),
        "`{id}` is no id for a lab: up to 40 of a to z, 0 to 9 and `-`"
    );
    Ok(())
}

/// Makes the lab's directory, which must not be there yet.
pub(crate) fn create_dir(id: &str) -> Result<()> {
    let make = |path: &Path, recursive| DirBuilder::new().mode(0o700).recursive(recursive).create(path);
    make(Path::new(ROOT), true).with_context(|| format!("creating {ROOT}"))?;
    match make(&dir(id), false) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("lab `{id}` is up already: `portcullis-lab down --id {id}` first, or choose another --id")
        }
        outcome => outcome.with_context(|| format!("creating {}", dir(id).display()))?,
    }
    for name in ["run", "bpf"] {
        let path = dir(id).join(name);
        make(&path, false).with_context(|| format!("creating {}", path.display()))?;
    }
    Ok(())
}

/// Ids of all labs that left anything behind: a directory, or a namespace.
pub fn ids() -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    match fs::read_dir(ROOT) {
        Ok(entries) => {
            for entry in entries {
                ids.extend(entry.context("listing labs")?.file_name().into_string());
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("listing labs"),
    }
    ids.extend(netns::names()?.iter().filter_map(|name| id_of(name)).map(str::to_owned));
    Ok(ids)
}

/// Takes away whatever a lab left: processes, the bpffs mount, namespaces, the directory. Fine if there is
/// nothing; every step is tried, and the first error is returned. Returns what it took away.
pub fn take_down(id: &str) -> Result<Vec<String>> {
    check_id(id)?;
    let mut taken = Vec::new();
    let mut outcome = Ok(());
    let mut note = |done: Result<()>, what: String| match done {
        Ok(()) => taken.push(what),
        Err(error) if outcome.is_ok() => outcome = Err(error),
        Err(_) => {}
    };
    // An unreadable state names no processes; what has a name of ours goes all the same.
    let state = State::read(id).unwrap_or_default();
    if let Some(state) = &state {
        for (what, process) in [("agent", state.agent), ("servers", state.servers)] {
            if let Some(process) = process.filter(|p| p.is_running()) {
                note(process.end(), format!("process {} ({what})", process.pid));
            }
        }
    }
    let bpffs = dir(id).join("bpf");
    while let Ok(()) = umount2(&bpffs, MntFlags::MNT_DETACH) {
        note(Ok(()), format!("mount {}", bpffs.display()));
    }
    for name in netns::names()?.into_iter().filter(|name| id_of(name) == Some(id)) {
        note(netns::delete(&name), format!("namespace {name}"));
    }
    match fs::remove_dir_all(dir(id)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        removed => note(removed.context("removing a lab's directory"), format!("{}", dir(id).display())),
    }
    outcome.map(|()| taken)
}

/// Takes away labs whose owner ended without doing so.
pub fn sweep() -> Result<()> {
    for id in ids()? {
        if let Ok(Some(state)) = State::read(&id)
            && state.owner.is_some_and(|owner| !owner.is_running())
        {
            take_down(&id)?;
        }
    }
    Ok(())
}

/// The lab that a namespace belongs to, going by its name.
fn id_of(netns: &str) -> Option<&str> {
    let (id, role) = netns.strip_prefix("pcl-")?.rsplit_once('-')?;
    let pod = role.strip_prefix('p').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    (pod || role == "node" || role == "out").then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_belong_to_one_lab() {
        assert_eq!(id_of("pcl-a-node"), Some("a"));
        assert_eq!(id_of("pcl-a-b-p12"), Some("a-b"));
        assert_eq!(id_of("pcl-a-b-out"), Some("a-b"));
        assert_eq!(id_of("pcl-a-px"), None);
        assert_eq!(id_of("other-a-node"), None);
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap();
        assert!(me.is_running());
        assert!(!ProcessId { start: me.start + 1, ..me }.is_running());
    }
}
