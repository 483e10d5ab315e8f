//! Why a spec of the upstream suite failed. Its probes go to the addresses of Services, and egress to such an address is
//! not judged by its backend yet: where a policy isolates the sender, it is denied. Whether that is all that went wrong is not
//! assumed: what the spec complains of is compared with what the agents were seen to deny.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::workspace::{array, text};

/// The file with the cluster's `ServiceCIDRs`.
pub(crate) const RANGES: &str = "servicecidrs.json";

/// What the suite writes of a probe that did not go as it should; the command follows.
const BLOCKED: &str = "Expected allowed pod connection was instead BLOCKED --- run '";
const ALLOWED: &str = "Expected blocked pod connection was instead ALLOWED --- run '";
/// It probes twice; only what is still wrong then counts.
const AGAIN: &str = "(SECOND TRY)";

/// Why egress to the address of a Service is denied: the agent knows no pod by it, or knows that it is a Service's.
const REASONS: [&str; 2] = ["isolated", "service-not-resolved"];

/// Who was denied what: namespace, pod and destination.
type Denied = (String, String, IpAddr);

/// What was seen while the suite ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evidence {
    services: Vec<Range>,
    denied: BTreeMap<Denied, u64>,
}

impl Evidence {
    /// Of the files in the directory of reports.
    pub(crate) fn read(reports: &Path) -> Result<Self> {
        let mut evidence = Self::default();
        // Clusters before Kubernetes 1.33 do not tell their ranges: then nothing is known to be a Service.
        if let Ok(ranges) = fs::read_to_string(reports.join(RANGES)) {
            let list: Value = serde_json::from_str(&ranges).context("reading ServiceCIDRs")?;
            evidence.services = ranges_of(&list);
        }
        for entry in fs::read_dir(reports)?.filter_map(Result::ok) {
            if entry.path().extension().is_some_and(|extension| extension == "jsonl") {
                let lines = fs::read(entry.path())?;
                evidence.take(&String::from_utf8_lossy(&lines));
            }
        }
        Ok(evidence)
    }

    /// Lines of `observe -o json`.
    fn take(&mut self, lines: &str) {
        for line in lines.lines() {
            // The last line may be cut, and some say only how many could not be shown.
            let Ok(verdict) = serde_json::from_str::<Value>(line) else { continue };
            let (Some(pod), Ok(destination)) = (verdict.get("pod"), text(&verdict, "destination").parse())
            else {
                continue;
            };
            let denied = REASONS.contains(&text(&verdict, "reason").as_str());
            if !denied
                || text(&verdict, "direction") != "egress"
                || !verdict.get("peer").is_some_and(Value::is_null)
            {
                continue;
            }
            let who = (text(pod, "namespace"), text(pod, "name"), destination);
            let count = verdict.get("count").and_then(Value::as_u64).unwrap_or(1);
            *self.denied.entry(who).or_default() += count;
        }
    }

    /// How many packets were denied of what the spec complains of, where each complaint is of a connection to a
    /// Service that an agent denied at egress; else what is wrong beside that.
    pub(crate) fn only_services(&self, output: &str) -> Result<u64, String> {
        let last = output.rsplit(AGAIN).next().unwrap_or(output);
        if let Some(probe) = commands(last, ALLOWED).next() {
            return Err(format!("what should be denied was allowed: {probe}"));
        }
        let mut packets = 0;
        let mut complaints = 0;
        for probe in commands(last, BLOCKED) {
            complaints += 1;
            let Some((namespace, pod, address)) = parts(probe) else {
                return Err(format!("no probe that can be read: {probe}"));
            };
            if !self.services.iter().any(|range| range.holds(address)) {
                return Err(format!("what should be allowed was denied, and is no Service: {probe}"));
            }
            match self.denied.get(&(namespace.to_owned(), pod.to_owned(), address)) {
                Some(count) => packets += count,
                None => return Err(format!("no agent was seen to deny its egress: {probe}")),
            }
        }
        if complaints == 0 {
            return Err("it does not say which connection was wrong".to_owned());
        }
        Ok(packets)
    }
}

/// The commands that follow a phrase, up to the closing quote.
fn commands<'a>(output: &'a str, phrase: &'a str) -> impl Iterator<Item = &'a str> {
    output.split(phrase).skip(1).map(|rest| rest.split('\'').next().unwrap_or_default())
}

