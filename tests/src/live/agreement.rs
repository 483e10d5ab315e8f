//! Every way to ask about a flow has to give one answer: real packets, `matrix` live, `matrix --kernel`,
//! `matrix` offline, `explain` with the kernel's word, the counter of the rule that `explain` names, and what
//! should come out. Compares; knows no policy.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::AddAssign;
use std::thread::sleep;
use std::time::{Duration, Instant};

use portcullis_agent::api::{Request, client};
use portcullis_agent::output::{Exit, Verdict};
use portcullis_agent::verbs::ask::{ExplainRequest, Family, Reply, Sent};
use portcullis_agent::verbs::explain::{self, Agreement, Explained, Explanation, PolicyRef};
use portcullis_agent::verbs::matrix::Matrix;
use portcullis_common::event::Direction;
use portcullis_lab::netns::Netns;
use portcullis_lab::{Ask, Client, Cni, Lab, Probe, ProbeOptions, Target};
use portcullis_policy::desired::{CounterName, RuleSource};
use portcullis_policy::frame::Traffic;
use portcullis_policy::model::{ObjectKey, Protocol};

use super::expected::{Expected, Flow};
use super::{From as Whom, Live, packets};
use crate::compare::key_of;

/// How long a packet may take to be counted on a loaded machine.
const COUNTED: Duration = Duration::from_secs(2);
/// How long to wait for what should not be counted, once, when all has been sent.
const NOT_COUNTED: Duration = Duration::from_millis(50);

/// How long a pod behind a bridge may take to be found on a loaded machine.
const FOUND: Duration = Duration::from_secs(30);

/// How many wrong answers a failing test shows.
const SHOWN: usize = 20;

/// What was compared.
#[derive(Debug, Default)]
pub struct Tally {
    /// Flows: cells of matrices and others.
    pub flows: u64,
    /// Of them, those that real connections tried.
    pub probed: u64,
    /// Counters that had to move.
    pub counted: u64,
    /// Answers that differ, with the flow, who said it and why.
    pub wrong: Vec<String>,
}

impl Tally {
    /// Says with each wrong answer in which state.
    #[must_use]
    pub fn of(mut self, what: &str) -> Self {
        self.wrong.iter_mut().for_each(|wrong| *wrong = format!("{what}: {wrong}"));
        self
    }

    /// Fails with the first of what is wrong.
    ///
    /// # Panics
    ///
    /// If anything is.
    pub fn assert_right(&self) {
        let some: Vec<&str> = self.wrong.iter().take(SHOWN).map(String::as_str).collect();
        assert!(some.is_empty(), "{}", some.join("\n"));
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.flows += other.flows;
        self.probed += other.probed;
        self.counted += other.counted;
        self.wrong.extend(other.wrong);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flows, probed, counted, wrong } = self;
        let wrong = wrong.len();
        write!(
            f,
            "{flows} flows, {probed} tried by real connections, {counted} counters moved, {wrong} wrong"
        )
    }
}

/// A flow, and what `explain` said of it.
struct Asked<'a> {
    flow: &'a Flow,
    traffic: Traffic,
    explained: Explained,
}

impl Asked<'_> {
    fn source(&self) -> IpAddr {
        self.explained.from.address.parse().expect("an address")
    }

    fn destination(&self) -> IpAddr {
        self.explained.to.address.parse().expect("an address")
    }

    /// The counters that its packet moves: a packet that its sender may not send reaches no receiver.
    fn counters(&self) -> Vec<CounterName> {
        let Explained { egress, ingress, .. } = &self.explained;
        let sent = egress.as_ref().is_none_or(|egress| egress.verdict == Verdict::Allow);
        let egress = egress.as_ref().and_then(|d| counter(d, Direction::Egress));
        let ingress = ingress.as_ref().filter(|_| sent).and_then(|d| counter(d, Direction::Ingress));
        egress.into_iter().chain(ingress).collect()
    }
}

