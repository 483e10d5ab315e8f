//! A lab with a running agent that is given one state of a cluster after another, and asked by every way there
//! is to ask. Owns the directory of manifests and the agent's life; what is asked and compared is
//! [`agreement`]'s, what should come out the caller's.

pub mod agreement;
pub mod expected;
mod packets;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::signal::Signal;
use portcullis_agent::bpf::Pins;
use portcullis_agent::bpf::counters::Hits;
use portcullis_lab::{AgentSpec, Cni, Hook, Lab, LabOptions};
use portcullis_policy::model::Cluster;
use serde_json::{Value, json};

use crate::lifecycle::agent;
use agreement::Tally;

/// How long a change may take on a loaded machine before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// One state of a cluster, as files of manifests: name and text.
#[derive(Clone, Debug, Default)]
pub struct State(pub Vec<(String, String)>);

impl State {
    /// These objects, in one file.
    #[must_use]
    pub fn of_objects(objects: &[Value]) -> Self {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        Self(vec![("cluster.json".to_owned(), list.to_string())])
    }

    /// These files of `tests/data`.
    ///
    /// # Panics
    ///
    /// Where one cannot be read.
    #[must_use]
    pub fn of_files(paths: &[String]) -> Self {
        let read = |path: &String| {
            let from = data().join(path);
            let text = fs::read_to_string(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
            (path.replace('/', "_"), text)
        };
        Self(paths.iter().map(read).collect())
    }
}

/// `tests/data`.
#[must_use]
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

/// Where programs hang, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rig {
    /// The hook.
    pub hook: Hook,
    /// How pods hang on the node.
    pub cni: Cni,
}

impl Rig {
    /// For people.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}, {}", self.hook.name(), self.cni)
    }
}

impl std::convert::From<Hook> for Rig {
    /// In the shape that `PORTCULLIS_LAB_CNI` names, routed where it does not.
    fn from(hook: Hook) -> Self {
        Self { hook, cni: asked_cni().unwrap_or_default() }
    }
}

/// What `PORTCULLIS_LAB_CNI` says.
fn asked_cni() -> Option<Cni> {
    let word = std::env::var("PORTCULLIS_LAB_CNI").ok()?;
    Some(word.parse().unwrap_or_else(|error| panic!("PORTCULLIS_LAB_CNI: {error}")))
}

/// A lab, its agent, and the state that both were given last.
#[derive(Debug)]
pub struct Live {
    lab: Lab,
    hook: Hook,
    /// Holds `source`, which the agent watches.
    base: PathBuf,
    /// How many states came after the first.
    states: u32,
    hits: Hits,
    /// Of the packet that is sent next.
    next_port: u16,
}

impl Live {
    /// A lab in a state, with an agent that enforces it. The outside holds these addresses.
    ///
    /// # Panics
    ///
    /// Where anything of it fails, as all here does.
    #[must_use]
    pub fn up(state: &State, outside: Vec<IpAddr>, rig: impl Into<Rig>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Rig { hook, cni } = rig.into();
        let name = format!("portcullis-live-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let base = std::env::temp_dir().join(name);
        let source = base.join("source");
        fs::create_dir_all(&source).expect("a directory for manifests");
        write(state, &source.join("now"));
        let cluster = read(&source);
        let options = LabOptions { outside, cni, ..LabOptions::default() };
        let mut lab = Lab::up(&cluster, options).expect("the lab comes up");
        start(&mut lab, &base, hook);
        let hits = Hits::open(&Pins::new(lab.bpffs())).expect("the agent has pinned its counters");
        Self { lab, hook, base, states: 0, hits, next_port: packets::FIRST_PORT }
    }

    /// Brings what is up to a state, or one up in it.
    pub fn bring<'a>(
        live: &'a mut Option<Self>,
        state: &State,
        outside: &[IpAddr],
        rig: impl Into<Rig>,
    ) -> &'a mut Self {
        match live {
            Some(live) => {
                live.apply(state);
                live
            }
            none @ None => none.insert(Self::up(state, outside.to_vec(), rig)),
        }
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Brings lab and running agent to another state, and waits until it is in force.
    ///
    /// # Panics
    ///
    /// If it does not come into force.
    pub fn apply(&mut self, state: &State) {
        // The agent never sees half a state: the directory is changed in one step. The last state stays, outside:
        // to remove it would be news of a directory that the agent still watches.
        self.states += 1;
        let (next, now) = (self.base.join(format!("state-{}", self.states)), self.source().join("now"));
        write(state, &next);
        self.lab.apply(&read(&next)).expect("the lab changes");
        let before = self.lab.applied().expect("the agent enforces");
        renameat2(AT_FDCWD, &next, AT_FDCWD, &now, RenameFlags::RENAME_EXCHANGE)
            .expect("the state is put in place");
        self.lab.wait_applied(before + 1, PATIENCE).expect("the state is applied");
    }

