//! The monotonic clock, which events and flows are stamped by, and the wall clock, which people read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// The wall clock's lead over the monotonic one, in nanoseconds; 0 until it is asked for.
static LEAD: AtomicU64 = AtomicU64::new(0);
/// A lead that differs by more was set; one that differs by less was read a moment later.
const STEP: u64 = 1_000_000;

/// How often the two clocks are read together at most.
const TRIES: u32 = 8;

/// Nanoseconds of the monotonic clock: what `bpf_ktime_get_ns` tells.
#[must_use]
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    nanoseconds(now)
}

/// Its seconds, as flows are stamped by.
#[must_use]
pub fn monotonic_seconds() -> u32 {
    u32::try_from(monotonic() / 1_000_000_000).unwrap_or(u32::MAX)
}

/// When a moment of the monotonic clock was: the same each time, unless somebody set the wall clock.
#[must_use]
pub fn wall_time(moment: u64) -> SystemTime {
    let known = LEAD.load(Ordering::Relaxed);
    let lead = match read_lead() {
        Some(lead) if lead.abs_diff(known) > STEP => {
            LEAD.store(lead, Ordering::Relaxed);
            lead
        }
        Some(_) | None => known,
    };
    UNIX_EPOCH + Duration::from_nanos(lead.saturating_add(moment))
}

/// `None` where this thread was never left alone for long enough to read both clocks.
fn read_lead() -> Option<u64> {
    (0..TRIES).find_map(|_| {
        let before = monotonic();
        let wall = nanoseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        (monotonic().saturating_sub(before) < STEP / 2).then(|| wall.saturating_sub(before))
    })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_each_time() {
        let moment = monotonic();
        let first = wall_time(moment);
        assert!((0..1_000).all(|_| wall_time(moment) == first));
        let apart = SystemTime::now().duration_since(first).unwrap_or_default();
        assert!(apart < Duration::from_mins(1), "{apart:?}");
    }
}
