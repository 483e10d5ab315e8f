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
