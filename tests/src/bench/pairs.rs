//! Two pods without and with something between them, in pairs: without, with, with, without, so that a machine that
//! slows down evenly slows both. What is compared is the CPU time that a unit of work took, both pods and the node's
//! work for them together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::compile::Compiler;
use portcullis_policy::model::ObjectKey;
use portcullis_tests::attached::{Attached, Seat};
use portcullis_tests::compare::cluster_of;
use serde_json::{Value, json};

use crate::pods::{CLIENT, DEVICES, SERVER};
use crate::rules::{self, PORT};
use crate::traffic::{Done, Traffic, Workload};

/// Flows that a pod's table has room for: more than one run of connections makes.
const FLOWS: u32 = 262_144;
const NAMESPACE: &str = "bench";
/// How often the reader of events looks whether it is over, where none come.
const GLANCE: Duration = Duration::from_millis(20);

/// What stands between the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Engine {
    /// Nothing again: what differs then differs by chance.
    Nothing,
    Ours,
    Iptables,
    Nftables,
}

impl Engine {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no policy",
            Self::Ours => "portcullis",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// An engine with so many policies for each pod, each of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Setup {
    pub(crate) engine: Engine,
    pub(crate) policies: u32,
}

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) pairs: u32,
    /// Of one of the four runs of a pair.
    pub(crate) slice: Duration,
}

/// A setup's pairs under a workload.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) setup: Setup,
    pub(crate) workload: Workload,
    /// CPU time a unit, with by without: a number a pair.
    ratios: Vec<f64>,
    without: Done,
    with: Done,
}

/// The middle of a row's ratios, and between what half of them lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Row {
    pub(crate) fn spread(&self) -> Spread {
        let mut sorted = self.ratios.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            #[allow(clippy::cast_precision_loss, reason = "some dozens")]
            let place = share * sorted.len().saturating_sub(1) as f64;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            let of = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
            of(below) + (of(above) - of(below)) * place.fract()
        };
        Spread { low: at(0.25), median: at(0.5), high: at(0.75) }
    }

    /// Microseconds of CPU a unit, without and with.
    pub(crate) fn cost(&self) -> (f64, f64) {
        let of = |done: Done| done.cpu * 1e6 / done.units;
        (of(self.without), of(self.with))
    }

    /// Units a second, without and with.
    pub(crate) fn rate(&self) -> (f64, f64) {
        let of = |done: Done| done.units / done.wall;
        (of(self.without), of(self.with))
    }
}

impl Spread {
    /// How far from nothing half of the pairs reach: a difference up to this one may be chance.
    pub(crate) fn noise(&self) -> f64 {
        (self.high - 1.0).abs().max((self.low - 1.0).abs())
    }

    /// The difference, 0 where chance makes as much of it.
    pub(crate) fn difference(&self, noise: f64) -> f64 {
        let difference = self.median - 1.0;
        if difference.abs() <= noise { 0.0 } else { difference }
    }
}

/// The rows' setup without anything between the pods, by workload.
pub(crate) fn noises(rows: &[Row]) -> BTreeMap<Workload, f64> {
    rows.iter()
        .filter(|row| row.setup.engine == Engine::Nothing)
        .map(|row| (row.workload, row.spread().noise()))
        .collect()
}

/// The pods, and a load of ours for each number of policies.
pub(crate) struct Rig {
    traffic: Traffic,
    loads: BTreeMap<u32, Attached>,
    iptables: Option<&'static str>,
    nftables: Option<&'static str>,
}

