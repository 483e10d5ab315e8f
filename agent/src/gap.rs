//! How long interfaces stand open: from the moment at which one was seen until its pod was enforced. Owns the
//! measurement, and no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Measures the gap of each interface.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// Those that are not enforced, and since when they are seen; none for those that were there before the agent.
    open: BTreeMap<u32, Option<u64>>,
    /// Those that are.
    enforced: BTreeSet<u32>,
    started: bool,
}

impl Gaps {
    /// An interface was told of: from here on it counts, at a moment in nanoseconds.
    pub(crate) fn told(&mut self, interface: u32, now: u64) {
        if !self.enforced.contains(&interface) {
            self.open.insert(interface, Some(now));
        }
    }

    /// These veth devices are there, seen first at a moment; behind these are pods that are enforced now. Returns the
    /// gaps that ended.
    pub(crate) fn look(
        &mut self,
        present: &BTreeSet<u32>,
        enforced: &BTreeSet<u32>,
        seen: u64,
        now: u64,
    ) -> Vec<Duration> {
        self.open.retain(|interface, _| present.contains(interface));
        self.enforced.retain(|interface| present.contains(interface));
        for interface in present.difference(&self.enforced) {
            self.open.entry(*interface).or_insert(self.started.then_some(seen));
        }
        self.started = true;
        let closed: Vec<u32> = self.open.keys().copied().filter(|one| enforced.contains(one)).collect();
        self.enforced.extend(&closed);
        let since = closed.iter().filter_map(|interface| self.open.remove(interface).flatten());
        since.map(|since| Duration::from_nanos(now.saturating_sub(since))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(of: &[u32]) -> BTreeSet<u32> {
        of.iter().copied().collect()
    }

    #[test]
    fn an_interface_counts_once_from_when_it_was_seen() {
        let mut gaps = Gaps::default();
        assert!(gaps.look(&set(&[1]), &set(&[]), 0, 5).is_empty());
        assert!(gaps.look(&set(&[1, 2]), &set(&[]), 10, 12).is_empty());
        assert_eq!(gaps.look(&set(&[1, 2]), &set(&[2]), 20, 35), [Duration::from_nanos(25)]);
        assert!(gaps.look(&set(&[1, 2]), &set(&[2]), 40, 45).is_empty());
        // A pod that comes behind the same interface later is no new interface.
        assert!(gaps.look(&set(&[1, 2]), &set(&[]), 50, 55).is_empty());
        assert!(gaps.look(&set(&[1, 2]), &set(&[2]), 60, 65).is_empty());
    }

    #[test]
    fn what_was_there_before_the_agent_has_no_known_gap() {
        let mut gaps = Gaps::default();
        assert!(gaps.look(&set(&[1, 2]), &set(&[1]), 0, 5).is_empty());
        assert!(gaps.look(&set(&[1, 2]), &set(&[1, 2]), 10, 15).is_empty());
    }

    #[test]
    fn a_device_that_went_and_came_back_counts_anew_and_one_that_was_told_of_from_then_on() {
        let mut gaps = Gaps::default();
        gaps.look(&set(&[]), &set(&[]), 0, 0);
        assert_eq!(gaps.look(&set(&[7]), &set(&[7]), 3, 9), [Duration::from_nanos(6)]);
        gaps.look(&set(&[]), &set(&[]), 10, 10);
        assert_eq!(gaps.look(&set(&[7]), &set(&[7]), 20, 21), [Duration::from_nanos(1)]);
        gaps.told(8, 30);
        assert_eq!(gaps.look(&set(&[7, 8]), &set(&[7, 8]), 40, 41), [Duration::from_nanos(11)]);
    }
}
