//! Which verdicts an observer wants. Applied in the agent, so that a narrow question is not answered by a flood.
//! Losses are never filtered: nobody knows what they were.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use clap::ValueEnum;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::names::Named;
use crate::api::{ObservedVerdict, PodName};
use crate::output::Verdict;

/// Why a filter is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadFilter {
    /// No end of a flow.
    #[error("`{0}` is neither NAMESPACE/POD, an address nor a CIDR: write one of these")]
    End(String),
    /// No name.
    #[error("`{0}` is no NAMESPACE/NAME: write both, with a slash between them")]
    Name(String),
    /// No label.
    #[error("`{0}` is no KEY=VALUE: write both, with `=` between them")]
    Label(String),
    /// No protocol.
    #[error("`{0}` is no protocol: write TCP, UDP, SCTP, ICMP, ICMPv6 or a number up to 255")]
    Protocol(String),
}

/// Namespace and name, as a filter has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameText(pub PodName);

impl FromStr for NameText {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self(PodName { namespace: namespace.to_owned(), name: name.to_owned() }))
            }
            Some(_) | None => Err(BadFilter::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for NameText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.namespace, self.0.name)
    }
}

/// One end of a flow, as a filter names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EndText {
    /// A pod.
    Pod(NameText),
    /// Addresses.
    Net(IpNet),
}

impl FromStr for EndText {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.into()));
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(net.trunc()));
        }
        text.parse().map(Self::Pod).map_err(|_| BadFilter::End(text.to_owned()))
    }
}

impl fmt::Display for EndText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Net(net) => net.fmt(f),
        }
    }
}

/// A label that a pod has to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelText {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl FromStr for LabelText {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            Some(_) | None => Err(BadFilter::Label(text.to_owned())),
        }
    }
}

impl fmt::Display for LabelText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// A protocol, in the spelling of [`ObservedVerdict::protocol`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProtocolText(String);

impl FromStr for ProtocolText {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        if let Ok(number) = text.parse::<u8>() {
            return Ok(Self(crate::api::observed::protocol_name(number)));
        }
        let known = ["TCP", "UDP", "SCTP", "ICMP", "ICMPv6"].into_iter();
        let mut matching = known.filter(|name| name.eq_ignore_ascii_case(text));
        matching.next().map(|name| Self(name.to_owned())).ok_or_else(|| BadFilter::Protocol(text.to_owned()))
    }
}

impl fmt::Display for ProtocolText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! as_string {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = BadFilter;

            fn try_from(text: String) -> Result<Self, BadFilter> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}
as_string!(NameText, EndText, LabelText, ProtocolText);

/// Which verdicts `--verdict` keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Came {
    /// What was allowed
    Allow,
    /// What was denied, dropped or not
    Deny,
    /// What was denied and passed, for it is audited
    Audit,
}

/// Which verdicts are wanted: those that each part wants. A part without entries wants all; of several entries
/// one has to fit, of labels all, at one end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Allowed, denied, or denied and passed.
    pub verdict: Option<Came>,
    /// `ingress` or `egress`.
    pub direction: Option<String>,
    /// At either end.
    pub pods: Vec<EndText>,
    /// Who sends.
    pub from: Vec<EndText>,
    /// To whom.
    pub to: Vec<EndText>,
    /// Of a pod at either end.
    pub namespaces: Vec<String>,
    /// Of a pod at either end, when the verdict fell.
    pub labels: Vec<LabelText>,
    /// The destination's.
    pub ports: Vec<u16>,
    /// By name.
    pub protocols: Vec<ProtocolText>,
    /// Of the rule or isolation that decided.
    pub policies: Vec<NameText>,
    /// By name.
    pub reasons: Vec<String>,
}

/// A verdict with what is not shown of it.
#[derive(Clone, Copy, Debug)]
pub struct Full<'a> {
    /// As it is shown.
    pub verdict: &'a ObservedVerdict,
    /// Whose endpoint judged.
    pub pod: Option<&'a Named>,
    /// The other end.
    pub peer: Option<&'a Named>,
}