impl Rig {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            traffic: Traffic::new()?,
            loads: BTreeMap::new(),
            iptables: rules::program(&["iptables-legacy-restore", "iptables-restore"]),
            nftables: rules::program(&["nft"]),
        })
    }

    /// Why an engine cannot be measured here.
    pub(crate) fn lacks(&self, engine: Engine) -> Option<&'static str> {
        match engine {
            Engine::Nothing | Engine::Ours => None,
            Engine::Iptables if self.iptables.is_some() => None,
            Engine::Nftables if self.nftables.is_some() => None,
            Engine::Iptables => Some("`iptables-restore` is missing: apt-get install iptables (or its like)"),
            Engine::Nftables => Some("`nft` is missing: apt-get install nftables (or its like)"),
        }
    }

    /// Measures the setups, in an order of its own for each pair.
    pub(crate) fn measure(&mut self, plan: Plan, setups: &[Setup], rng: &mut SplitMix64) -> Result<Vec<Row>> {
        for setup in setups {
            self.try_out(*setup)
                .with_context(|| format!("{} with {}", setup.engine.name(), setup.policies))?;
        }
        let empty = |setup: Setup, workload| Row {
            setup,
            workload,
            ratios: Vec::new(),
            without: Done::default(),
            with: Done::default(),
        };
        let mut rows: Vec<Row> =
            setups.iter().flat_map(|setup| Workload::ALL.map(|workload| empty(*setup, workload))).collect();
        let mut order = setups.to_vec();
        for pair in 0..plan.pairs {
            eprintln!("pair {} of {}", pair + 1, plan.pairs);
            rng.shuffle(&mut order);
            for setup in &order {
                let found = self.pair(plan, *setup);
                let found = found.with_context(|| format!("{}, {}", setup.engine.name(), setup.policies))?;
                for (workload, without, with) in found {
                    let row = rows.iter_mut().find(|row| (row.setup, row.workload) == (*setup, workload));
                    let row = row.context("a row")?;
                    row.ratios.push((with.cpu / with.units) / (without.cpu / without.units));
                    row.without = row.without + without;
                    row.with = row.with + with;
                }
            }
        }
        Ok(rows)
    }

    /// Without, with, with, without.
    fn pair(&mut self, plan: Plan, setup: Setup) -> Result<Vec<(Workload, Done, Done)>> {
        let first = all(&self.traffic, plan)?;
        self.put_up(setup)?;
        let twice = || Ok((all(&self.traffic, plan)?, all(&self.traffic, plan)?));
        let both = match (setup.engine, self.loads.get_mut(&setup.policies)) {
            (Engine::Ours, Some(load)) => read_while(load, twice),
            _ => twice(),
        };
        // Taken down also where that failed.
        let down = self.take_down(setup);
        let (second, third) = both?;
        down?;
        let fourth = all(&self.traffic, plan)?;
        let runs = first.into_iter().zip(second).zip(third.into_iter().zip(fourth));
        let paired = runs.zip(Workload::ALL);
        Ok(paired.map(|(((a, b), (c, d)), workload)| (workload, a + d, b + c)).collect())
    }

    /// Up and down once: whoever filters drops what no policy names, and nobody does otherwise.
    fn try_out(&mut self, setup: Setup) -> Result<()> {
        ensure!(!self.traffic.is_closed()?, "without anything in the way a port is closed");
        self.put_up(setup)?;
        let is_closed = self.traffic.is_closed();
        self.take_down(setup)?;
        ensure!(is_closed? == (setup.engine != Engine::Nothing), "what no policy names is not treated so");
        Ok(())
    }

    fn put_up(&mut self, setup: Setup) -> Result<()> {
        let Setup { engine, policies } = setup;
        match engine {
            Engine::Nothing => Ok(()),
            Engine::Ours => {
                if !self.loads.contains_key(&policies) {
                    let load = load(policies, self.traffic.pods.indices)?;
                    self.loads.insert(policies, load);
                }
                let load = self.loads.get_mut(&policies).context("a load")?;
                self.traffic.pods.node.run(|| DEVICES.iter().try_for_each(|device| load.attach(device)))
            }
            Engine::Iptables => self.feed_iptables(&rules::iptables(policies)),
            Engine::Nftables => self.feed_nftables(&rules::nftables(policies)),
        }
    }

    fn take_down(&mut self, setup: Setup) -> Result<()> {
        match setup.engine {
            Engine::Nothing => Ok(()),
            Engine::Ours => {
                let load = self.loads.get_mut(&setup.policies).context("a load")?;
                load.detach();
                // As if they had expired: the next connections are new ones.
                (0..2).try_for_each(|slot| load.forget_flows(slot))
            }
            Engine::Iptables => self.feed_iptables(rules::NO_IPTABLES),
            Engine::Nftables => self.feed_nftables(rules::NO_NFTABLES),
        }
    }

    fn feed_iptables(&self, rules: &str) -> Result<()> {
        let program = self.iptables.context("no iptables here")?;
        self.traffic.pods.node.run(|| rules::feed(program, &[], rules))
    }

    fn feed_nftables(&self, rules: &str) -> Result<()> {
        let program = self.nftables.context("no nft here")?;
        self.traffic.pods.node.run(|| rules::feed(program, &["-f", "-"], rules))
    }
}

fn all(traffic: &Traffic, plan: Plan) -> Result<Vec<Done>> {
    let run = |workload: Workload| {
        traffic.run(workload, plan.slice).with_context(|| format!("running {}", workload.name()))
    };
    Workload::ALL.into_iter().map(run).collect()
}

