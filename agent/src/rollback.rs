//! HostPolicies that cut the node off are rolled back by themselves: after one came or changed, the agent looks whether it
//! still reaches its API server and the nodes that it reached before. What was rolled back stays so until the policy changes,
//! across restarts of the agent, unless the node stays cut off without it.

mod court;
mod reach;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use portcullis_policy::model::{HostPolicy, Mode, Problem, Severity};

pub use self::court::RolledBack;
use self::court::{Court, Effect, Kept, Known};
use self::reach::Look;
pub use self::reach::Targets;
use crate::clock::monotonic;

/// File in the run directory.
const FILE: &str = "rolled-back.json";
/// How often it is looked while something depends on it, and otherwise.
const EAGER: Duration = Duration::from_secs(2);
const AT_REST: Duration = Duration::from_secs(30);
const NANOSECONDS: u64 = 1_000_000_000;

/// What the thread that looks shares with the agent.
#[derive(Debug, Default)]
struct Shared {
    targets: Targets,
    is_eager: bool,
    seen: Option<Look>,
}

/// The thread that looks.
#[derive(Debug)]
struct Looker {
    /// Hurries it; gone, it ends.
    hurry: Sender<()>,
    thread: JoinHandle<()>,
}

/// Rolls HostPolicies back.
#[derive(Debug)]
pub struct Rollback {
    after: Duration,
    /// Of the node: what drops nothing proves nothing.
    mode: Mode,
    file: PathBuf,
    court: Court,
    shared: Arc<Mutex<Shared>>,
    looker: Option<Looker>,
}

