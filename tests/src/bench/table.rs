//! Results for people and for programs.

use portcullis_common::event::Direction;
use serde_json::{Value, json};

use crate::Conditions;
use crate::measure::{Results, Times, What};
use crate::scenario::{Case, Family, Peers, Sizes};
use crate::target::{self, Flatness, met};

const COLUMNS: [(Peers, Case, &str); 5] = [
    (Peers::Pods, Case::Established, "established"),
    (Peers::Pods, Case::Allowed, "SYN allowed"),
    (Peers::Pods, Case::Denied, "SYN denied"),
    (Peers::Blocks, Case::Allowed, "CIDR allowed"),
    (Peers::Blocks, Case::Denied, "CIDR denied"),
];

/// A table of all sizes, and one of the other ways at the typical size.
pub(crate) fn text(conditions: &Conditions, sizes: &Sizes, results: &Results) -> String {
    let mut out = String::new();
    line(
        &mut out,
        &format!(
            "kernel {}, seed {}, {} rounds of {} packets, {:.0} s",
            conditions.kernel, conditions.seed, conditions.rounds, conditions.packets, conditions.seconds
        ),
    );
    line(
        &mut out,
        &format!(
            "ns a packet by BPF_PROG_TEST_RUN: lowest, median, and that against the empty program's ({:.1}, {:.1})",
            results.empty.lowest, results.empty.median
        ),
    );
    let row = |label: &str, rows: Option<(u32, u32)>, direction: Direction, family: Family| {
        let cells = COLUMNS.map(|(kind, case, _)| {
            let (peers, (rule_count, peer_count)) = match (kind, rows) {
                (Peers::Blocks, _) | (_, Some(_)) => (kind, rows.unwrap_or_default()),
                (Peers::Open | Peers::Pods, None) => (Peers::Open, (0, sizes.typical().1)),
            };
            cell(results, What { peers, rule_count, peer_count, case, family, direction })
        });
        format!("{label:<13}{}", cells.concat())
    };
    let head = |label: &str| {
        let names = COLUMNS.map(|(_, _, name)| format!("  {name:>16}"));
        format!("\n{label:<13}{}", names.concat())
    };
    line(&mut out, &head(&format!("{:>6} {:>6}", "rules", "peers")));
    line(&mut out, &row("no policy", None, Direction::Ingress, Family::V4));
    for rules in &sizes.rules {
        for peers in &sizes.peers {
            let label = format!("{rules:>6} {peers:>6}");
            line(&mut out, &row(&label, Some((*rules, *peers)), Direction::Ingress, Family::V4));
        }
    }
    let (rules, peers) = sizes.typical();
    line(&mut out, &format!("\nThat was IPv4 to a pod. Other ways, with {rules} rules and {peers} peers:"));
    line(&mut out, &head(""));
    let other =
        [(Direction::Ingress, Family::V6), (Direction::Egress, Family::V4), (Direction::Egress, Family::V6)];
    for (direction, family) in other {
        let label = format!("{} {}", direction.name(), family.name());
        line(&mut out, &row(&label, Some((rules, peers)), direction, family));
        line(&mut out, &row("  no policy", None, direction, family));
    }
    line(
        &mut out,
        "\nSYN denied, IPv4 to a pod, with its event sent, and with the second's budget of events used up:",
    );
    for (label, times) in [("event sent", &results.telling.told), ("counted only", &results.telling.counted)]
    {
        let ratio = times.median / results.empty.median;
        line(&mut out, &format!("{label:<13}  {:>4.0} {:>5.0} {ratio:>4.1}x", times.lowest, times.median));
    }
    line(&mut out, "\nTargets, by the lowest of each:");
    for (what, packet, case) in [
        ("established", target::Packet::Established, Case::Established),
        ("SYN allowed", target::Packet::New, Case::Allowed),
    ] {
        let (rule_count, peer_count) = sizes.typical();
        let ours = lowest(results, Peers::Pods, case, rule_count, peer_count);
        if let Some(ours) = ours {
            line(&mut out, &format!("{what:<13}  {}", packet.judge(ours, results.empty.lowest).words()));
        }
    }
    for flat in flatness(sizes, results) {
        line(&mut out, &flat.words());
    }
    out
}

/// How much a SYN that is allowed costs at the dearest size, against the cheapest.
#[derive(Clone, Copy, Debug)]
struct Flat {
    peers: Peers,
    /// What grows.
    over: &'static str,
    target: Flatness,
    /// Of the line in which it is worst; none where the sizes do not span the target's range.
    worst: Option<f64>,
}

impl Flat {
    fn is_met(&self) -> Option<bool> {
        self.worst.map(|worst| worst <= 1.0 + self.target.share)
    }

    fn words(&self) -> String {
        let Flatness { from, to, share } = self.target;
        let what = format!("new flows by {}, {from} to {to} {}", self.peers.name(), self.over);
        self.worst.zip(self.is_met()).map_or_else(
            || format!("{what}: not measured, these sizes are not all among those asked for"),
            |(worst, is_met)| {
                format!(
                    "{what}: largest by smallest {worst:.2}, of {:.2}: target {}",
                    1.0 + share,
                    met(is_met)
                )
            },
        )
    }
}

