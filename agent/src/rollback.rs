//! HostPolicies that cut the node off are rolled back by themselves: after one came or changed, the agent looks whether it
//! still reaches its API server and the nodes that it reached before. What was rolled back stays so until the policy changes,
//! across restarts of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use portcullis_policy::model::{Cluster, Host, HostPolicy, Problem, Severity};
use serde::{Deserialize, Serialize};

use crate::clock::monotonic;

/// File in the run directory.
const FILE: &str = "rolled-back.json";
/// The kubelet's port (`KubeletPort` of Kubernetes): to be refused there is to be reached.
const KUBELET: u16 = 10250;
/// How long one connection is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked while a policy is on trial, and otherwise.
const ON_TRIAL: Duration = Duration::from_secs(2);
const AT_REST: Duration = Duration::from_secs(30);
/// Other nodes that one node asks: of thousands each asks a few.
const MOST_NODES: usize = 16;
const NANOSECONDS: u64 = 1_000_000_000;

/// Whom the agent looks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    servers: BTreeSet<SocketAddr>,
    nodes: BTreeMap<String, Vec<IpAddr>>,
}

impl Targets {
    /// The API servers in use, and some other nodes.
    #[must_use]
    pub fn of(said: &Cluster, host: &Host) -> Self {
        let others =
            said.nodes.iter().filter(|(name, node)| **name != host.node && !node.addresses.is_empty());
        // Others for each node, the same each time.
        let mut order: Vec<(u64, &String, &Vec<IpAddr>)> = others
            .map(|(name, node)| (hash(&format!("{} {name}", host.node)), name, &node.addresses))
            .collect();
        order.sort();
        let nodes = order.into_iter().take(MOST_NODES).map(|(_, name, all)| (name.clone(), all.clone()));
        Self {
            servers: host
                .api_servers
                .iter()
                .map(|(address, port)| SocketAddr::new(*address, *port))
                .collect(),
            nodes: nodes.collect(),
        }
    }

    /// Asks each, all at once.
    fn ask(&self) -> Reached {
        thread::scope(|scope| {
            let servers: Vec<_> = self.servers.iter().map(|at| scope.spawn(move || connects(*at))).collect();
            let nodes: Vec<_> = self
                .nodes
                .iter()
                .map(|(name, all)| {
                    let first = all.iter().copied().find(IpAddr::is_ipv4).or_else(|| all.first().copied());
                    let asked =
                        scope.spawn(move || first.is_some_and(|ip| connects(SocketAddr::new(ip, KUBELET))));
                    (name.clone(), asked)
                })
                .collect();
            let answers = |asked: thread::ScopedJoinHandle<'_, bool>| asked.join().unwrap_or(false);
            Reached {
                server: servers.into_iter().map(answers).fold(self.servers.is_empty(), |any, one| any || one),
                nodes: nodes.into_iter().filter_map(|(name, asked)| answers(asked).then_some(name)).collect(),
            }
        })
    }
}

/// To be refused is an answer.
fn connects(at: SocketAddr) -> bool {
    match TcpStream::connect_timeout(&at, PATIENCE) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    }
}

/// Who answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Reached {
    /// The API server, or one of several; true where none is known.
    server: bool,
    /// Other nodes.
    nodes: BTreeSet<String>,
}

impl Reached {
    /// Why the node is cut off by now, if it is.
    fn lost(&self, now: &Self) -> Option<&'static str> {
        let still = self.nodes.intersection(&now.nodes).count();
        if self.server && !now.server {
            Some("the API server")
        } else if still * 2 < self.nodes.len() {
            Some("most of the nodes that it reached before")
        } else {
            None
        }
    }
}

/// A policy that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    hash: u64,
    /// What was out of reach.
    pub lost: String,
}

/// What is kept across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Policies that have proved harmless, and those that have not.
    trusted: BTreeMap<String, u64>,
    rolled_back: BTreeMap<String, RolledBack>,
    /// Who was reached before those that are on trial came.
    before: Option<Reached>,
    /// Times that policies were rolled back.
    total: u64,
}

/// Policies that came or changed, and have to prove harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trial {
    /// Seconds of the monotonic clock.
    since: u64,
    policies: BTreeMap<String, u64>,
    /// Since when the node is cut off.
    lost_since: Option<u64>,
}

/// What is decided, without clock and network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Court {
    kept: Kept,
    trial: Option<Trial>,
}