impl Rollback {
    /// After so long, on a node in this mode; what was rolled back is read from the run directory.
    pub fn open(after: Duration, mode: Mode, run_dir: &Path) -> anyhow::Result<Self> {
        let file = run_dir.join(FILE);
        let kept = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!("{}: {error}: what was rolled back is forgotten", file.display());
                Kept::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error).context(file.display().to_string()),
        };
        Ok(Self { after, mode, file, court: Court::of(kept), shared: Arc::default(), looker: None })
    }

    /// The policies that do not count, of these, `selecting` being those that select something on this node. Those on trial
    /// prove nothing until [`Rollback::reconciled`] says that they are in force.
    pub fn look(
        &mut self,
        policies: &BTreeMap<String, HostPolicy>,
        selecting: &BTreeSet<String>,
        targets: &Targets,
    ) -> BTreeSet<String> {
        self.seek(targets);
        self.court.forget_nodes(|name| targets.nodes.contains_key(name));
        let known = |(name, policy): (&String, &HostPolicy)| {
            let effect = match (self.mode, policy.mode) {
                (Mode::Enforce, Mode::Enforce) if selecting.contains(name) => Effect::Bites,
                (Mode::Enforce | Mode::Audit, Mode::Enforce | Mode::Audit) => Effect::Nothing,
            };
            (name.clone(), Known { hash: hash(&format!("{policy:?}")), effect })
        };
        let known = policies.iter().map(known).collect();
        let seen = self.locked(|shared| shared.seen.clone());
        let total = self.court.kept.total;
        let changed = self.court.step(self.after.as_secs(), seconds(), &known, seen.as_ref());
        if self.court.kept.total > total {
            for (name, one) in &self.court.kept.rolled_back {
                tracing::error!(
                    "HostPolicy {name} is rolled back: since it came the node did not reach {}",
                    one.lost
                );
            }
        }
        if changed && let Err(error) = self.keep() {
            tracing::error!(
                "{}: {error}: what was rolled back is forgotten at the next start",
                self.file.display()
            );
        }
        self.hurry();
        policies.keys().filter(|name| self.court.is_out(name)).cloned().collect()
    }

    /// What was decided is in force: of all policies these, completely.
    pub fn reconciled(&mut self, in_force: &BTreeSet<String>) {
        self.court.reconciled(seconds(), in_force);
        self.hurry();
    }

    /// The host firewall is off: no policy is in force.
    pub fn turned_off(&mut self) {
        self.court.turned_off(seconds());
    }

    /// Has it looked more often while something depends on it, and at once when that begins.
    fn hurry(&self) {
        let is_eager = self.court.wants_looks();
        let was = self.locked(|shared| std::mem::replace(&mut shared.is_eager, is_eager));
        if is_eager
            && !was
            && let Some(looker) = &self.looker
        {
            // One that has ended is started anew with the next look.
            let _ = looker.hurry.send(());
        }
    }

    /// Lets a thread look for these from now on. The first time it is waited for: what is reached before the first policy is
    /// in force is the measure.
    fn seek(&mut self, targets: &Targets) {
        self.locked(|shared| shared.targets.clone_from(targets));
        if self.looker.as_ref().is_some_and(|looker| !looker.thread.is_finished()) {
            return;
        }
        if self.locked(|shared| shared.seen.is_none()) {
            let first = targets.ask(seconds());
            self.locked(|shared| shared.seen = Some(first));
        }
        let shared = Arc::clone(&self.shared);
        let (hurry, hurried) = channel();
        let looker = thread::Builder::new().name("reach".to_owned()).spawn(move || {
            let locked = || shared.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let rest = if locked().is_eager { EAGER } else { AT_REST };
                if let Err(RecvTimeoutError::Disconnected) = hurried.recv_timeout(rest) {
                    return;
                }
                let targets = locked().targets.clone();
                let look = targets.ask(seconds());
                locked().seen = Some(look);
            }
        });
        match looker {
            Ok(thread) => self.looker = Some(Looker { hurry, thread }),
            Err(error) => {
                tracing::error!("starting to look for the API server: {error}: it will be tried again");
            }
        }
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        work(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep(&self) -> anyhow::Result<()> {
        let beside = self.file.with_extension("new");
        fs::write(&beside, serde_json::to_vec(&self.court.kept)?)?;
        Ok(fs::rename(&beside, &self.file)?)
    }

    /// Times that policies were rolled back on this node.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.court.kept.total
    }

    /// What is rolled back now, by the policy's name.
    #[must_use]
    pub const fn rolled_back(&self) -> &BTreeMap<String, RolledBack> {
        &self.court.kept.rolled_back
    }

    /// True of a new policy that waits, for seconds, until it is known what the node reaches without it.
    #[must_use]
    pub fn is_held(&self, name: &str) -> bool {
        self.court.held.contains_key(name)
    }

    /// True while there is one.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.court.held.is_empty()
    }

    /// What is rolled back or cannot be, as problems.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let problem = |severity, name: &String, message| Problem {
            severity,
            object: format!("HostPolicy {name}"),
            field: String::new(),
            message,
            location: None,
        };
        let of = |(name, one): (&String, &RolledBack)| {
            let until = match one.appeal {
                None => "it is tried again when it changes",
                Some(_) => "it is tried again when it changes, or if the node stays cut off without it",
            };
            let message = format!(
                "rolled back on this node, and not in force: since it came the node did not reach {}; {until}",
                one.lost
            );
            problem(Severity::Error, name, message)
        };
        let mut problems: Vec<Problem> = self.rolled_back().iter().map(of).collect();
        let blind = match &self.court.kept.before {
            None => "it is not known what the node reached",
            Some(before) if before.is_nobody() => "the node reached neither the API server nor another node",
            Some(_) => return problems,
        };
        let on_trial = self.court.trial.iter().flat_map(|trial| trial.policies.keys());
        problems.extend(on_trial.map(|name| {
            let message = format!("is on trial, and {blind} before it came: it is not rolled back for that");
            problem(Severity::Warning, name, message)
        }));
        problems
    }
}

/// Of the monotonic clock.
fn seconds() -> u64 {
    monotonic() / NANOSECONDS
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[path = "rollback_tests.rs"]
mod tests;