/// Somebody reads the events meanwhile, as the agent does: what that costs, the programs' part and ours, is counted.
fn read_while<T>(load: &mut Attached, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                load.read_events(GLANCE)?;
            }
            Ok(())
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        reader.join().map_err(|_| anyhow!("reading events panicked"))??;
        done
    })
}

/// Our tables for both pods.
fn load(policies: u32, [client, server]: [u32; 2]) -> Result<Attached> {
    let key = |name: &str| ObjectKey::new(NAMESPACE, name);
    let pod = |name: String, address: std::net::Ipv4Addr| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": NAMESPACE, "name": name, "labels": {"name": name}},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        })
    };
    let policy = |number: usize, subject: &str, kind: &str, side: &str, word: &str, peer: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": NAMESPACE, "name": format!("{subject}-{number}")},
            "spec": {
                "podSelector": {"matchLabels": {"name": subject}},
                "policyTypes": [kind],
                side: [{
                    word: [{"podSelector": {"matchLabels": {"name": peer}}}],
                    "ports": [{"protocol": "TCP", "port": PORT}],
                }],
            },
        })
    };
    let mut manifests: Vec<Value> = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        pod("client".to_owned(), CLIENT),
        pod("server".to_owned(), SERVER),
    ];
    // Peers that are nobody are the same for both.
    let (clients, servers) = (rules::peers(policies, CLIENT), rules::peers(policies, SERVER));
    for (number, (as_client, as_server)) in clients.into_iter().zip(servers).enumerate() {
        let nobody = format!("peer-{number}");
        let name = |address, this, own: &str| if address == this { own.to_owned() } else { nobody.clone() };
        if as_client != CLIENT {
            manifests.push(pod(nobody.clone(), as_client));
        }
        let (from, to) = (name(as_client, CLIENT, "client"), name(as_server, SERVER, "server"));
        manifests.push(policy(number, "server", "Ingress", "ingress", "from", &from));
        manifests.push(policy(number, "client", "Egress", "egress", "to", &to));
    }
    let cluster = cluster_of(&manifests);
    let keys = [key("client"), key("server")];
    let (desired, problems) = Compiler::new(0).compile(&cluster, keys.iter())?;
    ensure!(problems.is_empty(), "the compiler has problems: {problems:?}");
    let mut load = Attached::load()?;
    let seats = keys.into_iter().zip([client, server]);
    let seats: Vec<Seat> = seats.map(|(pod, ifindex)| Seat { pod, ifindex, flows: FLOWS }).collect();
    load.write_at(&cluster, &desired, &seats)?;
    Ok(load)
}

/// For programs.
pub(crate) fn json(plan: Plan, rows: &[Row]) -> Value {
    let noises = noises(rows);
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let (Spread { low, median, high }, cost, rate) = (row.spread(), row.cost(), row.rate());
            let noise = noises.get(&row.workload).copied().unwrap_or(0.0);
            json!({
                "between": row.setup.engine.name(), "policies": row.setup.policies,
                "workload": row.workload.name(), "unit": row.workload.unit(),
                "cpuRatio": {"quarter": low, "median": median, "threeQuarters": high},
                "difference": row.spread().difference(noise), "noise": noise,
                "cpuMicroseconds": {"without": cost.0, "with": cost.1},
                "perSecond": {"without": rate.0, "with": rate.1},
            })
        })
        .collect();
    json!({"pairs": plan.pairs, "sliceSeconds": plan.slice.as_secs_f64(), "measured": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ratios: &[f64]) -> Row {
        Row {
            setup: Setup { engine: Engine::Nothing, policies: 0 },
            workload: Workload::Stream,
            ratios: ratios.to_vec(),
            without: Done::default(),
            with: Done::default(),
        }
    }

    #[test]
    fn half_of_the_pairs_lie_in_the_spread() {
        let spread = row(&[1.4, 1.0, 1.1, 1.2, 1.3]).spread();
        assert!((spread.low - 1.1).abs() < 1e-9);
        assert!((spread.median - 1.2).abs() < 1e-9);
        assert!((spread.high - 1.3).abs() < 1e-9);
    }

    #[test]
    fn a_difference_inside_what_chance_makes_is_none() {
        let noise = row(&[0.96, 0.98, 1.0, 1.01, 1.05]).spread().noise();
        assert!((noise - 0.02).abs() < 1e-9, "{noise}");
        assert!(row(&[1.019]).spread().difference(noise).abs() < 1e-9);
        assert!((row(&[1.05]).spread().difference(noise) - 0.05).abs() < 1e-9);
        assert!((row(&[0.9]).spread().difference(noise) + 0.1).abs() < 1e-9);
    }
}
