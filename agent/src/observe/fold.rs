//! Repeats as one line with a count, for one observer. Keeps what has to wait for its repeats, and for names that
//! are published a moment after the first verdicts fall under them. Nothing is dropped: what is over the bound goes
//! out early, and every gap in the numbers comes out as a loss, in its place.

use std::collections::{HashMap, VecDeque};

use portcullis_common::addr::Addr;
use portcullis_common::event::Event;

use super::{Numbered, Seen};

/// Repeats within this time of the first one are one line, in nanoseconds.
pub const FOLD_WINDOW: u64 = 500_000_000;
/// How long a line waits for its names where nothing is folded, in nanoseconds.
const NAME_DELAY: u64 = 100_000_000;
/// Lines that wait at most.
const MAX_WAITING: usize = 8_192;

/// Whether repeats become one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Folding {
    /// They do.
    Fold,
    /// Each has its own.
    Each,
}

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folded {
    /// A verdict, and its repeats.
    Line(Line),
    /// This many were not told.
    Lost(u64),
}

/// A verdict, and its repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The first.
    pub first: Event,
    /// When the last fell, nanoseconds of the monotonic clock.
    pub last_time: u64,
    /// How many they are.
    pub count: u64,
    /// From the IP headers on, all together.
    pub bytes: u64,
}

/// What repeats have in common. Addresses and not pods: they are the same only if the pods are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    outcome: u8,
    direction: u8,
    reason: u8,
    protocol: u8,
    slot: u32,
    counter: u32,
    local: Addr,
    remote: Addr,
    destination_port: u16,
    via: Addr,
    via_port: u16,
}

impl Key {
    fn of(event: &Event) -> Self {
        // Ingress is 0: the pod's port is the destination's.
        let destination_port = if event.direction == 0 { event.local_port } else { event.remote_port };
        Self {
            outcome: event.outcome,
            direction: event.direction,
            reason: event.reason,
            protocol: event.protocol,
            slot: event.slot,
            counter: event.counter,
            local: event.local,
            remote: event.remote,
            destination_port,
            via: event.via,
            via_port: event.via_port,
        }
    }
}

/// Folds what one observer is told.
#[derive(Debug)]
pub struct Folder {
    folding: Folding,
    /// With the time at which each came.
    waiting: VecDeque<(u64, Folded)>,
    /// How many have gone out of `waiting`.
    gone: u64,
    /// Number of a line, `gone` and up.
    lines: HashMap<Key, u64>,
    /// Verdicts before the next that is to be told.
    expected: u64,
}

impl Folder {
    /// Of what comes from this number on.
    #[must_use]
    pub fn new(folding: Folding, expected: u64) -> Self {
        Self { folding, waiting: VecDeque::new(), gone: 0, lines: HashMap::new(), expected }
    }

    /// Takes what was told; `now` in nanoseconds of the monotonic clock.
    pub fn take(&mut self, numbered: &Numbered, now: u64) {
        self.lose(numbered.before.saturating_sub(self.expected), now);
        self.expected = numbered.before.saturating_add(numbered.seen.weight());
        match numbered.seen {
            Seen::Lost(lost) => self.lose(lost, now),
            Seen::Event(event) => self.line(event, now),
        }
    }

    fn lose(&mut self, lost: u64, now: u64) {
        if lost == 0 {
            return;
        }
        match self.waiting.back_mut() {
            Some((_, Folded::Lost(before))) => *before += lost,
            Some((_, Folded::Line(_))) | None => self.waiting.push_back((now, Folded::Lost(lost))),
        }
    }

    fn line(&mut self, event: Event, now: u64) {
        let key = Key::of(&event);
        let line = Line { first: event, last_time: event.time, count: 1, bytes: u64::from(event.bytes) };
        match self.folding {
            Folding::Each => {}
            Folding::Fold => {
                let place = self.lines.get(&key).and_then(|number| number.checked_sub(self.gone));
                let held = place.and_then(|place| self.waiting.get_mut(usize::try_from(place).ok()?));
                if let Some((_, Folded::Line(held))) = held
                    && event.time.abs_diff(held.first.time) <= FOLD_WINDOW
                {
                    held.count += 1;
                    held.bytes += u64::from(event.bytes);
                    held.last_time = held.last_time.max(event.time);
                    return;
                }
                self.lines.insert(key, self.gone + self.waiting.len() as u64);
            }
        }
        self.waiting.push_back((now, Folded::Line(line)));
    }

    /// What has waited long enough, oldest first.
    pub fn due(&mut self, now: u64) -> Vec<Folded> {
        let patience = match self.folding {
            Folding::Fold => FOLD_WINDOW,
            Folding::Each => NAME_DELAY,
        };
        let mut due = Vec::new();
        while let Some((came, _)) = self.waiting.front() {
            if now.saturating_sub(*came) < patience && self.waiting.len() <= MAX_WAITING {
                break;
            }
            due.extend(self.next());
        }
        due
    }

