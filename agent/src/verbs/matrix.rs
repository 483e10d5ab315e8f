//! `matrix`: which pod reaches which, for each protocol and port.

pub mod diff;
pub mod explained;
pub mod page;
mod services;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use portcullis_common::event::Action;
use portcullis_policy::answer::{Answers, Family as IpFamily, Party};
use portcullis_policy::convert::printable;
use portcullis_policy::frame::Traffic;
use portcullis_policy::model::{Cluster, ObjectKey, Protocol};
use serde::{Deserialize, Serialize};

use services::Columns;

use super::ask::{AskError, Family, Hosts, Judge, MatrixRequest, Reply, hear};
use crate::output::{Colour, Verdict};
use crate::world::{AskKernel, KernelAnswer, World};

/// A cell between two pods outside of the namespaces that were asked for.
const BLANK: char = ' ';

/// How many namespaces an error suggests.
const SUGGESTIONS: usize = 5;

/// One protocol and port. Its JSON is the first five keys and no more, unless columns were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: String,
    /// Destination port; ICMP has none.
    pub port: Option<u16>,
    /// Of the addresses.
    pub family: Family,
    /// `ns/pod` of every live pod with an address of the family and a network of its own; where hosts were asked for,
    /// behind these `node` and the pods in its network.
    pub order: Vec<String>,
    /// From, then to, as `order`: `.` allowed, `X` denied, `-` self, `?` not known; blank outside of `-n`.
    pub rows: Vec<String>,
    /// The Services that were asked for, by `svc/NAMESPACE/NAME:PORT`. Their own port counts, not the matrix's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// From, as `order`, to the backends of each of `services`, in the family: `.` all allowed, `X` all denied or
    /// none there, `/` some allowed, `?` not known; blank outside of `-n`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_rows: Vec<String>,
}

/// Answers.
pub fn matrix(
    world: &World,
    kernel: Option<&dyn AskKernel>,
    request: &MatrixRequest,
) -> Result<Reply<Vec<Matrix>>, AskError> {
    let (filler, ports, notes) = prepare(world, kernel, request)?;
    let result = ports.into_iter().map(|traffic| filler.matrix(traffic)).collect::<Result<_, AskError>>()?;
    Ok(Reply { result, notes })
}

/// What fills the cells, the ports, and what there is to say.
fn prepare<'a>(
    world: &'a World,
    kernel: Option<&'a dyn AskKernel>,
    request: &MatrixRequest,
) -> Result<(Filler<'a>, Vec<Traffic>, Vec<String>), AskError> {
    let answers = Answers::new(&world.cluster, &world.desired);
    let (v4, v6) = (answers.order(IpFamily::Ipv4), answers.order(IpFamily::Ipv6));
    if v4.is_empty() && v6.is_empty() {
        return Err(AskError::NoPods);
    }
    let family = request.family.unwrap_or(if v4.is_empty() { Family::Ipv6 } else { Family::Ipv4 });
    let order = match family {
        Family::Ipv4 => v4,
        Family::Ipv6 => v6,
    };
    let mut notes = Vec::new();
    if order.is_empty() {
        notes.push(format!("no live pod has an {} address", family.name()));
    }
    let namespaces: BTreeSet<&str> = order.iter().map(|(key, _)| key.namespace.as_str()).collect();
    if let Some(name) = request.namespaces.iter().find(|name| !namespaces.contains(name.as_str())) {
        let known = namespaces.into_iter().take(SUGGESTIONS).map(str::to_owned).collect();
        return Err(AskError::UnknownNamespace { name: name.clone(), known });
    }
    let judge = match (request.judge, kernel) {
        (Judge::Userspace, _) => None,
        (Judge::Kernel, Some(kernel)) => Some(kernel),
        (Judge::Kernel, None) => return Err(AskError::Kernel("no program is loaded".to_owned())),
    };
    let ports: Vec<Traffic> = if request.ports.is_empty() {
        declared_ports(&world.cluster)
    } else {
        request.ports.iter().map(|text| text.0).collect()
    };
    if ports.is_empty() {
        notes
            .push("no pod declares a containerPort: name the ports, as in `matrix TCP/80 UDP/53`".to_owned());
    }
    let cells = order.len().saturating_mul(order.len()).saturating_mul(ports.len());
    if cells > MAX_CELLS {
        return Err(AskError::TooManyCells { pods: order.len(), ports: ports.len(), most: MAX_CELLS });
    }
    let scope = Scope(request.namespaces.iter().cloned().collect());
    let hosts = match request.hosts {
        Hosts::Out => Vec::new(),
        Hosts::In => answers.hosts(family.into()),
    };
    if request.hosts == Hosts::In && world.cluster.host.is_none() {
        notes.push(
            "the host firewall is off, so no host is judged: start the agent with it, or name --host-firewall beside \
             --source"
                .to_owned(),
        );
    }
    let mut filler = Filler { answers, family, order, hosts, judge, scope, columns: Columns::default() };
    filler.columns = filler.columns(world, &request.services, &mut notes)?;
    Ok((filler, ports, notes))
}

