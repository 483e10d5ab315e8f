//! Which policies are on trial, trusted, held or rolled back: decided without clock and network. Seconds are those of the
//! monotonic clock.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::reach::{Found, Look, Reached};

/// Seconds for which a look is a measure.
pub(super) const MEASURE_MOST_AGE: u64 = 60;
/// Seconds for which a new policy waits for a measure.
pub(super) const HELD_MOST: u64 = 10;
/// Seconds after a roll-back in which the node is in reach again if the policies were the cause: some looks.
pub(super) const RETURNS_WITHIN: u64 = 10;
/// Seconds after a roll-back after which policies that were not the cause do not wait any longer for the node to be in reach.
pub(super) const OUTAGE_MOST: u64 = 300;

/// A policy that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Of its spec.
    pub(super) hash: u64,
    pub(super) effect: Effect,
}

/// What a policy does on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It can drop packets.
    Bites,
    /// It selects nothing here, or nothing is dropped: nothing can be said of it.
    Nothing,
}

/// A policy that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    pub(super) hash: u64,
    /// What was out of reach.
    pub lost: String,
    /// Until it is known whether it was the cause.
    #[serde(default)]
    pub(super) appeal: Option<Appeal>,
}

/// Whether a policy that was rolled back was the cause is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Appeal {
    since: u64,
    /// The node stayed cut off without it.
    is_innocent: bool,
}

/// What is kept across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Policies that have proved harmless, and those that have not.
    pub(super) trusted: BTreeMap<String, u64>,
    pub(super) rolled_back: BTreeMap<String, RolledBack>,
    /// Who was reached before those that are on trial came.
    pub(super) before: Option<Reached>,
    /// Times that policies were rolled back.
    pub(super) total: u64,
    /// Who was reached before those whose guilt is open came.
    #[serde(default)]
    pub(super) appealed: Option<Reached>,
    /// Those that were not the cause once: a second time it is not asked.
    #[serde(default)]
    pub(super) acquitted: BTreeMap<String, u64>,
    /// Those that count: they are not held when they change, for that would open what they close.
    #[serde(default)]
    pub(super) let_in: BTreeSet<String>,
}

/// A policy on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tried {
    hash: u64,
    in_force_since: Option<u64>,
}

/// Policies that came or changed, and have to prove harmless.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trial {
    /// When the last of them came.
    since: u64,
    pub(super) policies: BTreeMap<String, Tried>,
    /// Since when the node is cut off.
    lost_since: Option<u64>,
}

/// What is decided, without clock and network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Court {
    pub(super) kept: Kept,
    pub(super) trial: Option<Trial>,
    /// New policies that wait for a measure, and since when.
    pub(super) held: BTreeMap<String, u64>,
    /// The last look in which nothing on trial was in force.
    pub(super) clean: Option<Look>,
    /// Only a look that began later is one.
    clean_from: u64,
    /// Something that was on trial may be in force.
    is_dirty: bool,
    /// What was decided last has been reconciled.
    is_reconciled: bool,
}

impl Court {
    pub(super) fn of(kept: Kept) -> Self {
        // The last agent ended in the middle of a trial.
        let is_dirty = kept.before.is_some();
        Self { kept, is_dirty, ..Self::default() }
    }