    /// Everything that waits.
    pub fn rest(&mut self) -> Vec<Folded> {
        let mut rest = Vec::new();
        while let Some(folded) = self.next() {
            rest.push(folded);
        }
        rest
    }

    fn next(&mut self) -> Option<Folded> {
        let (_, folded) = self.waiting.pop_front()?;
        if let (Folded::Line(line), Folding::Fold) = (&folded, self.folding) {
            let key = Key::of(&line.first);
            // A later line may have its place.
            if self.lines.get(&key) == Some(&self.gone) {
                self.lines.remove(&key);
            }
        }
        self.gone += 1;
        Some(folded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn event(time: u64, remote_port: u16) -> Event {
        Event { time, remote_port, direction: 1, bytes: 10, ..Event::default() }
    }

    fn take(folder: &mut Folder, before: u64, event: Event) {
        folder.take(&Numbered { before, seen: Seen::Event(event) }, event.time);
    }

    /// Counts of lines, and losses as negative numbers.
    fn counts(folded: &[Folded]) -> Vec<i64> {
        let count = |folded: &Folded| match folded {
            Folded::Line(line) => i64::try_from(line.count).unwrap_or(i64::MAX),
            Folded::Lost(lost) => -i64::try_from(*lost).unwrap_or(i64::MAX),
        };
        folded.iter().map(count).collect()
    }

    #[test]
    fn repeats_are_one_line_with_first_and_last_time() {
        let mut folder = Folder::new(Folding::Fold, 0);
        for (number, port) in [53, 80, 53, 53].into_iter().enumerate() {
            take(&mut folder, number as u64, event(number as u64, port));
        }
        assert_eq!(folder.due(3), [], "they wait for repeats");
        let due = folder.due(FOLD_WINDOW + 1);
        assert_eq!(counts(&due), [3, 1]);
        let Some(Folded::Line(line)) = due.first() else { panic!("{due:?}") };
        assert_eq!((line.first.time, line.last_time, line.bytes), (0, 3, 30));
    }

    #[test]
    fn the_sender_s_port_does_not_tell_repeats_apart_and_everything_else_does() {
        let base = event(0, 53);
        let differing = [
            Event { direction: 0, ..base },
            Event { outcome: 1, ..base },
            Event { reason: 2, ..base },
            Event { slot: 1, ..base },
            Event { counter: 1, ..base },
            Event { protocol: 17, ..base },
            Event { remote: Addr::v4([10, 0, 0, 1]), ..base },
            Event { local: Addr::v4([10, 0, 0, 1]), ..base },
            Event { remote_port: 54, ..base },
        ];
        let mut folder = Folder::new(Folding::Fold, 0);
        take(&mut folder, 0, base);
        take(&mut folder, 1, Event { local_port: 4000, ..base });
        for (number, event) in (2..).zip(differing) {
            take(&mut folder, number, event);
        }
        assert_eq!(counts(&folder.rest()), [2, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_repeat_behind_the_window_is_a_line_of_its_own() {
        let mut folder = Folder::new(Folding::Fold, 0);
        for (number, time) in [0, SECOND, SECOND + 1].into_iter().enumerate() {
            folder.take(&Numbered { before: number as u64, seen: Seen::Event(event(time, 53)) }, 0);
        }
        assert_eq!(counts(&folder.rest()), [1, 2]);
    }

    #[test]
    fn each_has_its_own_line_where_nothing_is_folded() {
        let mut folder = Folder::new(Folding::Each, 0);
        take(&mut folder, 0, event(0, 53));
        take(&mut folder, 1, event(0, 53));
        assert_eq!(counts(&folder.due(NAME_DELAY)), [1, 1]);
    }

    #[test]
    fn gaps_and_told_losses_come_out_once_each_in_their_place() {
        let mut folder = Folder::new(Folding::Fold, 10);
        take(&mut folder, 10, event(0, 1));
        folder.take(&Numbered { before: 11, seen: Seen::Lost(5) }, 0);
        // From 16 to 99 the observer was too slow, a told loss among it.
        folder.take(&Numbered { before: 100, seen: Seen::Lost(7) }, 0);
        take(&mut folder, 107, event(0, 2));
        assert_eq!(counts(&folder.rest()), [1, -96, 1]);
    }

    #[test]
    fn too_many_lines_go_out_early_and_none_is_dropped() {
        let mut folder = Folder::new(Folding::Fold, 0);
        let mut out = Vec::new();
        let many = MAX_WAITING as u64 * 3;
        for number in 0..many {
            let port = u16::try_from(number % 60_000).unwrap_or(0);
            take(&mut folder, number, event(0, port));
            out.extend(folder.due(0));
            assert!(folder.waiting.len() <= MAX_WAITING && folder.lines.len() <= MAX_WAITING);
        }
        out.extend(folder.rest());
        assert_eq!(counts(&out).iter().sum::<i64>(), i64::try_from(many).unwrap_or(0));
    }
}