/// `kubectl exec POD -n NAMESPACE -- /agnhost connect ADDRESS:PORT ...`
fn parts(command: &str) -> Option<(&str, &str, IpAddr)> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let after = |word: &str| {
        let at = words.iter().position(|found| *found == word)?;
        words.get(at + 1).copied()
    };
    let (address, _port) = after("connect")?.rsplit_once(':')?;
    let address = address.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    Some((after("-n")?, after("exec")?, address))
}

/// A prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: IpAddr,
    length: u32,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (first, length) = text.split_once('/')?;
        let (first, length): (IpAddr, u32) = (first.parse().ok()?, length.parse().ok()?);
        (length <= bits(first).1).then_some(Self { first, length })
    }

    fn holds(self, address: IpAddr) -> bool {
        let ((first, width), (other, same)) = (bits(self.first), bits(address));
        // A shift by the whole width is of no use: every address is in such a range.
        let shift = |bits: u128| bits.checked_shr(width - self.length).unwrap_or_default();
        width == same && shift(first) == shift(other)
    }
}

/// An address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (address.to_bits().into(), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

fn ranges_of(list: &Value) -> Vec<Range> {
    let specs = array(list, "items").iter().filter_map(|item| item.get("spec"));
    specs.flat_map(|spec| array(spec, "cidrs")).filter_map(Value::as_str).filter_map(Range::parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn evidence() -> Evidence {
        let list = json!({"items": [{"spec": {"cidrs": ["10.96.0.0/16", "fd96::/112"]}}]});
        let mut evidence = Evidence { services: ranges_of(&list), ..Evidence::default() };
        let verdict = |pod: &str, destination: &str, peer: Value| {
            json!({"pod": {"namespace": "x-1", "name": pod}, "destination": destination, "peer": peer,
                "reason": "isolated", "direction": "egress", "count": 2})
            .to_string()
        };
        let lines = [
            verdict("a", "10.96.0.7", Value::Null),
            verdict("a", "10.96.0.7", Value::Null),
            verdict("b", "10.96.0.8", json!({"namespace": "x-1", "name": "c"})),
            "{\"lost\": 3}".to_owned(),
            "{\"pod\": {".to_owned(),
        ];
        evidence.take(&lines.join("\n"));
        evidence
    }

    fn complaint(phrase: &str, pod: &str, address: &str) -> String {
        format!("I0101 {phrase}kubectl exec {pod} -n x-1 -- /agnhost connect {address}:80 --timeout=1s'\n")
    }

    #[test]
    fn a_service_that_was_denied_at_egress_explains_a_failure() {
        assert_eq!(evidence().only_services(&complaint(BLOCKED, "a", "10.96.0.7")), Ok(4));
    }

    #[test]
    fn anything_else_explains_nothing() {
        for (output, part) in [
            (complaint(ALLOWED, "a", "10.96.0.7"), "was allowed"),
            (complaint(BLOCKED, "a", "10.244.0.7"), "is no Service"),
            (complaint(BLOCKED, "b", "10.96.0.8"), "no agent was seen"),
            (complaint(BLOCKED, "a", "10.96.0.9"), "no agent was seen"),
            (complaint(BLOCKED, "a", "[fd96::7]"), "no agent was seen"),
            (complaint(BLOCKED, "a", "name"), "no probe that can be read"),
            ("timed out".to_owned(), "does not say"),
            (complaint(BLOCKED, "a", "10.96.0.7") + &complaint(ALLOWED, "c", "10.96.0.7"), "was allowed"),
        ] {
            let why = evidence().only_services(&output).unwrap_err();
            assert!(why.contains(part), "{part}: {why}");
        }
    }

    #[test]
    fn what_was_right_at_the_second_try_does_not_count() {
        let output = complaint(ALLOWED, "a", "10.96.0.7")
            + "retrying (SECOND TRY)\n"
            + &complaint(BLOCKED, "a", "10.96.0.7");
        assert_eq!(evidence().only_services(&output), Ok(4));
    }

    #[test]
    fn ranges_hold_addresses_of_their_family() {
        let holds = |range: &str, address: &str| Range::parse(range).unwrap().holds(address.parse().unwrap());
        assert!(holds("10.96.0.0/16", "10.96.255.255") && !holds("10.96.0.0/16", "10.97.0.0"));
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "::1") && holds("::/0", "::1"));
        assert_eq!(Range::parse("10.0.0.0/33"), None);
    }
}