    /// Goes on with these policies in existence, and what was seen last. A policy is trusted when it was in force for `after`
    /// seconds. Returns whether what is kept changed.
    pub(super) fn step(
        &mut self,
        after: u64,
        now: u64,
        policies: &BTreeMap<String, Known>,
        look: Option<&Look>,
    ) -> bool {
        let before = self.kept.clone();
        if !std::mem::take(&mut self.is_reconciled) {
            self.nothing_is_in_force(now);
        }
        let same = |name: &String, hash: u64| policies.get(name).is_some_and(|known| known.hash == hash);
        self.kept.trusted.retain(|name, hash| same(name, *hash));
        self.kept.acquitted.retain(|name, hash| same(name, *hash));
        self.kept.rolled_back.retain(|name, one| same(name, one.hash));
        if let Some(look) = look {
            self.hear_appeals(look);
            if !self.is_dirty && look.began > self.clean_from && look.measure().is_some() {
                self.clean = Some(look.clone());
            }
        }
        let (trusted, rolled_back) = (&self.kept.trusted, &self.kept.rolled_back);
        let on_trial = policies
            .iter()
            .filter(|(_, known)| known.effect == Effect::Bites)
            .filter(|(name, _)| !trusted.contains_key(*name) && !rolled_back.contains_key(*name))
            .map(|(name, known)| (name.clone(), known.hash))
            .collect();
        self.admit(now, on_trial);
        if let Some(look) = look {
            self.judge(after, now, look);
        }
        self.is_dirty |= self.trial.is_some();
        self.kept.let_in = policies.keys().filter(|name| !self.is_out(name)).cloned().collect();
        self.kept != before
    }

    /// What was decided is in force: of all policies these, completely.
    pub(super) fn reconciled(&mut self, now: u64, in_force: &BTreeSet<String>) {
        self.is_reconciled = true;
        match &mut self.trial {
            Some(trial) => {
                for (name, tried) in &mut trial.policies {
                    tried.in_force_since =
                        in_force.contains(name).then(|| tried.in_force_since.unwrap_or(now));
                }
            }
            None if self.is_dirty => {
                self.is_dirty = false;
                self.clean_from = now;
            }
            None => {}
        }
    }

    /// True of a policy that does not count.
    pub(super) fn is_out(&self, name: &str) -> bool {
        self.held.contains_key(name) || self.kept.rolled_back.contains_key(name)
    }

    /// True while looks are waited for.
    pub(super) fn wants_looks(&self) -> bool {
        let is_clean = self.clean.as_ref().is_some_and(|look| look.began > self.clean_from);
        self.trial.is_some() || !is_clean || !self.held.is_empty() || self.kept.appealed.is_some()
    }

    /// Nodes that are gone are not missed.
    pub(super) fn forget_nodes(&mut self, is_there: impl Fn(&String) -> bool) {
        for measure in [&mut self.kept.before, &mut self.kept.appealed].into_iter().flatten() {
            measure.nodes.retain(&is_there);
        }
        if let Some(look) = &mut self.clean {
            look.nodes.retain(|name, _| is_there(name));
        }
    }

    /// The host firewall is off: turned on again, what was on trial is tried from its beginning, by the measure that it had.
    pub(super) fn turned_off(&mut self, now: u64) {
        self.trial = None;
        self.nothing_is_in_force(now);
    }

    /// What was decided last could not be reconciled.
    fn nothing_is_in_force(&mut self, now: u64) {
        for tried in self.trial.iter_mut().flat_map(|trial| trial.policies.values_mut()) {
            tried.in_force_since = None;
        }
        // It may be in force still.
        for appeal in self.kept.rolled_back.values_mut().filter_map(|one| one.appeal.as_mut()) {
            appeal.since = now;
        }
    }

    /// Reachable again at once: they were the cause. Still cut off without them: they were not, and are tried again when the
    /// node is in reach, or has been out of it for too long.
    fn hear_appeals(&mut self, look: &Look) {
        let Some(measure) = &self.kept.appealed else { return };
        let found = measure.find(look);
        let is_on_trial = self.trial.is_some();
        let acquitted = &mut self.kept.acquitted;
        self.kept.rolled_back.retain(|name, one| {
            let Some(appeal) = one.appeal.as_mut().filter(|appeal| look.began > appeal.since) else {
                return true;
            };
            let is_acquitted = match found {
                Found::Unknown => false,
                Found::Fine => {
                    let is_innocent = appeal.is_innocent;
                    one.appeal = None;
                    is_innocent
                }
                // Others may be the cause now.
                Found::Lost(_) if is_on_trial => false,
                Found::Lost(_) => {
                    appeal.is_innocent |= look.began >= appeal.since.saturating_add(RETURNS_WITHIN);
                    look.began >= appeal.since.saturating_add(OUTAGE_MOST)
                }
            };
            if is_acquitted {
                acquitted.insert(name.clone(), one.hash);
            }
            !is_acquitted
        });
        if self.kept.rolled_back.values().all(|one| one.appeal.is_none()) {
            self.kept.appealed = None;
        }
    }