/// The most cells of one answer, a byte each: 5,000 pods at 40 ports. Pods declare ports as they like, and the agent
/// holds the answer until it is sent.
const MAX_CELLS: usize = 1_000_000_000;

/// The namespaces whose cells are wanted; none named: all.
struct Scope(BTreeSet<String>);

impl Scope {
    /// True if one of the ends is wanted.
    fn touches(&self, from: &ObjectKey, to: &ObjectKey) -> bool {
        self.0.is_empty() || self.0.contains(&from.namespace) || self.0.contains(&to.namespace)
    }
}

/// Every containerPort of live pods with a network of their own, by protocol number, then port.
pub(super) fn declared_ports(cluster: &Cluster) -> Vec<Traffic> {
    let live = cluster.pods.values().filter(|pod| pod.is_live() && pod.has_own_network());
    let ports: BTreeSet<(Protocol, u16)> = live.flat_map(|pod| pod.container_ports.iter().copied()).collect();
    ports.into_iter().map(|(protocol, port)| Traffic::To(protocol, port)).collect()
}

struct Filler<'a> {
    answers: Answers<'a>,
    family: Family,
    order: Vec<(ObjectKey, IpAddr)>,
    /// Behind these.
    hosts: Vec<Party>,
    judge: Option<&'a dyn AskKernel>,
    scope: Scope,
    columns: Columns,
}

impl Filler<'_> {
    fn matrix(&self, traffic: Traffic) -> Result<Matrix, AskError> {
        let (protocol, port) = match traffic {
            Traffic::To(protocol, port) => (protocol.name(), Some(port)),
            Traffic::Echo => ("ICMP", None),
        };
        let parties = self.parties();
        let rows = parties
            .iter()
            .map(|from| {
                let row = parties.iter();
                row.map(|to| {
                    if self.scope.touches(&self.key(from), &self.key(to)) {
                        self.cell(from, to, traffic)
                    } else {
                        Ok(BLANK)
                    }
                })
                .collect()
            })
            .collect::<Result<_, AskError>>()?;
        let order = parties.iter().map(name_of).collect();
        let Columns { names: services, rows: service_rows } = self.columns.clone();
        let protocol = protocol.to_owned();
        Ok(Matrix { protocol, port, family: self.family, order, rows, services, service_rows })
    }

    /// Rows and columns.
    fn parties(&self) -> Vec<Party> {
        let pods = self.order.iter().map(|(key, address)| Party::Pod(key.clone(), *address));
        pods.chain(self.hosts.iter().cloned()).collect()
    }

    /// By which a scope knows an end: the node is in no namespace.
    fn key(&self, party: &Party) -> ObjectKey {
        self.answers.subject(party).unwrap_or_else(|| ObjectKey::of_node(""))
    }

    fn cell(&self, from: &Party, to: &Party, traffic: Traffic) -> Result<char, AskError> {
        if from == to {
            return Ok('-');
        }
        let (egress, ingress) = self.answers.questions(from, to, traffic);
        // An end that is no pod is not asked.
        let both: [Option<Option<Action>>; 2] = match self.judge {
            None => [egress, ingress].map(|question| question.map(|q| Some(self.answers.verdict(&q).action))),
            Some(kernel) => {
                let heard = hear(kernel, (egress.as_ref(), ingress.as_ref()))?;
                let action = |answer: Option<KernelAnswer>| answer.map(|answer| answer.action);
                [egress.map(|_| action(heard.egress)), ingress.map(|_| action(heard.ingress))]
            }
        };
        Ok(if both.contains(&Some(Some(Action::Deny))) {
            'X'
        } else if both.contains(&Some(None)) {
            '?'
        } else {
            '.'
        })
    }
}

