//! What users have today beside ours: the same pods and connections with no policy, with ours, with iptables and with
//! nftables, by number of policies.

use anyhow::Result;
use portcullis_oracle::rng::SplitMix64;

use crate::pairs::{self, Engine, Plan, Rig, Row, Setup};
use crate::target;

/// Measures every engine with every number of policies, and nothing against nothing. Says what it cannot measure.
pub(crate) fn measure(plan: Plan, policies: &[u32], rng: &mut SplitMix64) -> Result<(Vec<Row>, Vec<String>)> {
    let mut rig = Rig::new()?;
    let mut setups = vec![Setup { engine: Engine::Nothing, policies: 0 }];
    let mut lacking = Vec::new();
    for engine in [Engine::Ours, Engine::Iptables, Engine::Nftables] {
        match rig.lacks(engine) {
            None => setups.extend(policies.iter().map(|policies| Setup { engine, policies: *policies })),
            Some(why) => lacking.push(format!("{}: not measured: {why}", engine.name())),
        }
    }
    Ok((rig.measure(plan, &setups, rng)?, lacking))
}

/// For people.
pub(crate) fn text(plan: Plan, rows: &[Row], lacking: &[String]) -> String {
    use std::fmt::Write as _;

    let mut out = format!(
        "\nConnections between two pods on one CPU, {} pairs of {:.2} s against no policy: CPU time a unit by that \
         without,\nmedian (and between what half of the pairs lie); units a second without and with\n",
        plan.pairs,
        plan.slice.as_secs_f64() * 4.0
    );
    let noises = pairs::noises(rows);
    for row in rows {
        let (spread, (_, cost), (without, with)) = (row.spread(), row.cost(), row.rate());
        let noise = noises.get(&row.workload).copied().unwrap_or(0.0);
        let _ = writeln!(
            out,
            "{:>11} {:>5} {:>12}  {:>6.3} ({:.3} to {:.3})  {:>10.0} {:>10.0}/s  {cost:>7.2} us a {:<10} {}",
            row.setup.engine.name(),
            row.setup.policies,
            row.workload.name(),
            spread.median,
            spread.low,
            spread.high,
            without,
            with,
            row.workload.unit(),
            verdict(row, noise),
        );
    }
    for line in lacking {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// Ours against the target; nothing against nothing says what chance makes.
pub(crate) fn verdict(row: &Row, noise: f64) -> String {
    let difference = row.spread().difference(noise);
    let words = if difference == 0.0 {
        "0: no more than chance makes".to_owned()
    } else {
        format!("{:+.1} %", difference * 100.0)
    };
    match row.setup.engine {
        Engine::Nothing => format!("chance makes {:.1} %", noise * 100.0),
        Engine::Ours => {
            let verdict = if difference == 0.0 && noise > target::END_TO_END {
                // So much might hide in it.
                "not decided"
            } else {
                target::met(difference <= target::END_TO_END)
            };
            format!("{words}, of {:.0} %: target {verdict}", target::END_TO_END * 100.0)
        }
        Engine::Iptables | Engine::Nftables => words,
    }
}
