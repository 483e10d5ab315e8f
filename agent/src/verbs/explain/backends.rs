//! `explain` of a Service: the answer about each backend, and what they come to.

use std::fmt::Write as _;

use portcullis_policy::answer::Family as IpFamily;
use portcullis_policy::convert::printable;
use serde::{Deserialize, Serialize};

use super::{Agreement, Asker, Explained, table};
use crate::output::{Colour, Exit, Verdict};
use crate::verbs::ask::AskError;
use crate::verbs::service::Target;

/// What `explain` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Explanation {
    /// About a Service.
    Service(Box<ExplainedService>),
    /// About a flow.
    Flow(Box<Explained>),
}

/// What becomes of what is sent to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceVerdict {
    /// Every backend is allowed.
    Allow,
    /// Every one is denied, or there is none.
    Deny,
    /// Some are allowed: it depends on which is chosen.
    Mixed,
}

impl ServiceVerdict {
    /// Of backends' verdicts.
    pub fn of(verdicts: impl IntoIterator<Item = Verdict>) -> Self {
        let (mut allowed, mut denied) = (false, false);
        for verdict in verdicts {
            match verdict {
                Verdict::Allow => allowed = true,
                Verdict::Deny => denied = true,
            }
        }
        match (allowed, denied) {
            (true, true) => Self::Mixed,
            (true, false) => Self::Allow,
            (false, _) => Self::Deny,
        }
    }

    fn shout(self, colour: Colour) -> String {
        match self {
            Self::Allow => colour.paint(Verdict::Allow, Verdict::Allow.shout()),
            Self::Deny => colour.paint(Verdict::Deny, Verdict::Deny.shout()),
            Self::Mixed => "MIXED".to_owned(),
        }
    }
}

/// A Service's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The port that clients send to.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Its virtual addresses; a headless one has none.
    pub addresses: Vec<String>,
}

/// The JSON of `explain` of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedService {
    /// Over all backends.
    pub verdict: ServiceVerdict,
    /// Which port of which Service.
    pub service: ServiceName,
    /// One for each, by address and port.
    pub backends: Vec<ExplainedBackend>,
}

/// The answer about one backend: that of `explain FROM ADDRESS PROTO/PORT`, whose port is the target port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedBackend {
    /// Its address.
    pub address: String,
    /// `ns/pod`; `None` where it is no pod that is known.
    pub pod: Option<String>,
    /// The answer.
    #[serde(flatten)]
    pub explained: Explained,
}

impl Explanation {
    pub(super) fn service(explained: ExplainedService) -> Self {
        Self::Service(Box::new(explained))
    }

    pub(super) fn flow(explained: Explained) -> Self {
        Self::Flow(Box::new(explained))
    }

    /// Of all flows that were asked about.
    #[must_use]
    pub fn agreement(&self) -> Agreement {
        match self {
            Self::Flow(explained) => explained.agreement(),
            Self::Service(service) => {
                let mut each = service.backends.iter().map(|backend| backend.explained.agreement());
                if each.any(|agreement| agreement == Agreement::Disagrees) {
                    Agreement::Disagrees
                } else {
                    Agreement::Agrees
                }
            }
        }
    }

    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Flow(explained) => explained.exit(),
            Self::Service(service) => match (self.agreement(), service.verdict) {
                (Agreement::Disagrees, _) => Exit::Unfit,
                (Agreement::Agrees, ServiceVerdict::Allow) => Exit::Fine,
                (Agreement::Agrees, ServiceVerdict::Deny | ServiceVerdict::Mixed) => Exit::Negative,
            },
        }
    }

    /// For people.
    #[must_use]
    pub fn table(&self, from: &str, colour: Colour) -> String {
        match self {
            Self::Flow(explained) => table::table(explained, colour),
            Self::Service(service) => service.table(from, colour),
        }
    }
}

impl ExplainedService {
    /// The verdict over all, then each backend as an answer of its own.
    fn table(&self, from: &str, colour: Colour) -> String {
        let ServiceName { namespace, name, port, protocol, addresses } = &self.service;
        let shout = self.verdict.shout(colour);
        let name = printable(&format!("svc/{namespace}/{name}"));
        let at = if addresses.is_empty() { String::new() } else { format!(" ({})", addresses.join(", ")) };
        let count = |wanted| self.backends.iter().filter(|b| b.explained.verdict == wanted).count();
        let summary = match (self.backends.len(), count(Verdict::Allow)) {
            (0, _) => "no backend".to_owned(),
            (all, allowed) => format!("{allowed} of {all} backends allowed"),
        };
        let mut text = format!("{shout} {} -> {name}{at} {protocol}/{port}: {summary}\n", printable(from));
        for backend in &self.backends {
            text.push('\n');
            let mut block = table::table(&backend.explained, colour);
            // Below the verdict's line.
            if let Some(pod) = backend.pod.as_ref().filter(|pod| **pod != backend.explained.to.name) {
                let line = format!("  backend  {} shares its node's network\n", printable(pod));
                let below = block.find('\n').map_or(block.len(), |end| end + 1);
                block.insert_str(below, &line);
            }
            // Writing to a string cannot fail.
            let _ = write!(text, "{block}");
        }
        text
    }
}

impl Asker<'_> {
    /// The answer about each backend of a family that the sender has.
    pub(super) fn backends(&mut self, target: &Target<'_>) -> Result<ExplainedService, AskError> {
        let (world, directory) = (self.world, self.answers.directory());
        let (all, notes) = target.backends(&world.cluster, directory, self.request.family.map(Into::into));
        self.notes.extend(notes);
        let mut backends = Vec::new();
        let mut refused = None;
        for backend in &all {
            let family = Some(IpFamily::of(backend.address));
            let judged = backend.pod.as_ref().filter(|pod| directory.hosts.contains_key(*pod));
            let to = judged.map_or_else(|| backend.address.to_string(), ToString::to_string);
            match self.flow(&to, target.traffic(backend), family) {
                Ok(explained) => backends.push(ExplainedBackend {
                    address: backend.address.to_string(),
                    pod: backend.pod.as_ref().map(ToString::to_string),
                    explained,
                }),
                // The sender has no address of that family, and nobody gives it this backend.
                Err(error @ AskError::Families { .. }) => refused = Some((error, backend.address)),
                Err(error) => return Err(error),
            }
        }
        match refused {
            Some((error, _)) if backends.is_empty() => return Err(error),
            Some((_, address)) => self.notes.push(format!(
                "{} has no {} address: backends of that family are left out",
                self.request.from,
                IpFamily::of(address).name()
            )),
            None => {}
        }
        if all.is_empty() {
            self.sender()?;
        }
        let verdict = ServiceVerdict::of(backends.iter().map(|backend| backend.explained.verdict));
        let service = ServiceName {
            namespace: target.key.namespace.clone(),
            name: target.key.name.clone(),
            port: target.port.port,
            protocol: target.port.protocol.name().to_owned(),
            addresses: target.service.addresses.iter().map(ToString::to_string).collect(),
        };
        Ok(ExplainedService { verdict, service, backends })
    }
}

#[cfg(test)]
mod tests;