    /// Takes everything of the agent away and starts it anew in the state that is.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn start_cold(&mut self) {
        self.lab.kill(Signal::SIGTERM).expect("the agent ends");
        let mut cleanup = Command::new(agent());
        cleanup.arg("cleanup").arg("--run-dir").arg(self.lab.run_dir()).arg("--bpffs").arg(self.lab.bpffs());
        let output =
            self.lab.node().run(|| cleanup.output()).expect("the node is there").expect("cleanup runs");
        assert!(output.status.success(), "cleanup: {}", String::from_utf8_lossy(&output.stderr));
        start(&mut self.lab, &self.base, self.hook);
        self.hits = Hits::open(&Pins::new(self.lab.bpffs())).expect("the agent has pinned its counters");
    }

    fn source(&self) -> PathBuf {
        self.base.join("source")
    }

    /// Runs a verb of the command line.
    fn verb(&self, arguments: &[String], from: From) -> Output {
        let mut command = Command::new(agent());
        command.args(arguments).args(["-o", "json"]);
        match from {
            From::Agent => command.arg("--run-dir").arg(self.lab.run_dir()),
            From::Directory => command.arg("--source").arg(self.source()),
        };
        command.output().expect("the verb runs")
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.lab.agent_log()).unwrap_or_default();
            eprintln!("the agent's log:\n{log}");
        }
        // Temporary; a leftover does no harm.
        drop(fs::remove_dir_all(&self.base));
    }
}

/// Does something with each hook, side by side: most of the time is spent waiting for what does not come. The
/// number tells the two apart.
///
/// # Panics
///
/// If one of them does.
#[must_use]
pub fn with_both_hooks(run: impl Fn(Hook, usize) -> Tally + Sync) -> Tally {
    let run = &run;
    let tallies = thread::scope(|scope| {
        let workers =
            [(Hook::Tcx, 0), (Hook::Clsact, 1)].map(|(hook, part)| scope.spawn(move || run(hook, part)));
        workers.map(|worker| worker.join().expect("a worker ends"))
    });
    let mut sum = Tally::default();
    for tally in tallies {
        sum += tally;
    }
    sum
}

/// As [`with_both_hooks`], in either shape of lab: what one hook does in the one, the other does in the other.
/// `PORTCULLIS_LAB_CNI` leaves one shape.
///
/// # Panics
///
/// If one of them does.
#[must_use]
pub fn in_all_rigs(run: impl Fn(Rig, usize) -> Tally + Sync) -> Tally {
    let run = &run;
    let rigs = [
        (Hook::Tcx, Cni::Routed, 0),
        (Hook::Clsact, Cni::Routed, 1),
        (Hook::Tcx, Cni::Bridge, 1),
        (Hook::Clsact, Cni::Bridge, 0),
    ];
    let asked = asked_cni();
    let tallies = thread::scope(|scope| {
        let chosen = rigs.into_iter().filter(|(_, cni, _)| asked.is_none_or(|asked| asked == *cni));
        let workers: Vec<_> =
            chosen.map(|(hook, cni, part)| scope.spawn(move || run(Rig { hook, cni }, part))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker ends")).collect::<Vec<_>>()
    });
    let mut sum = Tally::default();
    for tally in tallies {
        sum += tally;
    }
    sum
}

/// Whom a verb asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Agent,
    Directory,
}

fn start(lab: &mut Lab, base: &Path, hook: Hook) {
    let spec = AgentSpec { binary: agent(), source: base.join("source"), hook, arguments: Vec::new() };
    lab.start_agent(&spec).expect("the agent starts");
    lab.wait_applied(1, PATIENCE).expect("the agent enforces");
}

fn write(state: &State, dir: &Path) {
    fs::create_dir(dir).expect("a directory for a state");
    for (name, text) in &state.0 {
        fs::write(dir.join(name), text).expect("manifests are written");
    }
}

fn read(dir: &Path) -> Cluster {
    portcullis_lab::source::read(dir, &[]).expect("the manifests are good").cluster
}