impl Filter {
    /// True if the verdict is wanted.
    #[must_use]
    pub fn wants(&self, full: &Full<'_>) -> bool {
        let shown = full.verdict;
        let (from, to) =
            if shown.direction == "egress" { (full.pod, full.peer) } else { (full.peer, full.pod) };
        let sender = |end: &EndText| is_end(end, from, shown.source);
        let receiver = |end: &EndText| is_end(end, to, shown.destination);
        let ends = || [from, to].into_iter().flatten();
        self.verdict.is_none_or(|wanted| match wanted {
            Came::Allow => shown.verdict == Verdict::Allow,
            Came::Deny => shown.verdict == Verdict::Deny,
            Came::Audit => shown.verdict == Verdict::Deny && !shown.enforced,
        }) && self.direction.as_ref().is_none_or(|wanted| *wanted == shown.direction)
            && any(&self.pods, |end| sender(end) || receiver(end))
            && any(&self.from, sender)
            && any(&self.to, receiver)
            && any(&self.namespaces, |wanted| ends().any(|pod| pod.key.namespace == *wanted))
            && (self.labels.is_empty()
                || ends().any(|pod| {
                    self.labels.iter().all(|label| pod.labels.get(&label.key) == Some(&label.value))
                }))
            && any(&self.ports, |port| shown.destination_port == Some(*port))
            && any(&self.protocols, |protocol| protocol.0 == shown.protocol)
            && any(&self.policies, |NameText(wanted)| {
                shown
                    .policy
                    .as_ref()
                    .is_some_and(|p| (p.scope(), &*p.name) == (&*wanted.namespace, &*wanted.name))
            })
            && any(&self.reasons, |reason| *reason == shown.reason)
    }
}

fn any<T>(entries: &[T], fits: impl Fn(&T) -> bool) -> bool {
    entries.is_empty() || entries.iter().any(fits)
}

