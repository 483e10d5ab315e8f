//! Namespaces, veth pairs, addresses and routes: carries out a [`Plan`](crate::plan::Plan).

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::ip;
use crate::netns::Netns;
use crate::plan::Link;
use crate::state::netns_name;

/// The node side of the uplink and, in its own namespace, the outside's.
const UPLINK: &str = "uplink";

/// Settings of every namespace. IPv6 addresses are usable at once; no router is asked for; ICMP errors are not
/// rated, because a closed UDP port is told from a dropped packet by one; many packets may wait for a
/// neighbour's address, because probes all start together; root may open ping sockets.
const SYSCTLS: [(&str, &str); 14] = [
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "1000000"),
    ("net/ipv4/icmp_msgs_burst", "1000000"),
    ("net/ipv4/neigh/default/unres_qlen_bytes", "8388608"),
    ("net/ipv6/neigh/default/unres_qlen_bytes", "8388608"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/core/somaxconn", "8192"),
];

/// Settings that make the node a router.
const FORWARD: [(&str, &str); 2] =
    [("net/ipv4/conf/all/forwarding", "1"), ("net/ipv6/conf/all/forwarding", "1")];

/// A pod's place: its namespace's name, and the host side of its veth pair.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The namespace.
    pub(crate) netns: String,
    /// The device in the node's namespace.
    pub(crate) device: String,
}

impl Place {
    /// The place for the pod with this number, unique among the lab's pods of all times.
    pub(crate) fn new(id: &str, number: u32) -> Self {
        Self { netns: netns_name(id, &format!("p{number}")), device: format!("pcl{number}") }
    }
}

/// Makes the namespaces of node and outside, and the uplink between them.
pub(crate) fn node_and_outside(
    id: &str,
    link: &Link,
    node_addresses: &BTreeSet<IpAddr>,
    outside_addresses: &BTreeSet<IpAddr>,
) -> Result<(Netns, Netns)> {
    let node = create(&netns_name(id, "node"), &FORWARD)?;
    let outside = create(&netns_name(id, "out"), &[])?;
    let Link { node4, outside4, node6, outside6 } = link;
    let mut lines = vec![
        "link set lo up".into(),
        format!("link add {UPLINK} type veth peer name {UPLINK} netns {}", outside.name()),
        format!("addr add {node4}/24 dev {UPLINK}"),
        format!("addr add {node6}/64 dev {UPLINK} nodad"),
    ];
    lines.extend(node_addresses.iter().map(|a| add_address(*a, UPLINK)));
    lines.push(format!("link set {UPLINK} up"));
    ip::batch(&node, &lines)?;

    let mut lines = vec![
        "link set lo up".into(),
        format!("addr add {outside4}/24 dev {UPLINK}"),
        format!("addr add {outside6}/64 dev {UPLINK} nodad"),
    ];
    lines.extend(outside_addresses.iter().map(|a| add_address(*a, "lo")));
    lines.extend([
        format!("link set {UPLINK} up"),
        format!("route add 0.0.0.0/0 via {node4}"),
        format!("-6 route add ::/0 via {node6}"),
    ]);
    ip::batch(&outside, &lines)?;
    ip::batch(
        &node,
        &[format!("route add 0.0.0.0/0 via {outside4}"), format!("-6 route add ::/0 via {outside6}")],
    )?;
    Ok((node, outside))
}

/// Gives the outside further addresses, and takes some away.
pub(crate) fn move_outside(
    outside: &Netns,
    add: &BTreeSet<IpAddr>,
    remove: &BTreeSet<IpAddr>,
) -> Result<()> {
    let removals = remove.iter().map(|a| format!("addr del {} dev lo", host_net(*a)));
    let lines: Vec<String> = removals.chain(add.iter().map(|a| add_address(*a, "lo"))).collect();
    if lines.is_empty() { Ok(()) } else { ip::batch(outside, &lines) }
}

/// Makes namespaces and veth pairs for pods, in the order given.
pub(crate) fn add_pods(node: &Netns, link: &Link, pods: &[(Place, Vec<IpAddr>)]) -> Result<Vec<Netns>> {
    let mut made = Vec::new();
    let mut lines = Vec::new();
    for (place, addresses) in pods {
        made.push(create(&place.netns, &[])?);
        let device = &place.device;
        lines.push(format!("link add {device} type veth peer name eth0 netns {}", place.netns));
        lines.push(format!("addr add fe80::1/64 dev {device} nodad"));
        lines.push(format!("link set {device} up"));
        lines.extend(addresses.iter().map(|address| {
            let (family, source) = match address {
                IpAddr::V4(_) => ("-4", IpAddr::V4(link.node4)),
                IpAddr::V6(_) => ("-6", IpAddr::V6(link.node6)),
            };
            format!("{family} route add {} dev {device} src {source}", host_net(*address))
        }));
    }
    ip::batch(node, &lines)?;
    for (netns, (_, addresses)) in made.iter().zip(pods) {
        let mut lines = vec!["link set lo up".into()];
        lines.extend(addresses.iter().map(|a| add_address(*a, "eth0")));
        lines.push("link set eth0 up".into());
        if addresses.iter().any(IpAddr::is_ipv4) {
            lines.push(format!("route add {}/32 dev eth0 scope link", link.node4));
            lines.push(format!("route add 0.0.0.0/0 via {} dev eth0", link.node4));
        }
        if addresses.iter().any(IpAddr::is_ipv6) {
            lines.push("-6 route add ::/0 via fe80::1 dev eth0".into());
        }
        ip::batch(netns, &lines)?;
    }
    Ok(made)
}

/// Takes a pod's veth pair and namespace away.
pub(crate) fn remove_pod(node: &Netns, netns: &str, device: &str) -> Result<()> {
    ip::batch(node, &[format!("link del {device}")])?;
    crate::netns::delete(netns)
}

fn create(name: &str, more: &[(&str, &str)]) -> Result<Netns> {
    let netns = Netns::create(name)?;
    netns.run(|| SYSCTLS.iter().chain(more).try_for_each(|(key, value)| set(key, value)))??;
    Ok(netns)
}

/// Sets what this kernel has; some settings are newer than the oldest kernels.
fn set(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(key);
    if !path.exists() {
        return Ok(());
    }
    fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
}

fn host_net(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}/32"),
        IpAddr::V6(v6) => format!("{v6}/128"),
    }
}

fn add_address(address: IpAddr, device: &str) -> String {
    let flag = if address.is_ipv6() { " nodad" } else { "" };
    format!("addr add {} dev {device}{flag}", host_net(address))
}