impl Live {
    /// Asks all ways about all that is expected of the state.
    ///
    /// # Panics
    ///
    /// Where somebody cannot be asked.
    pub fn check_agreement(&mut self, expected: &Expected) -> Tally {
        let mut tally = Tally::default();
        for family in [Family::Ipv4, Family::Ipv6] {
            let wanted: Vec<&Matrix> = expected.matrix.iter().filter(|m| m.family == family).collect();
            if !wanted.is_empty() {
                self.check_matrices(family, &wanted, &mut tally);
            }
        }
        let flows: Vec<Flow> =
            expected.matrix.iter().flat_map(cells).chain(expected.flows.iter().cloned()).collect();
        let asked: Vec<Asked<'_>> = flows.iter().map(|flow| self.explain(flow, &mut tally)).collect();
        for verdict in [Verdict::Allow, Verdict::Deny] {
            if let Some(one) = asked.iter().find(|asked| asked.explained.verdict == verdict) {
                self.check_command_line(one, &mut tally);
            }
        }
        // Before real connections: those that are denied try again and again, and each try counts.
        self.check_counters(&asked, &mut tally);
        self.check_probes(&asked, &mut tally);
        tally
    }

    fn check_matrices(&self, family: Family, wanted: &[&Matrix], tally: &mut Tally) {
        let ports = wanted.iter().map(|m| traffic_of(m));
        let mut arguments = vec!["matrix".to_owned(), "--family".to_owned(), family.name().to_owned()];
        arguments.extend(ports);
        let by_kernel = [arguments.clone(), vec!["--kernel".to_owned()]].concat();
        let judges = [
            ("matrix", &arguments, Whom::Agent),
            ("matrix --kernel", &by_kernel, Whom::Agent),
            ("matrix --source", &arguments, Whom::Directory),
        ];
        for (judge, arguments, whom) in judges {
            let matrices = self.matrices(judge, arguments, whom);
            assert_eq!(matrices.len(), wanted.len(), "{judge}");
            for (matrix, wanted) in matrices.iter().zip(wanted) {
                compare(judge, matrix, wanted, tally);
            }
        }
    }

    /// A pod behind a bridge is found once the bridge has heard it, which on a loaded machine is after the change is in
    /// force: until then its cells are not known.
    fn matrices(&self, judge: &str, arguments: &[String], whom: Whom) -> Vec<Matrix> {
        let begun = Instant::now();
        loop {
            let output = self.verb(arguments, whom);
            let said = String::from_utf8_lossy(&output.stderr);
            let matrices: Vec<Matrix> =
                serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{judge}: {e}; {said}"));
            let unknown = matrices.iter().any(|matrix| matrix.rows.iter().any(|row| row.contains('?')));
            if !unknown || self.lab.state().cni != Cni::Bridge || begun.elapsed() > FOUND {
                return matrices;
            }
            sleep(NOT_COUNTED);
        }
    }