fn flatness(sizes: &Sizes, results: &Results) -> Vec<Flat> {
    let mut all = Vec::new();
    for peers in [Peers::Pods, Peers::Blocks] {
        let at = |rules, count| lowest(results, peers, Case::Allowed, rules, count);
        let worst = |target: Flatness, along: &[u32], lines: &[u32], at: &dyn Fn(u32, u32) -> Option<f64>| {
            let within: Vec<u32> =
                along.iter().copied().filter(|size| (target.from..=target.to).contains(size)).collect();
            let is_whole = within.contains(&target.from) && within.contains(&target.to);
            let of_line = |line: u32| {
                let costs = within.iter().filter_map(|size| at(line, *size));
                let (least, most) =
                    costs.fold((f64::INFINITY, 0.0_f64), |(least, most), ns| (least.min(ns), most.max(ns)));
                most / least
            };
            is_whole.then(|| lines.iter().map(|line| of_line(*line)).fold(0.0, f64::max))
        };
        all.push(Flat {
            peers,
            over: "peers",
            target: target::FLAT_PEERS,
            worst: worst(target::FLAT_PEERS, &sizes.peers, &sizes.rules, &at),
        });
        all.push(Flat {
            peers,
            over: "rules",
            target: target::FLAT_RULES,
            worst: worst(target::FLAT_RULES, &sizes.rules, &sizes.peers, &|peers, rules| at(rules, peers)),
        });
    }
    all
}

/// What an IPv4 packet to a pod costs at least.
fn lowest(results: &Results, peers: Peers, case: Case, rule_count: u32, peer_count: u32) -> Option<f64> {
    let wanted =
        What { peers, rule_count, peer_count, case, family: Family::V4, direction: Direction::Ingress };
    results.measured.iter().find(|(what, _)| *what == wanted).map(|(_, times)| times.lowest)
}

fn cell(results: &Results, what: What) -> String {
    results.measured.iter().find(|(found, _)| *found == what).map_or_else(
        || format!("  {:>16}", "-"),
        |(_, times)| {
            let ratio = times.median / results.empty.median;
            format!("  {:>4.0} {:>5.0} {ratio:>4.1}x", times.lowest, times.median)
        },
    )
}

fn line(out: &mut String, text: &str) {
    out.push_str(text.trim_end());
    out.push('\n');
}

/// Everything that was measured.
pub(crate) fn json(conditions: &Conditions, sizes: &Sizes, results: &Results) -> Value {
    let times = |times: &Times| json!({"min": times.lowest, "median": times.median, "max": times.highest});
    let measured: Vec<Value> = results
        .measured
        .iter()
        .map(|(what, found)| {
            json!({
                "direction": what.direction.name(),
                "family": what.family.name(),
                "named": what.peers.name(),
                "rules": what.rule_count,
                "peers": what.peer_count,
                "case": what.case.name(),
                "ns": times(found),
                "timesEmpty": found.median / results.empty.median,
            })
        })
        .collect();
    let flatness: Vec<Value> = flatness(sizes, results)
        .iter()
        .map(|flat| {
            json!({
                "named": flat.peers.name(), "over": flat.over, "from": flat.target.from, "to": flat.target.to,
                "largestBySmallest": flat.worst, "atMost": 1.0 + flat.target.share, "targetMet": flat.is_met(),
            })
        })
        .collect();
    json!({
        "kernel": conditions.kernel,
        "seed": conditions.seed,
        "rounds": conditions.rounds,
        "packets": conditions.packets,
        "seconds": conditions.seconds,
        "empty": {"ns": times(&results.empty)},
        "telling": {"eventSent": {"ns": times(&results.telling.told)}, "countedOnly": {"ns": times(&results.telling.counted)}},
        "measured": measured,
        "flatness": flatness,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Telling, Times};

    fn results(cost: impl Fn(u32, u32) -> f64, sizes: &Sizes) -> Results {
        let times = |ns| Times { lowest: ns, median: ns, highest: ns };
        let what = |rule_count, peer_count| What {
            peers: Peers::Pods,
            rule_count,
            peer_count,
            case: Case::Allowed,
            family: Family::V4,
            direction: Direction::Ingress,
        };
        let pairs = sizes.rules.iter().flat_map(|rules| sizes.peers.iter().map(|peers| (*rules, *peers)));
        Results {
            empty: times(1.0),
            telling: Telling { told: times(1.0), counted: times(1.0) },
            measured: pairs.map(|(rules, peers)| (what(rules, peers), times(cost(rules, peers)))).collect(),
        }
    }

    fn of_pods(found: &[Flat]) -> Vec<Option<bool>> {
        found.iter().filter(|flat| flat.peers == Peers::Pods).map(Flat::is_met).collect()
    }

    #[test]
    fn a_cost_that_grows_with_peers_is_not_flat_over_them() {
        let sizes = Sizes { rules: vec![1, 1_000], peers: vec![1, 100, 10_000] };
        // A single peer is outside the range of the target.
        let found = flatness(&sizes, &results(|_, peers| f64::from(peers).max(50.0).log10(), &sizes));
        assert_eq!(of_pods(&found), [Some(false), Some(true)]);
        let found = flatness(&sizes, &results(|rules, _| 100.0 + f64::from(rules / 100), &sizes));
        assert_eq!(of_pods(&found), [Some(true), Some(false)]);
    }

    #[test]
    fn sizes_that_span_less_say_nothing() {
        let sizes = Sizes { rules: vec![1, 100], peers: vec![1, 100] };
        let found = flatness(&sizes, &results(|_, _| 1.0, &sizes));
        assert_eq!(of_pods(&found), [None, None]);
    }
}