fn name_of(party: &Party) -> String {
    match party {
        Party::Pod(key, _) | Party::HostPod(key, _) => key.to_string(),
        Party::OwnNode(_) => "node".to_owned(),
        Party::Address(address) => address.to_string(),
    }
}

/// Stands above the names and left of the numbers.
const CORNER: &str = "from \\ to";

/// For people: a row for each sender, columns by the rows' numbers.
#[must_use]
pub fn table(matrices: &[Matrix], colour: Colour) -> String {
    let mut text = String::new();
    for matrix in matrices {
        one(matrix, colour, &mut text);
        text.push('\n');
    }
    if !matrices.is_empty() {
        let mut cells = matrices.iter().flat_map(|m| m.rows.iter().chain(&m.service_rows));
        let has = |sign| cells.clone().any(|row| row.contains(sign));
        text.push_str(". allowed  X denied  - itself");
        if matrices.iter().any(|matrix| !matrix.services.is_empty()) {
            text.push_str("  / some backends allowed");
        }
        text.push_str(if has('?') { "  ? not known here" } else { "" });
        let blank = cells.any(|row| row.contains(BLANK));
        text.push_str(if blank { "  blank: neither is in a namespace of -n\n" } else { "\n" });
    }
    text
}

fn one(matrix: &Matrix, colour: Colour, text: &mut String) {
    let safe = |names: &[String]| names.iter().map(|name| printable(name)).collect::<Vec<_>>();
    let (names, services) = (safe(&matrix.order), safe(&matrix.services));
    let columns = names.len() + services.len();
    let digits = columns.to_string().len();
    let all = names.iter().chain(&services);
    let width = all.map(|name| name.chars().count()).max().unwrap_or(0).max(CORNER.len());
    let port = matrix.port.map(|port| format!("/{port}")).unwrap_or_default();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}{port} {}", matrix.protocol, matrix.family.name());
    let _ = write!(text, "{:>digits$} {CORNER:width$}", "");
    for number in 1..=columns {
        let _ = write!(text, " {number:>digits$}");
    }
    text.push('\n');
    let nothing = String::new();
    let to_services = matrix.service_rows.iter().chain(std::iter::repeat(&nothing));
    for (number, ((name, row), to_services)) in (1..).zip(names.iter().zip(&matrix.rows).zip(to_services)) {
        let _ = write!(text, "{number:>digits$} {name:width$}");
        for cell in row.chars().chain(to_services.chars()) {
            let padded = format!("{cell:>digits$}");
            let painted = match cell {
                '.' => colour.paint(Verdict::Allow, &padded),
                'X' => colour.paint(Verdict::Deny, &padded),
                _ => padded,
            };
            let _ = write!(text, " {painted}");
        }
        text.push('\n');
    }
    for (number, name) in (names.len() + 1..).zip(&services) {
        let _ = writeln!(text, "{number:>digits$} {name}");
    }
}

#[cfg(test)]
mod tests;