    fn explain<'a>(&self, flow: &'a Flow, tally: &mut Tally) -> Asked<'a> {
        let traffic: Traffic = flow.traffic.parse().expect("traffic");
        let request = Request::Explain(ExplainRequest {
            from: flow.from.clone(),
            to: flow.to.clone(),
            sent: Some(Sent::Traffic(traffic)),
            family: flow.family,
            namespace: None,
        });
        let answer = client::ask(self.lab.run_dir(), &request).and_then(client::Asked::answer);
        let Reply { result, .. }: Reply<Explanation> =
            answer.unwrap_or_else(|e| panic!("{}: explain: {e}", name(flow)));
        let Explanation::Flow(explained) = result else { panic!("{}: {result:?}", name(flow)) };
        tally.flows += 1;
        if explained.verdict != flow.verdict {
            tally.wrong.push(format!("{}: expected {:?}, explain {explained:?}", name(flow), flow.verdict));
        }
        let silent =
            [&explained.egress, &explained.ingress].into_iter().flatten().any(|d| d.kernel.is_none());
        if silent || explained.kernel.is_none() || explained.agreement() == Agreement::Disagrees {
            tally.wrong.push(format!("{}: the kernel says otherwise: {explained:?}", name(flow)));
        }
        Asked { flow, traffic, explained: *explained }
    }

    /// What the verb prints is what the socket answers, and its exit tells the verdict.
    fn check_command_line(&self, asked: &Asked<'_>, tally: &mut Tally) {
        let Flow { from, to, traffic, .. } = asked.flow;
        let family = asked.explained.family.name();
        let arguments = ["explain", from, to, traffic, "--family", family].map(str::to_owned);
        let output = self.verb(&arguments, Whom::Agent);
        let exit = match asked.explained.verdict {
            Verdict::Allow => Exit::Fine,
            Verdict::Deny => Exit::Negative,
        };
        let printed: Option<Explained> = serde_json::from_slice(&output.stdout).ok();
        if printed.as_ref() != Some(&asked.explained) || output.status.code() != Some(exit.code().into()) {
            tally.wrong.push(format!("{}: `explain` prints {output:?}", name(asked.flow)));
        }
    }

    /// Real connections; this kernel may have no SCTP sockets.
    fn check_probes(&self, asked: &[Asked<'_>], tally: &mut Tally) {
        let tried: Vec<(&Asked<'_>, Probe)> = asked.iter().filter_map(|a| Some((a, probe(a)?))).collect();
        let probes: Vec<Probe> = tried.iter().map(|(_, probe)| probe.clone()).collect();
        let outcomes = self.lab.probe(&probes, &ProbeOptions::default()).expect("probes can be made");
        for ((asked, _), outcome) in tried.iter().zip(outcomes) {
            tally.probed += 1;
            if outcome.cell() != cell_of(asked.flow.verdict) {
                let (flow, explained) = (name(asked.flow), &asked.explained);
                tally.wrong.push(format!(
                    "{flow}: expected {:?}, a real one: {outcome}; {explained:?}",
                    asked.flow.verdict
                ));
            }
        }
    }

    /// Sends one packet of each flow and looks which counters move.
    fn check_counters(&mut self, asked: &[Asked<'_>], tally: &mut Tally) {
        let begin = self.packets();
        let mut before = begin.clone();
        let mut sum = begin;
        for asked in asked {
            let wanted: BTreeMap<CounterName, u64> = asked.counters().into_iter().map(|c| (c, 1)).collect();
            for (name, packets) in &wanted {
                *sum.entry(name.clone()).or_default() += packets;
            }
            self.send(asked);
            let deadline = Instant::now() + COUNTED;
            let (after, moved) = loop {
                let after = self.packets();
                let moved = moved(&before, &after);
                let more_to_come = wanted.iter().any(|(name, n)| moved.get(name).is_none_or(|m| m < n));
                if !more_to_come || Instant::now() >= deadline {
                    break (after, moved);
                }
                sleep(Duration::from_micros(100));
            };
            tally.counted += u64::try_from(wanted.len()).unwrap_or_default();
            if moved != wanted {
                let (flow, explained) = (name(asked.flow), &asked.explained);
                tally.wrong.push(format!("{flow}: counters {moved:?} moved, not {wanted:?}; {explained:?}"));
            }
            before = after;
        }
        sleep(NOT_COUNTED);
        let late = moved(&sum, &self.packets());
        if !late.is_empty() {
            tally.wrong.push(format!("counters moved that no packet should have moved: {late:?}"));
        }
    }

    fn packets(&self) -> BTreeMap<CounterName, u64> {
        let all = self.hits.all().expect("the counters can be read");
        all.into_iter().map(|(name, stats)| (name, stats.packets)).collect()
    }

    fn send(&mut self, asked: &Asked<'_>) {
        let port = self.next_port;
        self.next_port = if port == packets::LAST_PORT { packets::FIRST_PORT } else { port + 1 };
        let to = asked.destination();
        let (netns, from): (&Netns, IpAddr) = match client(asked) {
            Client::Pod(key) => (self.lab.pod(&key).expect("a pod of the lab"), asked.source()),
            Client::Node => (self.lab.node(), node_address(&self.lab, to)),
            Client::Outside | Client::OutsideFrom(_) => (self.lab.outside(), asked.source()),
        };
        packets::send(netns, from, to, asked.traffic, port);
    }
}

/// `PROTO/PORT` or `ICMP`.
fn traffic_of(matrix: &Matrix) -> String {
    let port = matrix.port.map(|port| format!("/{port}")).unwrap_or_default();
    format!("{}{port}", matrix.protocol)
}

/// The flows of a matrix.
fn cells(matrix: &Matrix) -> Vec<Flow> {
    let traffic = traffic_of(matrix);
    let mut flows = Vec::new();
    for (from, row) in matrix.order.iter().zip(&matrix.rows) {
        for (to, cell) in matrix.order.iter().zip(row.chars()).filter(|(_, cell)| *cell != '-') {
            let verdict = if cell == '.' { Verdict::Allow } else { Verdict::Deny };
            let (from, to, traffic) = (from.clone(), to.clone(), traffic.clone());
            flows.push(Flow { from, to, traffic, family: Some(matrix.family), verdict });
        }
    }
    flows
}

const fn cell_of(verdict: Verdict) -> char {
    match verdict {
        Verdict::Allow => '.',
        Verdict::Deny => 'X',
    }
}

fn compare(judge: &str, matrix: &Matrix, wanted: &Matrix, tally: &mut Tally) {
    let head = |m: &Matrix| (m.protocol.clone(), m.port, m.family, m.order.clone());
    if head(matrix) != head(wanted) || matrix.rows.len() != wanted.rows.len() {
        tally.wrong.push(format!("{judge}: {matrix:?}, not {wanted:?}"));
        return;
    }
    for (from, (row, wanted_row)) in wanted.order.iter().zip(matrix.rows.iter().zip(&wanted.rows)) {
        for (to, (cell, wanted_cell)) in wanted.order.iter().zip(row.chars().zip(wanted_row.chars())) {
            if cell != wanted_cell {
                let flow = format!("{from} -> {to} {} {}", traffic_of(matrix), matrix.family.name());
                tally.wrong.push(format!("{flow}: expected `{wanted_cell}`, {judge} `{cell}`"));
            }
        }
    }
}

/// The counter that a direction's verdict moves.
fn counter(judged: &explain::Direction, direction: Direction) -> Option<CounterName> {
    let key = |policy: &PolicyRef| {
        ObjectKey::new(policy.namespace.clone().unwrap_or_default(), policy.name.clone())
    };
    let source = match (&judged.policy, judged.rule, &judged.undeclared_namespace) {
        (Some(policy), Some(rule), _) => RuleSource::NetworkPolicy(key(policy), rule),
        (Some(policy), None, _) => RuleSource::Isolation(key(policy)),
        (None, _, Some(namespace)) => RuleSource::UndeclaredNamespace(namespace.clone()),
        (None, _, None) => return None,
    };
    Some(CounterName { source, direction })
}

fn moved(
    before: &BTreeMap<CounterName, u64>,
    after: &BTreeMap<CounterName, u64>,
) -> BTreeMap<CounterName, u64> {
    let moves = after.iter().map(|(name, now)| {
        let then = before.get(name).copied().unwrap_or_default();
        (name.clone(), now.wrapping_sub(then))
    });
    moves.filter(|(_, packets)| *packets != 0).collect()
}

fn client(asked: &Asked<'_>) -> Client {
    match asked.flow.from.as_str() {
        "node" => Client::Node,
        pod if pod.contains('/') => Client::Pod(key_of(pod)),
        _ => Client::OutsideFrom(asked.source()),
    }
}

fn probe(asked: &Asked<'_>) -> Option<Probe> {
    let ask = match asked.traffic {
        Traffic::To(Protocol::Sctp, _) => return None,
        Traffic::To(protocol, port) => Ask::Port(protocol, port),
        Traffic::Echo => Ask::Echo,
    };
    let address = asked.destination();
    let to = match asked.flow.to.as_str() {
        pod if pod.contains('/') => Target::Pod(key_of(pod), portcullis_lab::Family::of(address)),
        _ => Target::Address(address),
    };
    Some(Probe { from: client(asked), to, ask })
}

/// The address that the node speaks from to this one.
fn node_address(lab: &Lab, to: IpAddr) -> IpAddr {
    let link = lab.state().link;
    if to.is_ipv4() { link.node4.into() } else { link.node6.into() }
}

fn name(flow: &Flow) -> String {
    let family = flow.family.map(|family| format!(" {}", family.name())).unwrap_or_default();
    format!("{} -> {} {}{family}", flow.from, flow.to, flow.traffic)
}
