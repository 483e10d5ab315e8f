//! How pods hang on their node, as lines for `ip -batch`: which device, which routes, which gateway. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::plan::Link;
use crate::topology::{Place, add_address, host_net};

/// The bridge in the node's namespace.
pub(crate) const BRIDGE: &str = "cni0";

/// Its interface index, chosen as those of veth devices are.
const BRIDGE_INDEX: u32 = 11;

/// Its own MAC address, set as the bridge plugin sets it: else it changes with the ports, and pods have learned
/// another one.
const BRIDGE_MAC: &str = "02:00:00:00:00:01";

/// The pods' gateway for IPv6, at the node's end of each link.
const GATEWAY6: &str = "fe80::1";

/// Lengths of the pods' subnets behind a bridge.
const SUBNET4: u8 = 24;
const SUBNET6: u8 = 64;

/// What a CNI plugin makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// A veth pair and a route for each pod: ptp and kindnet.
    #[default]
    Routed,
    /// One bridge with a port for each pod, and one route for each subnet: flannel, and the bridge plugin with
    /// `isGateway` and `hairpinMode`.
    Bridge,
}

impl Cni {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Bridge => "bridge",
        }
    }

    /// What the node has before any pod.
    pub(crate) fn node_lines(self, link: &Link) -> Vec<String> {
        match self {
            Self::Routed => Vec::new(),
            Self::Bridge => vec![
                format!("link add {BRIDGE} index {BRIDGE_INDEX} address {BRIDGE_MAC} type bridge"),
                format!("addr add {}/32 dev {BRIDGE}", link.node4),
                format!("addr add {GATEWAY6}/64 dev {BRIDGE} nodad"),
                format!("link set {BRIDGE} up"),
            ],
        }
    }

    /// What the node has for a pod.
    pub(crate) fn port_lines(self, link: &Link, place: &Place, addresses: &[IpAddr]) -> Vec<String> {
        let Place { device, netns, index } = place;
        let add = format!(
            "link add {device} index {index} type veth peer name eth0 address {} netns {netns}",
            place.mac()
        );
        let up = format!("link set {device} up");
        let route = |verb, net: String, address: &IpAddr, device: &str| {
            let source = match address {
                IpAddr::V4(_) => IpAddr::V4(link.node4),
                IpAddr::V6(_) => IpAddr::V6(link.node6),
            };
            format!("route {verb} {net} dev {device} src {source}")
        };
        match self {
            Self::Routed => [add, format!("addr add {GATEWAY6}/64 dev {device} nodad"), up]
                .into_iter()
                .chain(addresses.iter().map(|a| route("add", host_net(*a), a, device)))
                .collect(),
            Self::Bridge => [
                add,
                format!("link set {device} master {BRIDGE}"),
                format!("link set {device} type bridge_slave hairpin on"),
                up,
            ]
            .into_iter()
            .chain(addresses.iter().map(|a| route("replace", subnet(*a, link).to_string(), a, BRIDGE)))
            .collect(),
        }
    }

    /// What the pod has in its own namespace.
    pub(crate) fn pod_lines(self, link: &Link, addresses: &[IpAddr]) -> Vec<String> {
        let mut lines = vec!["link set lo up".into()];
        lines.extend(addresses.iter().map(|address| match self {
            Self::Routed => add_address(*address, "eth0"),
            Self::Bridge => {
                let flag = if address.is_ipv6() { " nodad" } else { "" };
                format!("addr add {address}/{} dev eth0{flag}", subnet(*address, link).prefix_len())
            }
        }));
        lines.push("link set eth0 up".into());
        if addresses.iter().any(IpAddr::is_ipv4) {
            lines.push(format!("route add {}/32 dev eth0 scope link", link.node4));
            lines.push(format!("route add 0.0.0.0/0 via {} dev eth0", link.node4));
        }
        if addresses.iter().any(IpAddr::is_ipv6) {
            lines.push(format!("route add ::/0 via {GATEWAY6} dev eth0"));
        }
        lines
    }

    /// Lets a pod that is reachable tell its neighbours who has its addresses now, as the bridge plugin does: its
    /// MAC address is set to what it is, upon which the kernel announces it.
    pub(crate) fn announce_lines(self, place: &Place) -> Vec<String> {
        match self {
            Self::Routed => Vec::new(),
            Self::Bridge => vec![format!("link set eth0 address {}", place.mac())],
        }
    }

    /// Subnets that pods with these addresses share with others.
    pub(crate) fn subnets(self, link: &Link, addresses: &[IpAddr]) -> BTreeSet<IpNet> {
        match self {
            Self::Routed => BTreeSet::new(),
            Self::Bridge => addresses.iter().map(|address| subnet(*address, link)).collect(),
        }
    }
}

/// The node answers, on the bridge, for an address of one of its subnets that is not there, and leads there.
pub(crate) fn proxy_lines(link: &Link, address: IpAddr, is_outside: bool) -> Vec<String> {
    let via = match address {
        IpAddr::V4(_) => IpAddr::V4(link.outside4),
        IpAddr::V6(_) => IpAddr::V6(link.outside6),
    };
    let mut lines = vec![format!("neigh replace proxy {address} dev {BRIDGE}")];
    lines.extend(is_outside.then(|| format!("route replace {} via {via}", host_net(address))));
    lines
}

/// Takes it back.
pub(crate) fn unproxy_lines(address: IpAddr, is_outside: bool) -> Vec<String> {
    let mut lines = vec![format!("neigh del proxy {address} dev {BRIDGE}")];
    lines.extend(is_outside.then(|| format!("route del {}", host_net(address))));
    lines
}

/// The subnet of an address; the address alone where the uplink is in it.
fn subnet(address: IpAddr, link: &Link) -> IpNet {
    let length = if address.is_ipv4() { SUBNET4 } else { SUBNET6 };
    let net = IpNet::new_assert(address, length).trunc();
    if link.addresses().iter().any(|of_link| net.contains(of_link)) { address.into() } else { net }
}

impl fmt::Display for Cni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Cni {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        [Self::Routed, Self::Bridge]
            .into_iter()
            .find(|cni| cni.name() == word)
            .ok_or_else(|| format!("`{word}` is no shape of a lab: use routed or bridge"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_never_holds_the_uplink() {
        let link = Link {
            node4: [192, 168, 50, 1].into(),
            outside4: [192, 168, 50, 2].into(),
            node6: "fd50::1".parse().unwrap(),
            outside6: "fd50::2".parse().unwrap(),
        };
        let of = |address: &str| subnet(address.parse().unwrap(), &link).to_string();
        assert_eq!(of("10.244.5.1"), "10.244.5.0/24");
        assert_eq!(of("192.168.50.9"), "192.168.50.9/32");
        assert_eq!(of("fd00:10:244:5::1"), "fd00:10:244:5::/64");
        assert_eq!(of("fd50::9"), "fd50::9/128");
    }

    #[test]
    fn shapes_are_read_by_name() {
        assert_eq!("bridge".parse(), Ok(Cni::Bridge));
        assert!("flannel".parse::<Cni>().is_err());
    }
}
