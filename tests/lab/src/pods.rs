//! Pods of a lab that come, go and move.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_policy::model::{Cluster, ObjectKey, Protocol};

use crate::ip;
use crate::lab::{Lab, PodHandle};
use crate::plan::Plan;
use crate::serving;
use crate::shape;
use crate::state::{PodState, State};
use crate::topology::{self, Place};

impl Lab {
    /// Makes the lab's pods, served ports and outside addresses those of another state of the cluster. A pod
    /// whose addresses changed is another one: it goes and comes. Served ports and outside addresses are only
    /// ever added, unless a pod needs the address. Nodes stay as they were.
    pub fn apply(&mut self, cluster: &Cluster) -> Result<()> {
        let plan = Plan::new(cluster, &self.wishes, Some(self.state.link))?;
        let gone: Vec<ObjectKey> = self
            .pods
            .iter()
            .filter(|(key, pod)| plan.pods.get(key).is_none_or(|a| *a != pod.state.addresses))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.remove_pod(&key)?;
        }
        self.serve_more(&plan.ports)?;
        let fresh: BTreeSet<IpAddr> = plan.outside.difference(&self.state.outside).copied().collect();
        self.move_outside(&fresh, &BTreeSet::new())?;
        let new = plan.pods.into_iter().filter(|(key, _)| !self.pods.contains_key(key)).collect();
        self.add_pods(new)
    }

    /// Adds a pod with these addresses, serving what all serve.
    pub fn add_pod(&mut self, key: &ObjectKey, addresses: &[IpAddr]) -> Result<()> {
        ensure!(!self.pods.contains_key(key), "pod {key} is there already");
        let taken = |a: &IpAddr| self.pods.values().any(|pod| pod.state.addresses.contains(a));
        if let Some(address) = addresses.iter().find(|a| taken(a)) {
            bail!("{address} is another pod's");
        }
        self.add_pods(vec![(key.clone(), addresses.to_vec())])
    }

    /// Takes a pod, its veth pair and its connections away; fine if it is not there.
    pub fn remove_pod(&mut self, key: &ObjectKey) -> Result<()> {
        let Some(pod) = self.pods.remove(key) else { return Ok(()) };
        self.own_server()?.withdraw(&serving::name_of(&pod.state))?;
        topology::remove_pod(&self.node, &pod.state.netns, &pod.state.device)?;
        self.write_pods()
    }

    pub(crate) fn make_pods(&mut self, pods: Vec<(ObjectKey, Vec<IpAddr>)>) -> Result<()> {
        let numbered: Vec<(Place, Vec<IpAddr>)> = pods
            .iter()
            .zip(self.next_number..)
            .map(|((_, a), n)| (Place::new(&self.state.id, n), a.clone()))
            .collect();
        self.next_number += u32::try_from(numbered.len()).context("too many pods")?;
        let made = topology::add_pods(&self.node, self.state.cni, &self.state.link, &numbered)?;
        for ((netns, (place, _)), (key, addresses)) in made.into_iter().zip(numbered).zip(pods) {
            self.subnets.extend(self.state.cni.subnets(&self.state.link, &addresses));
            let state = PodState {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                netns: place.netns,
                device: place.device,
                addresses,
            };
            self.pods.insert(key, PodHandle { netns, state });
        }
        self.proxy()?;
        self.write_pods()
    }

    fn add_pods(&mut self, pods: Vec<(ObjectKey, Vec<IpAddr>)>) -> Result<()> {
        let server = self.own_server()?;
        let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(|(_, a)| a.iter().copied()).collect();
        let keys: Vec<ObjectKey> = pods.iter().map(|(key, _)| key.clone()).collect();
        let yielded = addresses.intersection(&self.state.outside).copied().collect();
        self.move_outside(&BTreeSet::new(), &yielded)?;
        if !pods.is_empty() {
            self.make_pods(pods)?;
        }
        let ports = serving::ports(&self.state);
        for pod in keys.iter().filter_map(|key| self.pods.get(key)) {
            server.serve(&pod.netns, &serving::name_of(&pod.state), &pod.state.addresses, &ports)?;
        }
        Ok(())
    }

    fn serve_more(&mut self, ports: &BTreeSet<(Protocol, u16)>) -> Result<()> {
        let more: BTreeSet<_> = ports.difference(&serving::ports(&self.state)).copied().collect();
        if !more.is_empty() {
            serving::serve_all(&*self.own_server()?, &self.state, &more)?;
            self.state.ports.extend(more.iter().map(|(protocol, port)| (protocol.name().to_owned(), *port)));
            self.state.write()?;
        }
        Ok(())
    }

    fn move_outside(&mut self, add: &BTreeSet<IpAddr>, remove: &BTreeSet<IpAddr>) -> Result<()> {
        topology::move_outside(&self.outside, add, remove)?;
        self.own_server()?.serve(&self.outside, serving::OUTSIDE, add, &serving::ports(&self.state))?;
        self.state.outside.extend(add);
        self.state.outside.retain(|address| !remove.contains(address));
        self.proxy()?;
        self.state.write()
    }

    /// Lets the node answer, on its bridge, for what is in the pods' subnets and is no pod.
    fn proxy(&mut self) -> Result<()> {
        let State { outside, node_addresses, link, .. } = &self.state;
        let proxied = &self.proxied;
        let elsewhere = outside.union(node_addresses);
        let wanted: BTreeSet<IpAddr> =
            elsewhere.filter(|a| self.subnets.iter().any(|net| net.contains(*a))).copied().collect();
        let old =
            proxied.difference(&wanted).flat_map(|a| shape::unproxy_lines(*a, !node_addresses.contains(a)));
        let new = wanted.difference(proxied).flat_map(|a| shape::proxy_lines(link, *a, outside.contains(a)));
        let lines: Vec<String> = old.chain(new).collect();
        if !lines.is_empty() {
            ip::batch(&self.node, &lines)?;
        }
        self.proxied = wanted;
        Ok(())
    }

    fn write_pods(&mut self) -> Result<()> {
        self.state.pods = self.pods.values().map(|pod| pod.state.clone()).collect();
        self.state.write()
    }
}
