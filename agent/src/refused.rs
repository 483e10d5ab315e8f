//! Flows that found their pod's table full: what the programs count, as a warning that is said once in a while.

use std::time::{Duration, Instant};

use portcullis_policy::model::{Problem, Severity};

/// How often at most the warning is said; a minute without a refused flow ends it.
const PAUSE: Duration = Duration::from_mins(1);

/// What was said of the count, and when.
#[derive(Debug)]
pub(crate) struct RefusedFlows {
    said: u64,
    at: Option<Instant>,
}

impl RefusedFlows {
    /// Counts from what earlier agents have seen.
    pub(crate) const fn new(total: u64) -> Self {
        Self { said: total, at: None }
    }

    /// Looks at the count: `None` where there is no news, else the problems that are there from now on.
    pub(crate) fn look(&mut self, total: u64, now: Instant) -> Option<Vec<Problem>> {
        if self.at.is_some_and(|at| now.saturating_duration_since(at) < PAUSE) {
            return None;
        }
        let new = total.saturating_sub(self.said);
        self.said = total;
        if new == 0 {
            return self.at.take().map(|_| Vec::new());
        }
        self.at = Some(now);
        Some(vec![Problem::of_node(
            Severity::Warning,
            format!(
                "{new} flows were not made, {total} in all, because their pod's table was full; their packets passed, \
                 and replies to them are judged by policy: start the agent with a larger --flows-per-endpoint"
            ),
        )])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_count_is_said_once_a_minute_and_ends() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut flows = RefusedFlows::new(7);
        assert_eq!(flows.look(7, start), None, "what was there before is no news");
        let said = flows.look(10, start).unwrap();
        assert!(said[0].message.starts_with("3 flows were not made, 10 in all"), "{}", said[0]);
        assert_eq!(said[0].severity, Severity::Warning);
        assert_eq!(flows.look(500, after(59)), None);
        assert!(flows.look(500, after(60)).unwrap()[0].message.starts_with("490 flows"));
        assert_eq!(flows.look(500, after(119)), None);
        assert_eq!(flows.look(500, after(120)), Some(Vec::new()), "it has ended");
        assert_eq!(flows.look(500, after(121)), None);
    }
}
