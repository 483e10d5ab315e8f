//! The benchmark, every part of it, for a few seconds each: that it measures what it says, and says it. What it
//! measures is nobody's business here.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::process::Command;

use portcullis_tests::privilege::is_root;
use serde_json::Value;

/// What a part prints for programs.
fn quick(part: &str) -> Option<Value> {
    if !is_root("the benchmark") {
        return None;
    }
    let mut bench = Command::new(env!("CARGO_BIN_EXE_portcullis-bench"));
    let output = bench.args(["--quick", "--output", "json", "--only", part]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{part}: {said}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn are_positive(rows: &Value, field: &str) {
    let rows = rows.as_array().unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        let median = row[field]["median"].as_f64().unwrap();
        assert!(median > 0.0, "{field}: {row}");
    }
}

#[test]
fn packets_are_measured() {
    let Some(found) = quick("packets") else { return };
    are_positive(&found["measured"], "ns");
    assert_eq!(found["flatness"].as_array().unwrap().len(), 4);
}

#[test]
fn events_are_measured() {
    let Some(found) = quick("events") else { return };
    assert!(!found["events"].as_array().unwrap().is_empty());
}

#[test]
fn packets_of_many_flows_are_measured() {
    let Some(found) = quick("flows") else { return };
    let rows = &found["flows"]["measured"];
    are_positive(rows, "ns");
    are_positive(rows, "emptyNs");
    let choices: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["packets"].as_str().unwrap()).collect();
    assert_eq!(choices, ["uniform", "uniform", "zipf", "new", "new", "table full"]);
}

fn of_engine<'a>(rows: &'a Value, engine: &str) -> Vec<&'a Value> {
    rows.as_array().unwrap().iter().filter(|row| row["between"] == engine).collect()
}

#[test]
fn connections_are_measured_beside_what_users_have() {
    let Some(found) = quick("baseline") else { return };
    let rows = &found["baseline"]["measured"];
    are_positive(rows, "cpuRatio");
    assert_eq!(of_engine(rows, "no policy").len(), 3, "stream, requests, connections");
    assert_eq!(of_engine(rows, "portcullis").len(), 3);
    // These are other projects' tools, and may not be there: then it says so.
    let lacking = found["baseline"]["lacking"].as_array().unwrap();
    let others = of_engine(rows, "iptables").len() + of_engine(rows, "nftables").len();
    assert_eq!(others, 6 - 3 * lacking.len(), "{lacking:?}");
    for line in lacking {
        println!("skipped: {line}");
    }
}

#[test]
fn off_and_on_are_measured() {
    let Some(found) = quick("off-on") else { return };
    let rows = &found["offOn"]["measured"];
    are_positive(rows, "cpuRatio");
    assert_eq!(rows.as_array().unwrap().len(), 6);
}
