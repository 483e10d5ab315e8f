//! What a lab holds for a cluster: which pod has which addresses, what the node and the outside have, and
//! which ports are served. Pure: the topology module carries it out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, anyhow, ensure};
use portcullis_policy::model::{Cluster, ObjectKey, Pod, Protocol};
use serde::{Deserialize, Serialize};

use crate::samples::{self, usable};

/// Addresses that the outside holds in every lab: `world` of both families, and the cloud metadata address.
const WORLD: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
];

/// The two ends of the uplink. The node's are also the pods' gateway (IPv4) and the source of what the node
/// sends to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The node's, /24.
    pub node4: Ipv4Addr,
    /// The outside's, /24.
    pub outside4: Ipv4Addr,
    /// The node's, /64.
    pub node6: Ipv6Addr,
    /// The outside's, /64.
    pub outside6: Ipv6Addr,
}

impl Link {
    /// Nets that serve as uplink, in the order tried: the first whose two addresses nobody else has.
    fn candidates() -> impl Iterator<Item = Self> {
        let v4 = [[192, 168, 50], [198, 18, 50], [172, 31, 250], [10, 255, 254]];
        v4.into_iter().zip([0xfd50, 0xfd51, 0xfd52, 0xfd53]).map(|([a, b, c], net)| Self {
            node4: Ipv4Addr::new(a, b, c, 1),
            outside4: Ipv4Addr::new(a, b, c, 2),
            node6: Ipv6Addr::new(net, 0, 0, 0, 0, 0, 0, 1),
            outside6: Ipv6Addr::new(net, 0, 0, 0, 0, 0, 0, 2),
        })
    }

    pub(crate) fn addresses(&self) -> [IpAddr; 4] {
        [self.node4.into(), self.outside4.into(), self.node6.into(), self.outside6.into()]
    }
}

/// What the caller asks of a plan beyond the cluster.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// The node that this lab is; the cluster's first, else `node`, where nothing is said.
    pub node_name: Option<String>,
    /// Addresses that the outside shall hold.
    pub outside: Vec<IpAddr>,
    /// Ports that are served beyond those that pods declare.
    pub ports: BTreeSet<(Protocol, u16)>,
}

/// What a lab holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The node's name, for `--node-name`.
    pub node_name: String,
    /// The uplink.
    pub link: Link,
    /// What the manifests say the node has beyond its end of the uplink.
    pub node_addresses: BTreeSet<IpAddr>,
    /// What the outside has beyond its end of the uplink; no pod and not the node has any of them.
    pub outside: BTreeSet<IpAddr>,
    /// Pods that get a namespace, with the addresses they own, at least one.
    pub pods: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// What every namespace serves: TCP and UDP only.
    pub ports: BTreeSet<(Protocol, u16)>,
}

impl Plan {
    /// The plan for a cluster; `link` keeps the uplink of a lab that is already up.
    pub fn new(cluster: &Cluster, wishes: &Wishes, link: Option<Link>) -> Result<Self> {
        let node_name = wishes
            .node_name
            .clone()
            .or_else(|| cluster.nodes.keys().next().cloned())
            .unwrap_or_else(|| "node".into());
        let pods = owned_addresses(cluster);
        let mut taken: BTreeSet<IpAddr> = pods.values().flatten().copied().collect();
        let asked: BTreeSet<IpAddr> = wishes.outside.iter().copied().collect();
        for address in &asked {
            ensure!(
                usable(*address),
                "{address} cannot stand on an interface: choose another outside address"
            );
            ensure!(!taken.contains(address), "{address} is a pod's: choose another outside address");
        }

        let (own, foreign) = host_addresses(cluster, &node_name);
        let node_addresses: BTreeSet<IpAddr> = own.into_iter().filter(|a| !taken.contains(a)).collect();
        for address in &asked {
            ensure!(
                !node_addresses.contains(address),
                "{address} is the node's: choose another outside address"
            );
        }
        taken.extend(&node_addresses);
        let others: BTreeSet<IpAddr> =
            foreign.into_iter().chain(WORLD).chain(asked).filter(|a| !taken.contains(a)).collect();

        let link = match link {
            Some(link) => link,
            None => Link::candidates()
                .find(|l| l.addresses().iter().all(|a| !taken.contains(a) && !others.contains(a)))
                .ok_or_else(|| anyhow!("every net for the uplink is in use by pods or nodes: move some"))?,
        };
        taken.extend(link.addresses());
        let mut outside: BTreeSet<IpAddr> = others.into_iter().filter(|a| !taken.contains(a)).collect();
        samples::add(&mut outside, cluster, &taken);
        let ports = crate::matrix::default_ports(cluster)
            .into_iter()
            .chain(wishes.ports.iter().copied())
            .filter(|(protocol, _)| *protocol != Protocol::Sctp)
            .collect();
        // A node that has the uplink's own address by its manifest has it already.
        let node_addresses = node_addresses.into_iter().filter(|a| !link.addresses().contains(a)).collect();
        Ok(Self { node_name, link, node_addresses, outside, pods, ports })
    }
}

/// Addresses of live pods with a network of their own, by owner: of two pods that show one address the later
/// start time has it, then the greater uid (S50). Pods that own none are left out.
fn owned_addresses(cluster: &Cluster) -> BTreeMap<ObjectKey, Vec<IpAddr>> {
    let live = || cluster.pods.iter().filter(|(_, pod)| pod.is_live() && pod.has_own_network());
    let mut owners: BTreeMap<IpAddr, (&ObjectKey, &Pod)> = BTreeMap::new();
    for (key, pod) in live() {
        for address in pod.addresses.iter().filter(|a| usable(**a)) {
            let owner = owners.entry(*address).or_insert((key, pod));
            if (pod.start_time, &pod.uid) > (owner.1.start_time, &owner.1.uid) {
                *owner = (key, pod);
            }
        }
    }
    let owned = |key: &ObjectKey, pod: &Pod| -> Vec<IpAddr> {
        pod.addresses.iter().filter(|a| owners.get(*a).is_some_and(|o| o.0 == key)).copied().collect()
    };
    live().map(|(key, pod)| (key.clone(), owned(key, pod))).filter(|(_, a)| !a.is_empty()).collect()
}

/// Addresses of this node and of all others, hostNetwork pods' counting as their node's.
fn host_addresses(cluster: &Cluster, node_name: &str) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
    let nodes = cluster.nodes.iter().map(|(name, node)| (name.as_str(), &node.addresses));
    let host_pods = cluster
        .pods
        .values()
        .filter(|pod| pod.is_live() && !pod.has_own_network())
        .map(|pod| (pod.node.as_deref().unwrap_or(node_name), &pod.addresses));
    let (mut own, mut foreign) = (BTreeSet::new(), BTreeSet::new());
    for (name, addresses) in nodes.chain(host_pods) {
        let side = if name == node_name { &mut own } else { &mut foreign };
        side.extend(addresses.iter().copied().filter(|a| usable(*a)));
    }
    foreign.retain(|a| !own.contains(a));
    (own, foreign)
}
