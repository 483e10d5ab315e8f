//! Differential fuzzers of the packet path: random packets, alone and in sequences, to the loaded programs and to the
//! oracle. Everything follows from a seed; threads take units of work, and what a unit finds depends on its number
//! alone.

pub mod frames;
pub mod rig;
pub mod script;
pub mod sequences;
pub mod stateful;
pub mod stateless;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use portcullis_oracle::rng::SplitMix64;

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// After so long, also within a unit.
    pub time: Duration,
    /// After so many units.
    pub units: u64,
}

/// The end of a run's time.
#[derive(Clone, Copy, Debug)]
pub struct End(Option<Instant>);

impl End {
    /// True once it has come.
    #[must_use]
    pub fn has_come(self) -> bool {
        self.0.is_some_and(|end| Instant::now() >= end)
    }
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Packets or sequences that were compared.
    pub compared: u64,
    /// Packets that were put to the programs.
    pub packets: u64,
    /// How often each pair of answers differed.
    pub wrong: BTreeMap<Difference, u64>,
    /// Some of the cases, the first of each pair.
    pub cases: BTreeMap<Difference, String>,
    /// How often each answer was given: a run that never comes to one says nothing of it.
    pub answers: BTreeMap<&'static str, u64>,
}

/// Two answers that should be one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// What the oracle says.
    pub oracle: String,
    /// What the programs say.
    pub program: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oracle {}, program {}", self.oracle, self.program)
    }
}

impl Findings {
    /// Differences in all.
    #[must_use]
    pub fn mismatches(&self) -> u64 {
        self.wrong.values().sum()
    }

    /// Notes a difference; the first of its pair is described.
    pub fn note(&mut self, difference: Difference, case: impl FnOnce() -> String) {
        *self.wrong.entry(difference.clone()).or_default() += 1;
        self.cases.entry(difference).or_insert_with(case);
    }

    fn add(&mut self, other: Self) {
        self.compared += other.compared;
        self.packets += other.packets;
        for (difference, times) in other.wrong {
            *self.wrong.entry(difference).or_default() += times;
        }
        for (difference, case) in other.cases {
            self.cases.entry(difference).or_insert(case);
        }
        for (answer, times) in other.answers {
            *self.answers.entry(answer).or_default() += times;
        }
    }
}

/// A seed for one of many uses of another.
#[must_use]
pub fn seed_of(seed: u64, number: u64) -> u64 {
    SplitMix64::new(seed ^ SplitMix64::new(number).next_u64()).next_u64()
}

/// Runs units on threads, each with a worker of its own, and adds up what they find in the units' order. A unit that is told
/// that time is over ends early.
pub fn on_threads<W>(
    threads: usize,
    extent: Extent,
    worker: impl Fn() -> Result<W> + Sync,
    unit: impl Fn(&mut W, u64, End) -> Result<Findings> + Sync,
) -> Result<Findings> {
    // None is further away than the clock goes.
    let end = End(Instant::now().checked_add(extent.time));
    let next = AtomicU64::new(0);
    let found: Mutex<BTreeMap<u64, Findings>> = Mutex::new(BTreeMap::new());
    let work = || -> Result<()> {
        let mut worker = worker()?;
        while !end.has_come() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= extent.units {
                break;
            }
            let findings = unit(&mut worker, number, end)?;
            found.lock().expect("no thread panics with it").insert(number, findings);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker ends"))
    })?;
    let mut sum = Findings::default();
    for findings in found.into_inner().expect("no thread panics with it").into_values() {
        sum.add(findings);
    }
    Ok(sum)
}

/// Bytes as they are written in a case.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
