//! Whether the agent lives and whether it is ready, for probes and `status`. Asked from threads of their own, so
//! that a main loop that hangs is seen and not waited for. Knows no HTTP.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use crate::clock::monotonic;
use crate::source::kube::WatchState;

/// How long the main loop may take for a turn. It turns every second; a large change takes seconds.
pub const STUCK: Duration = Duration::from_mins(1);
/// How long a watch may be silent: the API server sends it a bookmark about once a minute, and a connection that is
/// silent for [`crate::source::kube::SILENCE`] is made anew.
pub const STALE: Duration = Duration::from_mins(2);
/// Pods or files that are named in a reason; the others are counted.
const NAMED: usize = 3;

/// How the agent does. Times are nanoseconds of the monotonic clock.
#[derive(Debug)]
pub struct Health {
    started: u64,
    turned: AtomicU64,
    /// A pin that is there while enforcement is.
    pin: PathBuf,
    progress: RwLock<Progress>,
}

/// What the main loop has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last reconciliation that came to its end, or failed.
    pub last: Option<Reconciliation>,
    /// Why the last one failed.
    pub failure: Option<String>,
    /// How many failed.
    pub errors: u64,
    /// True once one has succeeded.
    pub enforced: bool,
    /// What is not as it should be though nothing failed.
    pub wanting: Wanting,
    /// When the source was last known to be read.
    pub source_read: Option<u64>,
    /// How watches of the API server do.
    pub watches: Vec<WatchState>,
}

/// What is not as it should be though nothing failed, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanting {
    /// Pods of this node that are not enforced.
    pub missing: Vec<String>,
    /// Pods whose policies have no room in the tables.
    pub held: Vec<String>,
    /// Files that nobody could ever read.
    pub unread: Vec<String>,
}

/// When, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconciliation {
    /// Its end.
    pub ended: u64,
    /// How long it took.
    pub took: Duration,
}

impl Health {
    /// Of an agent that starts now and will make this pin.
    #[must_use]
    pub fn new(pin: PathBuf) -> Self {
        let now = monotonic();
        Self { started: now, turned: AtomicU64::new(now), pin, progress: RwLock::default() }
    }

    /// When the agent started.
    #[must_use]
    pub const fn started(&self) -> u64 {
        self.started
    }

    /// The main loop turns.
    pub fn turn(&self) {
        self.turned.store(monotonic(), Ordering::Relaxed);
    }

    /// What the main loop has come to.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A reconciliation that began then ended now.
    pub fn reconciled(&self, began: u64, failure: Option<String>) {
        self.turn();
        let ended = monotonic();
        let took = Duration::from_nanos(ended.saturating_sub(began));
        self.change(|progress| {
            progress.last = Some(Reconciliation { ended, took });
            progress.enforced |= failure.is_none();
            progress.errors += u64::from(failure.is_some());
            progress.failure = failure;
        });
    }

    /// This is not as it should be.
    pub fn wanting(&self, wanting: Wanting) {
        self.change(|progress| progress.wanting = wanting);
    }

    /// What the source says is known.
    pub fn source_is_read(&self) {
        self.change(|progress| progress.source_read = Some(monotonic()));
    }

    /// The watches of the API server do so. What it says is known as of when the longest silent one was heard.
    pub fn watched(&self, watches: Vec<WatchState>) {
        let needed = watches.iter().filter(|watch| watch.needed);
        let heard = needed.map(|watch| watch.heard.filter(|_| watch.listed));
        let read = heard.min().flatten();
        self.change(|progress| {
            progress.source_read = read;
            progress.watches = watches;
        });
    }

