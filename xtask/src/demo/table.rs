//! What `portcullis-lab probe -o json` found, as one table: who reaches whom, on which ports.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::workspace::{array, text};

/// Reachability by (port, from, to), as characters of the matrix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pods: Vec<String>,
    ports: Vec<u64>,
    cells: BTreeMap<(u64, usize, usize), char>,
}

impl Table {
    /// Reads the array of matrices, all over the same pods.
    pub(super) fn parse(json: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(json).context("reading the matrix")?;
        let matrices = value.as_array().context("the matrix is no array")?;
        let mut table = Self { pods: Vec::new(), ports: Vec::new(), cells: BTreeMap::new() };
        for matrix in matrices {
            let pods: Vec<String> =
                array(matrix, "order").iter().filter_map(Value::as_str).map(short).collect();
            ensure!(table.pods.is_empty() || table.pods == pods, "the matrices differ in their pods");
            table.pods = pods;
            let port = matrix.get("port").and_then(Value::as_u64).context("a matrix without port")?;
            ensure!(text(matrix, "protocol") == "TCP", "the demo knows TCP only");
            table.ports.push(port);
            for (from, row) in array(matrix, "rows").iter().enumerate() {
                for (to, cell) in row.as_str().unwrap_or_default().chars().enumerate() {
                    table.cells.insert((port, from, to), cell);
                }
            }
        }
        Ok(table)
    }

    /// What the matrix says of one pair and port; none if it holds no such.
    pub(super) fn cell(&self, from: &str, to: &str, port: u64) -> Option<char> {
        let index = |name| self.pods.iter().position(|p| p == name);
        self.cells.get(&(port, index(from)?, index(to)?)).copied()
    }

    /// True if every pair reaches each other on every port.
    pub(super) fn is_open(&self) -> bool {
        !self.cells.is_empty() && self.cells.values().all(|c| matches!(c, '.' | '-'))
    }

    /// One row for each pod, one column for each, and in each cell the ports that are reached.
    pub(super) fn render(&self) -> String {
        let width = self.ports.iter().map(|p| p.to_string().len() + 1).sum::<usize>() + 1;
        let names = self.pods.iter().map(String::len).max().unwrap_or(0) + 5;
        let mut lines = format!("  {:names$}", "");
        for pod in &self.pods {
            let _ = write!(lines, "  {:width$}", format!("to {pod}"));
        }
        for (from, pod) in self.pods.iter().enumerate() {
            let _ = write!(lines, "\n  {:names$}", format!("from {pod}"));
            for to in 0..self.pods.len() {
                let _ = write!(lines, "  {:width$}", self.ports_of(from, to));
            }
        }
        lines.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    fn ports_of(&self, from: usize, to: usize) -> String {
        let word = |port: &u64| match self.cells.get(&(*port, from, to)) {
            Some('.') => port.to_string(),
            Some('-') | None => String::new(),
            Some('X') => "-".repeat(port.to_string().len()),
            Some(_) => "?".repeat(port.to_string().len()),
        };
        self.ports.iter().map(word).collect::<Vec<_>>().join(" ")
    }
}

/// A pod without its namespace: the demo has only one.
fn short(pod: &str) -> String {
    pod.rsplit('/').next().unwrap_or(pod).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"[
        {"protocol":"TCP","port":1111,"family":"ipv4","order":["x/a-0","x/b-0"],"rows":["-.","X-"]},
        {"protocol":"TCP","port":2222,"family":"ipv4","order":["x/a-0","x/b-0"],"rows":["-X",".-"]}]"#;

    #[test]
    fn cells_are_found_by_name_and_port() {
        let table = Table::parse(JSON).unwrap();
        assert_eq!(table.cell("a-0", "b-0", 1111), Some('.'));
        assert_eq!(table.cell("a-0", "b-0", 2222), Some('X'));
        assert_eq!(table.cell("a-0", "c-0", 1111), None);
        assert!(!table.is_open());
    }

    #[test]
    fn the_table_shows_ports_that_are_reached() {
        let expected = [
            "            to a-0       to b-0",
            "  from a-0               1111 ----",
            "  from b-0  ---- 2222",
        ];
        assert_eq!(Table::parse(JSON).unwrap().render(), expected.join("\n"));
    }
}
