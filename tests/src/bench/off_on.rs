//! Ours off against ours on, and off against off by the same pairs in the same run: what chance makes is no
//! difference.

use anyhow::Result;
use portcullis_oracle::rng::SplitMix64;

use crate::baseline;
use crate::pairs::{self, Engine, Plan, Rig, Row, Setup};

/// Policies for each pod.
const POLICIES: u32 = 100;

pub(crate) fn measure(plan: Plan, rng: &mut SplitMix64) -> Result<Vec<Row>> {
    let setups =
        [Setup { engine: Engine::Nothing, policies: 0 }, Setup { engine: Engine::Ours, policies: POLICIES }];
    Rig::new()?.measure(plan, &setups, rng)
}

/// For people.
pub(crate) fn text(plan: Plan, rows: &[Row]) -> String {
    use std::fmt::Write as _;

    let mut out = format!(
        "\nOff, on, on, off, {} times, {:.2} s each time, {POLICIES} policies for each of two pods on one CPU: CPU \
         time a unit, on by off,\nmedian (and between what half of them lie), beside off by off. A difference inside \
         the spread of off by off is 0\n",
        plan.pairs,
        plan.slice.as_secs_f64() * 4.0
    );
    let noises = pairs::noises(rows);
    for row in rows {
        let (spread, (off, on)) = (row.spread(), row.cost());
        let what = match row.setup.engine {
            Engine::Nothing => "off by off",
            Engine::Ours | Engine::Iptables | Engine::Nftables => "on by off",
        };
        let _ = writeln!(
            out,
            "{what:>10} {:>12}  {:>6.3} ({:.3} to {:.3})  {off:>7.2} {on:>7.2} us a {:<10} {}",
            row.workload.name(),
            spread.median,
            spread.low,
            spread.high,
            row.workload.unit(),
            baseline::verdict(row, noises.get(&row.workload).copied().unwrap_or(0.0)),
        );
    }
    out
}
