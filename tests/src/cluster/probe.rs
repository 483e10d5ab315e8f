//! Who reaches whom in a cluster, by real connections from inside its pods, against what an oracle says of the same
//! objects.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use portcullis_oracle::{Family, PairVerdict, Protocol, Traffic, Verdict, World};

use super::{Cluster, items};

/// How long a probe waits for an answer. Denied is silent, so each denied probe takes this long.
const ANSWER: Duration = Duration::from_secs(1);
/// Pods that probe at a time: a kubectl here and a shell there for each.
const AT_ONCE: usize = 9;
/// How long what was applied may take until it is in force, on a busy machine.
const SETTLES: Duration = Duration::from_secs(30);

/// One connection to be tried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// `namespace/pod`.
    pub from: String,
    /// The same.
    pub to: String,
    /// To this address of it.
    pub address: IpAddr,
    /// By this.
    pub traffic: Traffic,
}

/// What the objects of the cluster say.
#[derive(Debug)]
pub struct Truth {
    world: World,
}

impl Truth {
    /// Reads the cluster's objects.
    pub fn read(cluster: &Cluster) -> Result<Self> {
        let list = cluster.get(&["namespaces,pods,networkpolicies", "-A"])?;
        Ok(Self { world: World::new(items(&list)) })
    }

    /// The oracle's view.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    fn verdict(&self, probe: &Probe) -> Result<PairVerdict> {
        let family = Family::of(probe.address);
        let verdict = self.world.pod_to_pod(&probe.from, &probe.to, probe.traffic, family);
        verdict.with_context(|| format!("the oracle does not know both of {probe:?}"))
    }

    /// Every pair of these pods that has the family, by each traffic.
    #[must_use]
    pub fn probes(&self, pods: &[String], traffic: &[Traffic], family: Family) -> Vec<Probe> {
        let mut probes = Vec::new();
        for from in pods {
            for to in pods.iter().filter(|to| *to != from) {
                let addresses = (self.world.address(from, family), self.world.address(to, family));
                let (Some(_), Some(address)) = addresses else { continue };
                probes.extend(traffic.iter().map(|traffic| Probe {
                    from: from.clone(),
                    to: to.clone(),
                    address,
                    traffic: *traffic,
                }));
            }
        }
        probes
    }
}

/// How a matrix came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Probes that went as the oracle says.
    pub agreed: usize,
    /// Of these those that are denied.
    pub denied: usize,
}

/// Tries all, and again those that do not go as the oracle says, until what was applied had its time. The error names
/// those that then still differ.
pub fn agree(cluster: &Cluster, truth: &Truth, probes: &[Probe]) -> Result<Agreement> {
    let mut agreement = Agreement { agreed: probes.len(), denied: 0 };
    for probe in probes {
        agreement.denied += usize::from(truth.verdict(probe)?.verdict() == Verdict::Deny);
    }
    let end = Instant::now() + SETTLES;
    let mut open = probes.to_vec();
    loop {
        let reached = reach(cluster, &open)?;
        let mut differ = Vec::new();
        for (probe, reached) in open.into_iter().zip(reached) {
            if reached != (truth.verdict(&probe)?.verdict() == Verdict::Allow) {
                differ.push(probe);
            }
        }
        if differ.is_empty() {
            return Ok(agreement);
        }
        if Instant::now() >= end {
            let mut text = format!("{} of {} probes differ from the oracle:", differ.len(), probes.len());
            for probe in differ.iter().take(20) {
                let verdict = truth.verdict(probe)?;
                let Probe { from, to, address, traffic } = probe;
                write!(text, "\n  {from} -> {to} ({address}) {traffic}: should be {verdict:?}")?;
            }
            anyhow::bail!(text);
        }
        open = differ;
    }
}

/// Which of the probes get an answer.
pub fn reach(cluster: &Cluster, probes: &[Probe]) -> Result<Vec<bool>> {
    let mut by_pod: BTreeMap<&str, Vec<(usize, &Probe)>> = BTreeMap::new();
    for (index, probe) in probes.iter().enumerate() {
        by_pod.entry(&probe.from).or_default().push((index, probe));
    }
    let pods: Vec<_> = by_pod.into_iter().collect();
    let mut reached = vec![false; probes.len()];
    for some in pods.chunks(AT_ONCE) {
        let answers: Vec<Result<Vec<usize>>> = thread::scope(|scope| {
            let workers: Vec<_> =
                some.iter().map(|(pod, probes)| scope.spawn(|| from_pod(cluster, pod, probes))).collect();
            workers.into_iter().map(|worker| worker.join().expect("a prober panicked")).collect()
        });
        for answered in answers {
            for index in answered? {
                reached[index] = true;
            }
        }
    }
    Ok(reached)
}

/// The indices of what got an answer, by one shell in the pod that tries all at once.
fn from_pod(cluster: &Cluster, pod: &str, probes: &[(usize, &Probe)]) -> Result<Vec<usize>> {
    let (namespace, name) = pod.split_once('/').with_context(|| format!("{pod} is no pod"))?;
    let words = ["-n", namespace, "exec", "-i", name, "--", "/bin/bash", "-s"];
    let said =
        cluster.kubectl_with(&words, &script(probes)).with_context(|| format!("probing from {pod}"))?;
    said.split_whitespace().map(|index| index.parse().context("reading a prober's answer")).collect()
}

/// A shell's own connections: a process for each probe would be a Go program of 50 MB, and a matrix has hundreds.
/// The shell says the number of each probe that got an answer: a handshake by TCP, a line by UDP.
fn script(probes: &[(usize, &Probe)]) -> String {
    let seconds = ANSWER.as_secs();
    let mut text = format!(
        "t() {{ exec 3<>/dev/tcp/$2/$3 && echo $1; }}\n\
         u() {{ exec 3<>/dev/udp/$2/$3 && echo hostname >&3 && read -r -N 1 -t {seconds} -u 3 && echo $1; }}\n"
    );
    for (index, probe) in probes {
        let (call, port) = match probe.traffic {
            Traffic::To(Protocol::Tcp, port) => ("t", port),
            Traffic::To(Protocol::Udp, port) => ("u", port),
            // No sockets for it in a shell: nobody reaches anybody.
            Traffic::To(Protocol::Sctp, _) | Traffic::IcmpEcho => continue,
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{call} {index} {} {port} 2>/dev/null &", probe.address);
    }
    // A connection that nobody answers would be tried for minutes.
    text + &format!("sleep {seconds}\nkill -9 $(jobs -pr) 2>/dev/null\nwait 2>/dev/null\nexit 0\n")
}
