//! A verdict as `observe` shows it, one line of JSON.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_common::addr::Addr;
use portcullis_common::event::{Direction, Outcome, Reason};
use portcullis_policy::desired::{CounterName, ip_addr};
use portcullis_policy::model::{ObjectKey, PolicyRef};
use serde::{Deserialize, Serialize};

use crate::observe::fold::Line;
use crate::output::Verdict;
use crate::verbs::explain::PolicyRef as ShownPolicy;

/// TCP, UDP, SCTP: the protocols that have ports.
const PORTED: [u8; 3] = [6, 17, 132];

/// What the agent sends an observer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Told {
    /// A line of `observe`.
    Observed(Observed),
    /// There is no more, as asked; without it the agent ended.
    End {
        /// True.
        end: bool,
    },
}

/// A line of `observe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Observed {
    /// A verdict.
    Verdict(Box<ObservedVerdict>),
    /// This many could not be shown.
    Lost {
        /// How many.
        lost: u64,
    },
}

/// A pod, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Of a HostPolicy, which has no namespace, this is empty.
impl From<&PolicyRef> for PodName {
    fn from(policy: &PolicyRef) -> Self {
        let namespace = policy.namespace().unwrap_or_default().to_owned();
        Self { namespace, name: policy.name().to_owned() }
    }
}

/// The node is `node/NAME`, and pods of it of which nothing is known yet `node/unknown-pods`.
impl From<&ObjectKey> for PodName {
    fn from(key: &ObjectKey) -> Self {
        let of_node = |name: &str| Self { namespace: "node".to_owned(), name: name.to_owned() };
        if key.is_unknown() {
            return of_node("unknown-pods");
        }
        if key.is_node() {
            return of_node(&key.name);
        }
        Self { namespace: key.namespace.clone(), name: key.name.clone() }
    }
}

/// A verdict that fell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedVerdict {
    /// Of the first packet: RFC 3339, UTC, nanoseconds.
    pub time: String,
    /// Of the last; the same for one alone.
    pub last_time: String,
    /// How many packets the line stands for.
    pub count: u64,
    /// Allowed or denied, as if everything were enforced.
    pub verdict: Verdict,
    /// False if it was denied and passed: audit.
    pub enforced: bool,
    /// `ingress` or `egress`, seen from the pod.
    pub direction: String,
    /// A name of [`Reason`].
    pub reason: String,
    /// The pod whose endpoint judged; `None` if it has gone.
    pub pod: Option<PodName>,
    /// The pod at the other end; `None` if it is no pod.
    pub peer: Option<PodName>,
    /// Who sent; unspecified where the packet could not be read so far.
    pub source: IpAddr,
    /// The first packet's; `None` where the protocol has no ports.
    pub source_port: Option<u16>,
    /// To whom.
    pub destination: IpAddr,
    /// `None` where the protocol has no ports.
    pub destination_port: Option<u16>,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or the IP protocol number.
    pub protocol: String,
    /// Flags of a TCP packet, as in its header; the first packet's.
    pub tcp_flags: Option<u8>,
    /// From the IP header on, of all packets.
    pub bytes: u64,
    /// Of the deciding rule, or the first that isolates.
    pub policy: Option<ShownPolicy>,
    /// 0-based index of the deciding rule.
    pub rule: Option<u32>,
    /// The agent's node.
    pub node: Option<String>,
    /// Where it was sent to, if it was translated on its way to the destination.
    pub via: Option<Via>,
}

/// Where a packet was sent to before it was translated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Via {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The Service that is asked there; `None` where nobody knows one.
    pub service: Option<PodName>,
}

/// What the agent adds to an event.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// When the first was, by the wall clock.
    pub time: SystemTime,
    /// When the last was.
    pub last_time: SystemTime,
    /// Whose endpoint it is.
    pub pod: Option<&'a ObjectKey>,
    /// The pod that owns the remote address.
    pub peer: Option<&'a ObjectKey>,
    /// What the event's counter stands for.
    pub decided_by: Option<&'a CounterName>,
    /// The agent's node.
    pub node: Option<&'a str>,
    /// The Service that was asked at [`Event::via`](portcullis_common::event::Event::via).
    pub service: Option<&'a ObjectKey>,
}