fn is_end(end: &EndText, pod: Option<&Named>, address: IpAddr) -> bool {
    match end {
        EndText::Net(net) => net.contains(&address),
        EndText::Pod(NameText(wanted)) => {
            // By the name that lines show: a node is node/NAME.
            pod.map(|pod| PodName::from(&pod.key))
                .is_some_and(|shown| shown.namespace == wanted.namespace && shown.name == wanted.name)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use portcullis_policy::model::ObjectKey;

    use super::*;
    use crate::verbs::explain::PolicyRef;

    fn named(name: &str) -> Named {
        let labels = [("app".to_owned(), name.to_owned()), ("tier".to_owned(), "x".to_owned())].into();
        Named { key: ObjectKey::new("ns", name), labels }
    }

    /// An ingress verdict, web to db.
    fn wanted(filter: &Filter) -> bool {
        let (web, db) = (named("web"), named("db"));
        let policy = PolicyRef::network_policy(&ObjectKey::new("ns", "np"));
        let verdict = ObservedVerdict {
            time: String::new(),
            last_time: String::new(),
            count: 1,
            verdict: Verdict::Deny,
            enforced: true,
            direction: "ingress".to_owned(),
            reason: "isolated".to_owned(),
            pod: Some(PodName { namespace: "ns".to_owned(), name: "db".to_owned() }),
            peer: Some(PodName { namespace: "ns".to_owned(), name: "web".to_owned() }),
            source: [10, 0, 0, 1].into(),
            source_port: Some(40_000),
            destination: [10, 0, 0, 2].into(),
            destination_port: Some(5432),
            protocol: "TCP".to_owned(),
            tcp_flags: Some(2),
            bytes: 60,
            policy: Some(policy),
            rule: None,
            node: None,
            via: None,
        };
        filter.wants(&Full { verdict: &verdict, pod: Some(&db), peer: Some(&web) })
    }

    fn texts<T: FromStr<Err: fmt::Debug>>(all: &[&str]) -> Vec<T> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn without_entries_everything_is_wanted() {
        assert!(wanted(&Filter::default()));
    }

    #[test]
    fn each_part_can_want_and_refuse() {
        let none = Filter::default;
        let cases = [
            (Filter { verdict: Some(Came::Deny), ..none() }, Filter { verdict: Some(Came::Allow), ..none() }),
            (Filter { verdict: Some(Came::Deny), ..none() }, Filter { verdict: Some(Came::Audit), ..none() }),
            (
                Filter { direction: Some("ingress".to_owned()), ..none() },
                Filter { direction: Some("egress".to_owned()), ..none() },
            ),
            (Filter { pods: texts(&["ns/web"]), ..none() }, Filter { pods: texts(&["ns/x"]), ..none() }),
            (Filter { pods: texts(&["ns/db"]), ..none() }, Filter { pods: texts(&["other/db"]), ..none() }),
            (Filter { from: texts(&["ns/web"]), ..none() }, Filter { from: texts(&["ns/db"]), ..none() }),
            (Filter { to: texts(&["ns/db"]), ..none() }, Filter { to: texts(&["ns/web"]), ..none() }),
            (
                Filter { from: texts(&["10.0.0.1"]), ..none() },
                Filter { from: texts(&["10.0.0.2"]), ..none() },
            ),
            (
                Filter { to: texts(&["10.0.0.0/30"]), ..none() },
                Filter { to: texts(&["10.0.0.0/31"]), ..none() },
            ),
            (
                Filter { namespaces: vec!["ns".to_owned()], ..none() },
                Filter { namespaces: vec!["n".to_owned()], ..none() },
            ),
            (
                Filter { labels: texts(&["app=web", "tier=x"]), ..none() },
                Filter { labels: texts(&["app=web", "tier=y"]), ..none() },
            ),
            (Filter { ports: vec![1, 5432], ..none() }, Filter { ports: vec![40_000], ..none() }),
            (
                Filter { protocols: texts(&["tcp"]), ..none() },
                Filter { protocols: texts(&["UDP"]), ..none() },
            ),
            (Filter { protocols: texts(&["6"]), ..none() }, Filter { protocols: texts(&["47"]), ..none() }),
            (
                Filter { policies: texts(&["ns/np"]), ..none() },
                Filter { policies: texts(&["ns/x"]), ..none() },
            ),
            (
                Filter { reasons: vec!["isolated".to_owned()], ..none() },
                Filter { reasons: vec!["rule".to_owned()], ..none() },
            ),
        ];
        for (fits, refuses) in cases {
            assert!(wanted(&fits), "{fits:?}");
            assert!(!wanted(&refuses), "{refuses:?}");
        }
    }

    #[test]
    fn labels_of_two_pods_do_not_add_up() {
        let mixed = Filter { labels: texts(&["app=web", "app=db"]), ..Filter::default() };
        assert!(!wanted(&mixed));
    }

    #[test]
    fn a_filter_comes_back_as_it_went() {
        let filter = Filter {
            pods: texts(&["ns/web", "10.0.0.1", "fd00::/8"]),
            labels: texts(&["app=", "a/b=c=d"]),
            protocols: texts(&["icmpv6"]),
            policies: texts(&["ns/np"]),
            ..Filter::default()
        };
        let text = serde_json::to_string(&filter).unwrap();
        assert_eq!(serde_json::from_str::<Filter>(&text).unwrap(), filter);
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        assert_eq!("web".parse::<EndText>(), Err(BadFilter::End("web".to_owned())));
        assert_eq!("10.0.0.0/33".parse::<EndText>().map(|end| end.to_string()), Ok("10.0.0.0/33".to_owned()));
        for name in ["web", "/web", "ns/", "a/b/c"] {
            assert!(name.parse::<NameText>().is_err(), "{name}");
        }
        assert!("=x".parse::<LabelText>().is_err() && "x".parse::<LabelText>().is_err());
        assert!("256".parse::<ProtocolText>().is_err() && "GRE".parse::<ProtocolText>().is_err());
    }
}
