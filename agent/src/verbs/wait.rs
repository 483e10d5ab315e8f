//! `wait`: returns when something is in force on this node.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Failure;
use crate::api::{Request, client};
use crate::observe::filter::NameText;
use crate::output::{self, Exit};

/// The longest time to wait.
const MOST: Duration = Duration::from_hours(1);

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitRequest {
    /// A policy, as the source shows it now.
    pub policy: NameText,
    /// How long, in milliseconds.
    pub milliseconds: u64,
}

/// It is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// On this node.
    pub node: Option<String>,
}

/// A time: `30s`, `500ms`, `2m`, or a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeText(pub Duration);

/// No time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("write a number with ms, s or m behind it, up to 60m")]
pub struct BadTime;

impl FromStr for TimeText {
    type Err = BadTime;

    fn from_str(text: &str) -> Result<Self, BadTime> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| BadTime)?;
        let milliseconds = match unit {
            "ms" => Some(number),
            "" | "s" => number.checked_mul(1_000),
            "m" => number.checked_mul(60_000),
            _ => None,
        };
        let time = milliseconds.map(Duration::from_millis).filter(|time| *time <= MOST);
        time.map(Self).ok_or(BadTime)
    }
}

/// Asks the running agent.
pub fn policy(run_dir: &Path, policy: NameText, time: TimeText) -> Result<Exit, Failure> {
    let name = policy.to_string();
    let milliseconds = u64::try_from(time.0.as_millis()).unwrap_or(u64::MAX);
    let asked = client::ask(run_dir, &Request::Wait(WaitRequest { policy, milliseconds }))?;
    asked.wait_for_ever()?;
    let Waited { node } = asked.answer()?;
    let here = node.map_or_else(|| "here".to_owned(), |node| format!("on {node}"));
    output::print(&format!("NetworkPolicy {name} is in force {here}\n")).map_err(Failure::Output)?;
    Ok(Exit::Fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        let read = |text: &str| text.parse::<TimeText>().map(|time| time.0);
        assert_eq!(read("30"), Ok(Duration::from_secs(30)));
        assert_eq!(read("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(read("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "s", "-1s", "1h", "61m", "99999999999999999999s", "1.5s"] {
            assert_eq!(read(bad), Err(BadTime), "{bad}");
        }
    }
}