impl Court {
    /// Goes on with these policies in existence; `seen`: when it was last looked, and who was reached. Returns whether
    /// what is kept changed.
    fn step(
        &mut self,
        after: u64,
        now: u64,
        policies: &BTreeMap<String, u64>,
        seen: Option<&(u64, Reached)>,
    ) -> bool {
        let before = self.kept.clone();
        let same = |name: &String, hash: u64| policies.get(name) == Some(&hash);
        self.kept.trusted.retain(|name, hash| same(name, *hash));
        self.kept.rolled_back.retain(|name, one| same(name, one.hash));
        let (trusted, rolled_back) = (&self.kept.trusted, &self.kept.rolled_back);
        let on_trial: BTreeMap<String, u64> = policies
            .iter()
            .filter(|(name, _)| !trusted.contains_key(*name) && !rolled_back.contains_key(*name))
            .map(|(name, hash)| (name.clone(), *hash))
            .collect();
        if on_trial.is_empty() {
            self.trial = None;
            self.kept.before = None;
        } else if self.trial.as_ref().is_none_or(|trial| trial.policies != on_trial) {
            // Who was reached while others were on trial is no measure.
            if self.kept.before.is_none() {
                self.kept.before = seen.map(|(_, reached)| reached.clone());
            }
            let lost_since = self.trial.as_ref().and_then(|trial| trial.lost_since);
            self.trial = Some(Trial { since: now, policies: on_trial, lost_since });
        }
        if let (Some(trial), Some((at, reached))) = (&mut self.trial, seen)
            && *at > trial.since
        {
            let measure = self.kept.before.get_or_insert_with(|| reached.clone());
            match measure.lost(reached) {
                None => {
                    trial.lost_since = None;
                    if *at >= trial.since.saturating_add(after) {
                        self.kept.trusted.append(&mut trial.policies);
                        self.kept.before = None;
                        self.trial = None;
                    }
                }
                Some(lost) => {
                    let since = *trial.lost_since.get_or_insert(*at);
                    if *at >= since.saturating_add(after) {
                        let names = std::mem::take(&mut trial.policies).into_iter();
                        let found =
                            names.map(|(name, hash)| (name, RolledBack { hash, lost: lost.to_owned() }));
                        self.kept.rolled_back.extend(found);
                        self.kept.total += 1;
                        self.kept.before = None;
                        self.trial = None;
                    }
                }
            }
        }
        self.kept != before
    }
}

/// What the thread that looks shares with the agent.
#[derive(Debug, Default)]
struct Shared {
    targets: Targets,
    /// There is no policy that could cut the node off.
    is_idle: bool,
    on_trial: bool,
    seen: Option<(u64, Reached)>,
}

/// Rolls HostPolicies back.
#[derive(Debug)]
pub struct Rollback {
    after: Duration,
    file: PathBuf,
    court: Court,
    shared: Arc<Mutex<Shared>>,
    /// Hurries the thread that looks; gone, it ends.
    looker: Option<Sender<()>>,
}

impl Rollback {
    /// After so long; what was rolled back is read from the run directory.
    pub fn open(after: Duration, run_dir: &Path) -> anyhow::Result<Self> {
        let file = run_dir.join(FILE);
        let kept = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!("{}: {error}: what was rolled back is forgotten", file.display());
                Kept::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error).context(file.display().to_string()),
        };
        Ok(Self { after, file, court: Court { kept, trial: None }, shared: Arc::default(), looker: None })
    }

    /// The policies that do not count, of these.
    pub fn look(&mut self, policies: &BTreeMap<String, HostPolicy>, targets: &Targets) -> BTreeSet<String> {
        self.seek(targets);
        self.locked(|shared| shared.is_idle = policies.is_empty());
        // Nodes that are gone are not missed.
        if let Some(before) = &mut self.court.kept.before {
            before.nodes.retain(|name| targets.nodes.contains_key(name));
        }
        let hashes =
            policies.iter().map(|(name, policy)| (name.clone(), hash(&format!("{policy:?}")))).collect();
        let seen = self.locked(|shared| shared.seen.clone());
        let total = self.court.kept.total;
        let changed =
            self.court.step(self.after.as_secs(), monotonic() / NANOSECONDS, &hashes, seen.as_ref());
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
        let on_trial = self.court.trial.is_some();
        let was = self.locked(|shared| std::mem::replace(&mut shared.on_trial, on_trial));
        if on_trial
            && !was
            && let Some(looker) = &self.looker
        {
            // One that has ended is started anew with the next agent.
            let _ = looker.send(());
        }
        self.court.kept.rolled_back.keys().cloned().collect()
    }

    /// Lets a thread look for these from now on. The first time it is waited for: what is reached before the first policy is
    /// in force is the measure.
    fn seek(&mut self, targets: &Targets) {
        self.locked(|shared| shared.targets.clone_from(targets));
        if self.looker.is_some() {
            return;
        }
        let first = (monotonic() / NANOSECONDS, targets.ask());
        self.locked(|shared| shared.seen = Some(first));
        let shared = Arc::clone(&self.shared);
        let (hurry, hurried) = channel();
        let looker = thread::Builder::new().name("reach".to_owned()).spawn(move || {
            let locked = || shared.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let rest = if locked().on_trial { ON_TRIAL } else { AT_REST };
                if let Err(RecvTimeoutError::Disconnected) = hurried.recv_timeout(rest) {
                    return;
                }
                let (targets, is_idle) = {
                    let shared = locked();
                    (shared.targets.clone(), shared.is_idle)
                };
                if is_idle {
                    continue;
                }
                let reached = targets.ask();
                locked().seen = Some((monotonic() / NANOSECONDS, reached));
            }
        });
        match looker {
            Ok(_) => self.looker = Some(hurry),
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

    /// What is rolled back, as problems.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let of = |(name, one): (&String, &RolledBack)| Problem {
            severity: Severity::Error,
            object: format!("HostPolicy {name}"),
            field: String::new(),
            message: format!(
                "rolled back on this node, and not in force: since it came the node did not reach {}; it is tried again when it \
                 changes",
                one.lost
            ),
            location: None,
        };
        self.rolled_back().iter().map(of).collect()
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[path = "rollback_tests.rs"]
mod tests;
