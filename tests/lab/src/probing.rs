//! Probes of a lab: finds the addresses of who asks and who is asked, and lets [`crate::traffic`] try.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use portcullis_policy::model::{Cluster, ObjectKey, Protocol};

use crate::lab::Lab;
use crate::matrix::{self, MatrixResult};
use crate::netns::Netns;
use crate::serving;
use crate::traffic::{
    self, Ask, Attempt, Client, Family, Held, Outcome, Path, Probe, ProbeOptions, Target, UdpStream,
};

impl Lab {
    /// Tries all probes, many at once, and returns their outcomes in the same order.
    pub fn probe(&self, probes: &[Probe], options: &ProbeOptions) -> Result<Vec<Outcome>> {
        let found: Vec<Result<Attempt<'_>, Outcome>> = probes.iter().map(|p| self.attempt(p)).collect();
        let attempts: Vec<Attempt<'_>> = found.iter().flatten().cloned().collect();
        let mut tried = traffic::run(&attempts, options)?.into_iter();
        let missing = || Outcome::Failed("not tried".into());
        Ok(found
            .into_iter()
            .map(|f| f.map_or_else(|outcome| outcome, |_| tried.next().unwrap_or_else(missing)))
            .collect())
    }

    /// Tries every ordered pair of pods on every port, as `portcullis matrix` shows it. The pods are those of
    /// the cluster; one that has no namespace here gets `?`, and so does SCTP, for which there are no sockets.
    pub fn matrix(
        &self,
        cluster: &Cluster,
        ports: &[(Protocol, u16)],
        family: Family,
        options: &ProbeOptions,
    ) -> Result<Vec<MatrixResult>> {
        let order = matrix::order(cluster, family);
        let probes: Vec<Probe> = ports
            .iter()
            .flat_map(|port| order.iter().map(move |from| (port, from)))
            .flat_map(|(port, from)| order.iter().map(move |to| (port, from, to)))
            .filter(|(_, from, to)| from != to)
            .map(|((protocol, port), from, to)| Probe {
                from: Client::Pod(from.clone()),
                to: Target::Pod(to.clone(), family),
                ask: Ask::Port(*protocol, *port),
            })
            .collect();
        let mut outcomes = self.probe(&probes, options)?.into_iter();
        let names: Vec<String> = order.iter().map(ObjectKey::to_string).collect();
        let mut results = Vec::new();
        for (protocol, port) in ports {
            let mut result = MatrixResult {
                protocol: *protocol,
                port: *port,
                family,
                order: names.clone(),
                rows: Vec::new(),
                unknown: Vec::new(),
            };
            for from in &names {
                let mut row = String::new();
                for to in &names {
                    if from == to {
                        row.push('-');
                        continue;
                    }
                    let outcome = outcomes.next().ok_or_else(|| anyhow!("a probe has no outcome"))?;
                    row.push(outcome.cell());
                    if outcome.cell() == '?' {
                        result.unknown.push((from.clone(), to.clone(), outcome));
                    }
                }
                result.rows.push(row);
            }
            results.push(result);
        }
        Ok(results)
    }

    /// Opens one TCP connection for each probe, and holds them; every one must be answered.
    pub fn hold(&self, probes: &[Probe]) -> Result<Held> {
        let attempts: Vec<Attempt<'_>> = probes.iter().map(|p| self.must(p)).collect::<Result<_>>()?;
        Held::open(&attempts)
    }

    /// Starts a stream of datagrams for a UDP probe, one each `interval`, counted where they arrive.
    pub fn stream(&self, probe: &Probe, interval: Duration) -> Result<UdpStream> {
        let Ask::Port(Protocol::Udp, port) = probe.ask else { bail!("only UDP streams") };
        UdpStream::start(&self.must(probe)?, port, interval, self.own_server()?)
    }

    fn must(&self, probe: &Probe) -> Result<Attempt<'_>> {
        self.attempt(probe).map_err(|outcome| anyhow!("{outcome}"))
    }

    fn attempt(&self, probe: &Probe) -> Result<Attempt<'_>, Outcome> {
        let (target, expect) = self.target(&probe.to)?;
        let (netns, source) = self.client(&probe.from, Family::of(target))?;
        if source.is_some_and(|s| Family::of(s) != Family::of(target)) {
            return Err(Outcome::Failed(format!("{target} is of another family than the client's address")));
        }
        Ok(Attempt { netns, path: Path { source, target }, ask: probe.ask, expect })
    }

    fn client(&self, client: &Client, family: Family) -> Result<(&Netns, Option<IpAddr>), Outcome> {
        Ok(match client {
            Client::Pod(key) => {
                let netns = self.pod(key).ok_or_else(|| no_namespace(key))?;
                (netns, Some(self.pod_address(key, family)?))
            }
            Client::Outside => (self.outside(), None),
            Client::OutsideFrom(address) => (self.outside(), Some(*address)),
            Client::Node => (self.node(), None),
        })
    }

    fn target(&self, target: &Target) -> Result<(IpAddr, Option<String>), Outcome> {
        let link = &self.state().link;
        Ok(match target {
            Target::Pod(key, family) => (self.pod_address(key, *family)?, Some(key.to_string())),
            Target::Address(address) => (*address, self.holder(*address)),
            Target::Node(Family::Ipv4) => (link.node4.into(), Some(serving::NODE.into())),
            Target::Node(Family::Ipv6) => (link.node6.into(), Some(serving::NODE.into())),
        })
    }

    fn pod_address(&self, key: &ObjectKey, family: Family) -> Result<IpAddr, Outcome> {
        let pod = self.pod_state(key).ok_or_else(|| no_namespace(key))?;
        let address = pod.addresses.iter().find(|a| Family::of(**a) == family).copied();
        address.ok_or_else(|| Outcome::Failed(format!("{key} owns no {} address", family.name())))
    }

    /// The name that serves an address, if one does.
    fn holder(&self, address: IpAddr) -> Option<String> {
        let pod = self.pods.values().find(|pod| pod.state.addresses.contains(&address));
        let pod = pod.map(|pod| serving::name_of(&pod.state));
        pod.or_else(|| serving::node_addresses(&self.state).contains(&address).then(|| serving::NODE.into()))
            .or_else(|| {
                serving::outside_addresses(&self.state).contains(&address).then(|| serving::OUTSIDE.into())
            })
    }
}

fn no_namespace(key: &ObjectKey) -> Outcome {
    Outcome::Failed(format!("{key} has no namespace in this lab"))
}
