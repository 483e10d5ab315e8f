//! Verdicts on their way from the ring to those who ask: numbered, so that a loss is a gap; kept for a while; named
//! by who owned the address when the verdict fell; folded and filtered for each observer. Knows no socket and no
//! kernel.

pub mod filter;
pub mod fold;
pub mod names;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use portcullis_common::event::Event;
use portcullis_common::wire::COUNTER_NONE;
use tokio::sync::broadcast;

use names::Names;

/// Verdicts that a slow observer may lag behind; what is over is told as lost.
const OBSERVER_LAG: usize = 16_384;
/// Verdicts that are kept for those who ask later: some 1.5 MB.
pub const HISTORY: usize = 16_384;

/// What the recorder was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A verdict.
    Event(Event),
    /// This many were not told.
    Lost(u64),
}

impl Seen {
    /// For how many verdicts it stands.
    const fn weight(&self) -> u64 {
        match self {
            Self::Event(_) => 1,
            Self::Lost(lost) => *lost,
        }
    }
}

/// What was told, and how many verdicts came before it: whoever misses some sees the gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Verdicts before this, lost ones included.
    pub before: u64,
    /// What was told.
    pub seen: Seen,
}

impl Numbered {
    /// When it fell, nanoseconds of the monotonic clock.
    #[must_use]
    pub const fn time(&self) -> Option<u64> {
        match &self.seen {
            Seen::Event(event) => Some(event.time),
            Seen::Lost(_) => None,
        }
    }
}

/// When a rule or an isolation decided last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hits {
    /// Packets that are accounted for.
    seen: u64,
    /// Nanoseconds of the monotonic clock.
    last: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    lost: u64,
    history: VecDeque<Numbered>,
    hits: BTreeMap<u32, Hits>,
}

/// Keeps verdicts and hands them out.
#[derive(Debug)]
pub struct Recorder {
    state: Mutex<State>,
    sender: broadcast::Sender<Numbered>,
    /// Whose they are.
    pub names: Names,
}

/// An observer's beginning: nothing between the two parts is missing or there twice.
#[derive(Debug)]
pub struct Watch {
    /// What is kept, from the oldest on.
    pub history: Vec<Numbered>,
    /// The number that comes after it.
    pub next: u64,
    /// What comes from now on.
    pub receiver: broadcast::Receiver<Numbered>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { state: Mutex::default(), sender: broadcast::channel(OBSERVER_LAG).0, names: Names::default() }
    }
}

impl Recorder {
    /// A verdict fell.
    pub fn record(&self, event: Event) {
        let mut state = self.state();
        if event.counter != COUNTER_NONE {
            let hits = state.hits.entry(event.counter).or_default();
            hits.seen += 1;
            hits.last = Some(event.time);
        }
        self.tell(&mut state, Seen::Event(event));
    }

    /// Verdicts fell that were not told.
    pub fn lose(&self, lost: u64) {
        if lost > 0 {
            let mut state = self.state();
            state.lost += lost;
            self.tell(&mut state, Seen::Lost(lost));
        }
    }

    /// Verdicts that were not told since this agent started.
    pub fn lost(&self) -> u64 {
        self.state().lost
    }

    /// What is kept, and what comes.
    pub fn watch(&self) -> Watch {
        let state = self.state();
        Watch {
            history: state.history.iter().copied().collect(),
            next: state.next,
            receiver: self.sender.subscribe(),
        }
    }

    /// A counter counts something new, by a change that began then, and stands at `packets`.
    pub fn renamed(&self, counter: u32, packets: u64, began: u64) {
        let mut state = self.state();
        let hits = state.hits.entry(counter).or_default();
        // What was told since then is of the new name already.
        *hits = Hits { seen: packets, last: hits.last.filter(|last| *last >= began) };
    }

    /// Compares with the kernel's counters after a loss: what they hold beyond the verdicts that were told fell
    /// just now, by what is known.
    pub fn catch_up(&self, packets: impl IntoIterator<Item = (u32, u64)>, now: u64) {
        let mut state = self.state();
        for (counter, packets) in packets {
            let hits = state.hits.entry(counter).or_default();
            if packets > hits.seen {
                hits.last = Some(now);
            }
            hits.seen = packets;
        }
    }

    /// When a counter grew last, by the monotonic clock; `None` if it has not since this agent started.
    pub fn last_hit(&self, counter: u32) -> Option<u64> {
        self.state().hits.get(&counter).and_then(|hits| hits.last)
    }

    fn tell(&self, state: &mut State, seen: Seen) {
        let numbered = Numbered { before: state.next, seen };
        state.next += seen.weight();
        if state.history.len() == HISTORY {
            state.history.pop_front();
        }
        state.history.push_back(numbered);
        // Under the lock, so that those who come now see it once. Nobody may be listening.
        let _ = self.sender.send(numbered);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn event(counter: u32, time: u64) -> Event {
        Event { counter, time, ..Event::default() }
    }

    #[test]
    fn a_loss_is_a_gap_in_the_numbers() {
        let recorder = Recorder::default();
        recorder.record(event(0, 1));
        recorder.lose(5);
        recorder.lose(0);
        recorder.record(event(0, 2));
        let watch = recorder.watch();
        let numbers: Vec<u64> = watch.history.iter().map(|one| one.before).collect();
        assert_eq!((numbers, watch.next, recorder.lost()), (vec![0, 1, 6], 7, 5));
    }

    #[test]
    fn what_comes_follows_on_what_was_kept() {
        let recorder = Recorder::default();
        recorder.record(event(0, 1));
        let mut watch = recorder.watch();
        recorder.record(event(0, 2));
        assert_eq!(watch.history.len(), 1);
        assert_eq!(watch.receiver.try_recv().unwrap().before, watch.next);
    }

    #[test]
    fn history_is_bounded_and_keeps_the_newest() {
        let recorder = Recorder::default();
        for time in 0..=HISTORY as u64 {
            recorder.record(event(0, time));
        }
        let history = recorder.watch().history;
        assert_eq!((history.len(), history.first().unwrap().before), (HISTORY, 1));
    }

    #[test]
    fn last_hits_come_from_verdicts_and_after_a_loss_from_counters() {
        let recorder = Recorder::default();
        recorder.renamed(7, 40, 0);
        assert_eq!(recorder.last_hit(7), None);
        recorder.record(event(7, 10));
        recorder.catch_up([(7, 41)], 99);
        assert_eq!(recorder.last_hit(7), Some(10), "nothing is missing");
        recorder.catch_up([(7, 42)], 99);
        assert_eq!(recorder.last_hit(7), Some(99));
        recorder.renamed(7, 0, 100);
        assert_eq!(recorder.last_hit(7), None);
        recorder.record(event(7, 120));
        recorder.renamed(7, 1, 110);
        assert_eq!(recorder.last_hit(7), Some(120), "it fell under the new name");
    }
}