    /// How long it is since what the source says was known; since the start if it never was.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        self.since(self.progress().source_read)
    }

    /// How long it is since a moment; since the start where there was none.
    #[must_use]
    pub fn since(&self, moment: Option<u64>) -> Duration {
        Duration::from_nanos(monotonic().saturating_sub(moment.unwrap_or(self.started)))
    }

    /// Why the agent has to be started anew; `None` if it lives.
    #[must_use]
    pub fn dead(&self) -> Option<String> {
        let since = Duration::from_nanos(monotonic().saturating_sub(self.turned.load(Ordering::Relaxed)));
        (since > STUCK).then(|| format!("the main loop has not turned for {} s", since.as_secs()))
    }

    /// Why the node's pods are not all enforced as the source says; empty if they are.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let progress = self.progress();
        let mut reasons: Vec<String> = self.dead().into_iter().collect();
        if !progress.enforced {
            reasons.push("nothing has been reconciled yet".to_owned());
        }
        reasons.extend(progress.failure.map(|why| format!("the last reconciliation failed: {why}")));
        if progress.enforced && !self.pin.exists() {
            let dir = self.pin.parent().unwrap_or(&self.pin);
            reasons.push(format!(
                "{} is gone: the next agent cannot take over; mount the bpffs again and restart the agent",
                dir.display()
            ));
        }
        reasons.extend(not_watched(&progress.watches, monotonic()));
        let Wanting { missing, held, unread } = &progress.wanting;
        if !missing.is_empty() {
            reasons.push(format!(
                "no interface that can be enforced leads to {}: look for a route to the pod's address",
                named(missing)
            ));
        }
        if !held.is_empty() {
            reasons.push(format!(
                "the tables have no room for the policies of {}: see the log for the table and choose a larger --map-size",
                named(held)
            ));
        }
        if !unread.is_empty() {
            reasons.push(format!("{} could never be read: mend it or take it away", named(unread)));
        }
        reasons
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What is not known of the API server's objects that are needed, and why.
fn not_watched(watches: &[WatchState], now: u64) -> Vec<String> {
    let mut reasons = Vec::new();
    for watch in watches.iter().filter(|watch| watch.needed) {
        let plural = watch.kind.plural();
        let why = watch.trouble.as_ref().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
        let silent = Duration::from_nanos(now.saturating_sub(watch.heard.unwrap_or(0)));
        if !watch.listed {
            reasons.push(format!("the API server has not listed {plural} yet{why}"));
        } else if silent > STALE {
            reasons.push(format!(
                "nothing was heard of {plural} for {} s{why}: what the API server said last stays in force",
                silent.as_secs()
            ));
        }
    }
    reasons
}

/// The first few by name, and how many more.
fn named(all: &[String]) -> String {
    let more = all.len().saturating_sub(NAMED);
    let some = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{some} and {more} more") } else { some }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health::new(PathBuf::from("/"))
    }

    #[test]
    fn ready_after_the_first_success_and_not_after_a_failure() {
        let health = health();
        assert_eq!(health.not_ready(), ["nothing has been reconciled yet"]);
        health.reconciled(monotonic(), Some("no room".to_owned()));
        assert_eq!(
            health.not_ready(),
            ["nothing has been reconciled yet", "the last reconciliation failed: no room"]
        );
        health.reconciled(monotonic(), None);
        assert_eq!(health.not_ready(), Vec::<String>::new());
        health.reconciled(monotonic(), Some("no room".to_owned()));
        assert_eq!(health.not_ready(), ["the last reconciliation failed: no room"]);
        assert_eq!(health.progress().errors, 2);
    }

    #[test]
    fn not_ready_without_pins_or_with_pods_that_are_not_enforced() {
        let gone = Health::new(PathBuf::from("/nowhere/portcullis/maps/endpoints"));
        gone.reconciled(monotonic(), None);
        assert!(gone.not_ready().first().unwrap().starts_with("/nowhere/portcullis/maps is gone"));
        let health = health();
        health.reconciled(monotonic(), None);
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        health.wanting(Wanting {
            missing: names(&["a/1", "a/2", "a/3", "a/4"]),
            held: names(&["a/5"]),
            unread: names(&["x.yaml"]),
        });
        let reasons = health.not_ready().join("\n");
        for part in ["leads to a/1, a/2, a/3 and 1 more:", "policies of a/5:", "x.yaml could never"] {
            assert!(reasons.contains(part), "{part}: {reasons}");
        }
    }

    #[test]
    fn a_loop_that_does_not_turn_is_dead() {
        let health = health();
        assert_eq!(health.dead(), None);
        let long_ago = monotonic().saturating_sub(u64::try_from(STUCK.as_nanos()).unwrap() * 2);
        health.turned.store(long_ago, Ordering::Relaxed);
        assert!(health.dead().unwrap().contains("120 s"));
        assert_eq!(health.not_ready().len(), 2);
        health.turn();
        assert_eq!(health.dead(), None);
    }
}