    /// Puts these on trial, or holds what is new until there is a measure.
    fn admit(&mut self, now: u64, mut on_trial: BTreeMap<String, u64>) {
        self.held.retain(|name, _| on_trial.contains_key(name));
        if on_trial.is_empty() {
            self.trial = None;
            self.kept.before = None;
            return;
        }
        // Who was reached while others were on trial, or in an outage whose cause is open, is no measure.
        if self.kept.before.is_none() {
            let is_fresh = |look: &&Look| {
                look.began > self.clean_from && now <= look.began.saturating_add(MEASURE_MOST_AGE)
            };
            let fresh = || self.clean.as_ref().filter(is_fresh).and_then(Look::measure);
            self.kept.before = self.kept.appealed.clone().or_else(fresh);
        }
        if self.kept.before.is_some() {
            self.held.clear();
        } else {
            let (held, let_in) = (&mut self.held, &self.kept.let_in);
            on_trial.retain(|name, _| {
                let waits = !let_in.contains(name)
                    && now < held.entry(name.clone()).or_insert(now).saturating_add(HELD_MOST);
                if !waits {
                    held.remove(name);
                }
                !waits
            });
            if on_trial.is_empty() {
                return;
            }
            // An old one is better than none.
            self.kept.before = self.clean.as_ref().and_then(Look::measure);
        }
        let trial = self.trial.get_or_insert_default();
        trial.policies.retain(|name, tried| on_trial.get(name) == Some(&tried.hash));
        for (name, hash) in on_trial {
            trial.policies.entry(name).or_insert_with(|| {
                trial.since = now;
                Tried { hash, in_force_since: None }
            });
        }
    }

    fn judge(&mut self, after: u64, now: u64, look: &Look) {
        let Some(trial) = self.trial.as_mut().filter(|trial| look.began > trial.since) else { return };
        if self.kept.before.is_none() {
            self.kept.before = look.measure();
        }
        let Some(measure) = &self.kept.before else { return };
        match measure.find(look) {
            Found::Unknown => {}
            Found::Fine => {
                trial.lost_since = None;
                let is_proved =
                    |since: Option<u64>| since.is_some_and(|at| look.began >= at.saturating_add(after));
                let trusted = &mut self.kept.trusted;
                trial.policies.retain(|name, tried| {
                    let is_proved = is_proved(tried.in_force_since);
                    if is_proved {
                        trusted.insert(name.clone(), tried.hash);
                    }
                    !is_proved
                });
                if trial.policies.is_empty() {
                    self.kept.before = None;
                    self.trial = None;
                    self.is_dirty = true;
                }
            }
            Found::Lost(lost) => {
                let since = *trial.lost_since.get_or_insert(look.began);
                if look.began >= since.saturating_add(after) {
                    let acquitted = &self.kept.acquitted;
                    let fresh = Appeal { since: now, is_innocent: false };
                    let found = std::mem::take(&mut trial.policies).into_iter().map(|(name, tried)| {
                        let appeal = (!acquitted.contains_key(&name)).then_some(fresh);
                        (name, RolledBack { hash: tried.hash, lost: lost.to_owned(), appeal })
                    });
                    self.kept.rolled_back.extend(found);
                    self.kept.total += 1;
                    let before = self.kept.before.take();
                    if self.kept.rolled_back.values().any(|one| one.appeal.is_some()) {
                        self.kept.appealed = before;
                    }
                    self.trial = None;
                    self.is_dirty = true;
                }
            }
        }
    }
}
