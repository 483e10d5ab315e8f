//! What is aimed at, and the words for having met it.

/// The machine on which the targets were set takes this for the empty program, in nanoseconds.
const EMPTY: f64 = 37.0;
/// An established packet there, at most.
const ESTABLISHED: f64 = 100.0;
/// A packet that opens a flow there, at most.
const NEW: f64 = 750.0;
/// New flows cost the same for 100 peers as for 10,000, within this share.
pub(crate) const FLAT_PEERS: Flatness = Flatness { from: 100, to: 10_000, share: 0.15 };
/// New flows cost the same for one rule as for 1,000, within this share.
pub(crate) const FLAT_RULES: Flatness = Flatness { from: 1, to: 1_000, share: 0.05 };
/// End to end, against no policy, at most this share more.
pub(crate) const END_TO_END: f64 = 0.06;

/// How little a cost may grow over a range of sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flatness {
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) share: f64,
}

/// A bound for what one packet costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Established,
    New,
}

/// What a packet took against its bounds. Machines differ, so there are two: as many times the empty program, and
/// as many nanoseconds on top of it, as on the machine of the targets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judged {
    pub(crate) times: f64,
    pub(crate) most_times: f64,
    pub(crate) above: f64,
    pub(crate) most_above: f64,
}

impl Packet {
    const fn limit(self) -> f64 {
        match self {
            Self::Established => ESTABLISHED,
            Self::New => NEW,
        }
    }

    pub(crate) fn judge(self, ours: f64, empty: f64) -> Judged {
        Judged {
            times: ours / empty,
            most_times: self.limit() / EMPTY,
            above: ours - empty,
            most_above: self.limit() - EMPTY,
        }
    }
}

impl Judged {
    pub(crate) fn is_met_scaled(&self) -> bool {
        self.times <= self.most_times
    }

    pub(crate) fn is_met_above(&self) -> bool {
        self.above <= self.most_above
    }

    /// Both bounds in words.
    pub(crate) fn words(&self) -> String {
        format!(
            "{:.1}x of {:.1}x: target {}; {:.0} above empty, of {:.0}: target {}",
            self.times,
            self.most_times,
            met(self.is_met_scaled()),
            self.above,
            self.most_above,
            met(self.is_met_above())
        )
    }
}

pub(crate) const fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_of_the_targets_meets_them_just() {
        let at = |ns| Packet::Established.judge(ns, EMPTY);
        assert!(at(ESTABLISHED).is_met_scaled() && at(ESTABLISHED).is_met_above());
        assert!(!at(ESTABLISHED + 1.0).is_met_scaled() && !at(ESTABLISHED + 1.0).is_met_above());
    }

    #[test]
    fn a_faster_machine_may_meet_one_only() {
        let judged = Packet::Established.judge(60.0, 15.0);
        assert!(!judged.is_met_scaled() && judged.is_met_above(), "{}", judged.words());
    }
}