impl ObservedVerdict {
    /// From a verdict and its repeats; `None` where its reason or direction is none that this version knows.
    #[must_use]
    pub fn new(line: &Line, context: Context<'_>) -> Option<Self> {
        let event = &line.first;
        let reason = Reason::from_number(event.reason)?;
        let outcome = Outcome::from_index(event.outcome)?;
        let direction = [Direction::Ingress, Direction::Egress]
            .into_iter()
            .find(|direction| direction.index() == event.direction)?;
        let has_ports = PORTED.contains(&event.protocol);
        let port = |number| has_ports.then_some(number);
        let local = (ip_addr(&event.local), port(event.local_port));
        let remote = (ip_addr(&event.remote), port(event.remote_port));
        let ((source, source_port), (destination, destination_port)) = match direction {
            Direction::Ingress => (remote, local),
            Direction::Egress => (local, remote),
        };
        let (policy, rule) = context.decided_by.map_or((None, None), |name| ShownPolicy::of(&name.source));
        Some(Self {
            time: rfc3339(context.time),
            verdict: match outcome {
                Outcome::Allow => Verdict::Allow,
                Outcome::Deny | Outcome::Audit => Verdict::Deny,
            },
            enforced: outcome != Outcome::Audit,
            last_time: rfc3339(context.last_time),
            count: line.count,
            direction: direction.name().to_owned(),
            reason: reason.name().to_owned(),
            pod: context.pod.map(Into::into),
            peer: context.peer.map(Into::into),
            source,
            source_port,
            destination,
            destination_port,
            protocol: protocol_name(event.protocol),
            tcp_flags: (event.protocol == 6).then_some(event.tcp_flags),
            bytes: line.bytes,
            policy,
            rule,
            node: context.node.map(str::to_owned),
            via: (!event.via.same(&Addr::UNSPECIFIED)).then(|| Via {
                address: ip_addr(&event.via),
                port: event.via_port,
                service: context.service.map(Into::into),
            }),
        })
    }
}

/// IANA's word, or the number.
pub(crate) fn protocol_name(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

/// RFC 3339 in UTC with nanoseconds; times before 1970 become 1970.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 0000-03-01 in eras of 400 years: the civil calendar without tables.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use portcullis_common::addr::Addr;
    use portcullis_common::event::Event;
    use portcullis_policy::desired::RuleSource;
    use serde_json::json;

    use super::*;

    fn event() -> Line {
        let first = Event {
            local: Addr::v4([10, 0, 0, 1]),
            remote: Addr::v4([10, 0, 0, 2]),
            local_port: 49_152,
            remote_port: 3333,
            protocol: 6,
            direction: Direction::Egress.index(),
            outcome: Outcome::Deny.index(),
            reason: Reason::Isolated as u8,
            bytes: 60,
            tcp_flags: 2,
            ..Event::default()
        };
        Line { first, last_time: 0, count: 2, bytes: 120 }
    }

    #[test]
    fn a_denied_connection_as_json() {
        let (pod, policy) = (ObjectKey::new("a", "x"), ObjectKey::new("a", "np"));
        let name = CounterName { source: RuleSource::Isolation(policy), direction: Direction::Egress };
        let context = Context {
            time: UNIX_EPOCH + Duration::from_millis(1_500),
            last_time: UNIX_EPOCH + Duration::from_millis(1_600),
            pod: Some(&pod),
            peer: None,
            decided_by: Some(&name),
            node: None,
            service: None,
        };
        let observed = Observed::Verdict(Box::new(ObservedVerdict::new(&event(), context).unwrap()));
        let value = serde_json::to_value(&observed).unwrap();
        assert_eq!(
            value,
            json!({
                "time": "1970-01-01T00:00:01.500000000Z", "last_time": "1970-01-01T00:00:01.600000000Z",
                "count": 2, "verdict": "deny", "enforced": true, "direction": "egress",
                "reason": "isolated", "pod": {"namespace": "a", "name": "x"}, "peer": null,
                "source": "10.0.0.1", "source_port": 49152, "destination": "10.0.0.2", "destination_port": 3333,
                "protocol": "TCP", "tcp_flags": 2, "bytes": 120,
                "policy": {"kind": "NetworkPolicy", "namespace": "a", "name": "np"}, "rule": null, "node": null, "via": null
            })
        );
        assert_eq!(serde_json::from_value::<Observed>(value).unwrap(), observed);
    }

    #[test]
    fn a_loss_as_json() {
        let lost = Observed::Lost { lost: 3 };
        assert_eq!(serde_json::to_value(&lost).unwrap(), json!({"lost": 3}));
        assert_eq!(serde_json::from_value::<Observed>(json!({"lost": 3})).unwrap(), lost);
    }

    #[test]
    fn an_unknown_reason_is_no_verdict() {
        let context = Context {
            time: UNIX_EPOCH,
            last_time: UNIX_EPOCH,
            pod: None,
            peer: None,
            decided_by: None,
            node: None,
            service: None,
        };
        let with = |first| Line { first, ..event() };
        let known = event().first;
        assert!(ObservedVerdict::new(&with(Event { reason: 255, ..known }), context).is_none());
        assert!(ObservedVerdict::new(&with(Event { direction: 7, ..known }), context).is_none());
    }

    #[test]
    fn times_are_civil() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(1_767_225_599), "2025-12-31T23:59:59.000000000Z");
    }
}
