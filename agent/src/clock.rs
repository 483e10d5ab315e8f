//! The monotonic clock, which events and flows are stamped by, and the wall clock, which people read.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock: what `bpf_ktime_get_ns` tells.
#[must_use]
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// When a moment of the monotonic clock was.
#[must_use]
pub fn wall_time(nanoseconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_nanos(monotonic().saturating_sub(nanoseconds))
}
