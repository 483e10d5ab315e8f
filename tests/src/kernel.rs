//! The loaded programs by `BPF_PROG_TEST_RUN` against the same oracles. No attachment, no pins: a private load.

use portcullis_agent::bpf::probe::Private;
use portcullis_agent::world::{AskKernel as _, World};
use portcullis_common::event::Action;
use portcullis_oracle::cyclonus::Step;
use portcullis_oracle::generate;
use portcullis_oracle::{Verdict, World as Oracle};
use portcullis_policy::answer::{Answers, Party, Question};
use portcullis_policy::frame::Traffic;

use crate::compare::{cluster_of, compile, ends, family_of, parties, traffic_of, way_of};

/// Keeps one load over many worlds.
#[derive(Debug, Default)]
pub struct Loaded {
    private: Option<Private>,
}

/// What was compared.
#[derive(Debug, Default)]
pub struct Tally {
    /// Packets judged in the kernel.
    pub packets: u64,
    /// Cells or verdicts that differ.
    pub wrong: Vec<String>,
}

impl Loaded {
    fn write(&mut self, world: &World) -> &Private {
        match &mut self.private {
            Some(private) => private.write(world).expect("the tables are written"),
            none @ None => *none = Some(Private::load(world).expect("the programs load")),
        }
        self.private.as_ref().expect("just loaded")
    }

    /// Asks every cell of a Cyclonus step: the source's egress program and the destination's ingress program.
    pub fn step(&mut self, step: &Step, tally: &mut Tally) {
        let cluster = cluster_of(&step.manifests);
        let desired = compile(&cluster);
        let world = World { cluster, desired, ..World::default() };
        let private = self.write(&world);
        let answers = Answers::new(&world.cluster, &world.desired);
        let parties: Vec<Party> = answers
            .order(family_of(step.family))
            .into_iter()
            .map(|(key, address)| Party::Pod(key, address))
            .collect();
        for ((protocol, port), expected) in &step.expected {
            let traffic: Traffic = format!("{protocol}/{port}").parse().expect("a port");
            for (from, row) in parties.iter().zip(expected) {
                for (to, cell) in parties.iter().zip(row.chars()).filter(|(_, cell)| *cell != '-') {
                    let (egress, ingress) = answers.questions(from, to, traffic);
                    let mut ours = '.';
                    for question in egress.iter().chain(&ingress) {
                        tally.packets += 1;
                        if denied(private, &answers, question, tally) {
                            ours = 'X';
                        }
                    }
                    if ours != cell {
                        tally.wrong.push(format!(
                            "case {} step {}: {from:?} -> {to:?} {protocol}/{port}: {ours}, not {cell}",
                            step.id, step.step
                        ));
                    }
                }
            }
        }
    }

    /// Asks the probes of a generated cluster and compares with the oracle and with userspace.
    pub fn random(&mut self, case: &generate::Cluster, tally: &mut Tally) {
        let oracle = Oracle::new(&case.manifests);
        let cluster = cluster_of(&case.manifests);
        let desired = compile(&cluster);
        let world = World { cluster, desired, ..World::default() };
        let private = self.write(&world);
        let answers = Answers::new(&world.cluster, &world.desired);
        for probe in &case.probes {
            let Some((from, to)) = parties(&answers, probe) else {
                continue;
            };
            let theirs = oracle
                .pod_to_pod(&probe.from, &probe.to, probe.traffic, probe.family)
                .expect("both are in the order");
            let (egress, ingress) = answers.questions(&from, &to, traffic_of(probe.traffic));
            for (question, theirs) in [(egress, theirs.egress), (ingress, theirs.ingress)] {
                let question = question.expect("both ends are pods");
                tally.packets += 1;
                if denied(private, &answers, &question, tally) != (theirs.verdict == Verdict::Deny) {
                    tally
                        .wrong
                        .push(format!("seed {}: {probe:?} {question:?}: oracle {theirs:?}", case.seed));
                }
            }
        }
        for probe in &case.external_probes {
            let Some((from, to)) = ends(&answers, &probe.pod, probe.direction, probe.remote) else {
                continue;
            };
            let (egress, ingress) = answers.questions(&from, &to, traffic_of(probe.traffic));
            let question = match way_of(probe.direction) {
                portcullis_common::event::Direction::Egress => egress,
                portcullis_common::event::Direction::Ingress => ingress,
            }
            .expect("the pod's end");
            let theirs = oracle
                .judge(&probe.pod, probe.direction, probe.remote, probe.traffic)
                .expect("the pod is known");
            tally.packets += 1;
            if denied(private, &answers, &question, tally) != (theirs.verdict == Verdict::Deny) {
                tally.wrong.push(format!("seed {}: {probe:?}: oracle {theirs:?}", case.seed));
            }
        }
    }
}

/// The kernel's verdict; a reason or rule that differs from userspace's is wrong too.
fn denied(private: &Private, answers: &Answers<'_>, question: &Question, tally: &mut Tally) -> bool {
    let kernel = private
        .ask(question)
        .unwrap_or_else(|e| panic!("the kernel does not answer: {e:#}"))
        .expect("the pod has a slot");
    let ours = answers.verdict(question);
    if (kernel.action, kernel.reason, kernel.counter) != (ours.action, ours.reason, ours.counter) {
        tally.wrong.push(format!("{question:?}: kernel {kernel:?}, userspace {ours:?}"));
    }
    kernel.action == Action::Deny
}
