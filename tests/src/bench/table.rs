//! Results for people and for programs.

use portcullis_common::event::Direction;
use serde_json::{Value, json};

use crate::Conditions;
use crate::measure::{Results, Times, What};
use crate::scenario::{Case, Family, Peers, Sizes};

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
    out
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
pub(crate) fn json(conditions: &Conditions, results: &Results) -> Value {
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
    json!({
        "kernel": conditions.kernel,
        "seed": conditions.seed,
        "rounds": conditions.rounds,
        "packets": conditions.packets,
        "seconds": conditions.seconds,
        "empty": {"ns": times(&results.empty)},
        "telling": {"eventSent": {"ns": times(&results.telling.told)}, "countedOnly": {"ns": times(&results.telling.counted)}},
        "measured": measured,
    })
}
