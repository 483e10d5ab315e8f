//! Namespaces, veth pairs, addresses and routes: carries out a [`Plan`](crate::plan::Plan).

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::ip;
use crate::netns::Netns;
use crate::plan::Link;
use crate::shape::Cni;
use crate::state::netns_name;

/// The node side of the uplink and, in its own namespace, the outside's.
const UPLINK: &str = "uplink";

/// Interface indices of the node's devices. Chosen, because the kernel's link watch makes a veth pair whose two
/// ends happen to have the same index wait for its turn, which comes once a second.
const UPLINK_INDEX: u32 = 10;

/// The first pod's; see [`UPLINK_INDEX`].
const FIRST_INDEX: u32 = 100;

/// How long a device may take to come up; milliseconds, unless the machine is very busy.
const READY: Duration = Duration::from_secs(10);

/// Settings of every namespace. IPv6 addresses are usable at once; no router is asked for; ICMP errors are not
/// rated, because a closed UDP port is told from a dropped packet by one; many packets may wait for a
/// neighbour's address, because probes all start together; root may open ping sockets; a MAC address that is set is
/// announced.
const SYSCTLS: [(&str, &str); 17] = [
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "1000000"),
    ("net/ipv4/icmp_msgs_burst", "1000000"),
    ("net/ipv4/neigh/default/unres_qlen_bytes", "8388608"),
    ("net/ipv6/neigh/default/unres_qlen_bytes", "8388608"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/core/somaxconn", "8192"),
    ("net/ipv4/conf/all/arp_notify", "1"),
    ("net/ipv6/conf/all/ndisc_notify", "1"),
];

/// Settings that make the node a router.
const FORWARD: [(&str, &str); 2] =
    [("net/ipv4/conf/all/forwarding", "1"), ("net/ipv6/conf/all/forwarding", "1")];

/// Settings with which it answers at once for addresses that are not on its bridge, and sends nobody elsewhere.
const PROXY: [(&str, &str); 5] = [
    ("net/ipv6/conf/all/proxy_ndp", "1"),
    ("net/ipv4/neigh/default/proxy_delay", "0"),
    ("net/ipv6/neigh/default/proxy_delay", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// A pod's place: its namespace's name, and the host side of its veth pair.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The namespace.
    pub(crate) netns: String,
    /// The device in the node's namespace.
    pub(crate) device: String,
    /// The device's interface index.
    pub(crate) index: u32,
}

impl Place {
    /// The place for the pod with this number, unique among the lab's pods of all times.
    pub(crate) fn new(id: &str, number: u32) -> Self {
        Self {
            netns: netns_name(id, &format!("p{number}")),
            device: format!("pcl{number}"),
            index: FIRST_INDEX.saturating_add(number),
        }
    }

    /// The pod's MAC address: locally administered, and its number's.
    pub(crate) fn mac(&self) -> String {
        let [a, b, c, d] = self.index.to_be_bytes();
        format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }
}

/// Makes the namespaces of node and outside, and the uplink between them.
pub(crate) fn node_and_outside(
    id: &str,
    cni: Cni,
    link: &Link,
    node_addresses: &BTreeSet<IpAddr>,
    outside_addresses: &BTreeSet<IpAddr>,
) -> Result<(Netns, Netns)> {
    let node = create(&netns_name(id, "node"), &[&FORWARD[..], &PROXY].concat())?;
    let outside = create(&netns_name(id, "out"), &[])?;
    let Link { node4, outside4, node6, outside6 } = link;
    let mut lines = vec![
        "link set lo up".into(),
        format!(
            "link add {UPLINK} index {UPLINK_INDEX} type veth peer name {UPLINK} netns {}",
            outside.name()
        ),
        format!("addr add {node4}/24 dev {UPLINK}"),
        format!("addr add {node6}/64 dev {UPLINK} nodad"),
    ];
    lines.extend(node_addresses.iter().map(|a| add_address(*a, UPLINK)));
    lines.push(format!("link set {UPLINK} up"));
    lines.extend(cni.node_lines(link));
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
        format!("route add ::/0 via {node6}"),
    ]);
    ip::batch(&outside, &lines)?;
    ip::batch(
        &node,
        &[format!("route add 0.0.0.0/0 via {outside4}"), format!("route add ::/0 via {outside6}")],
    )?;
    wait_ready(&node, &[UPLINK])?;
    wait_ready(&outside, &[UPLINK])?;
    Ok((node, outside))
}

/// Gives the outside further addresses, and takes some away.
pub(crate) fn move_outside(outside: &Netns, add: &BTreeSet<IpAddr>, remove: &BTreeSet<IpAddr>) -> Result<()> {
    let removals = remove.iter().map(|a| format!("addr del {} dev lo", host_net(*a)));
    let lines: Vec<String> = removals.chain(add.iter().map(|a| add_address(*a, "lo"))).collect();
    if lines.is_empty() { Ok(()) } else { ip::batch(outside, &lines) }
}

/// Makes namespaces and veth pairs for pods, in the order given.
pub(crate) fn add_pods(
    node: &Netns,
    cni: Cni,
    link: &Link,
    pods: &[(Place, Vec<IpAddr>)],
) -> Result<Vec<Netns>> {
    let mut made = Vec::new();
    let mut lines = Vec::new();
    for (place, addresses) in pods {
        made.push(create(&place.netns, &[])?);
        lines.extend(cni.port_lines(link, place, addresses));
    }
    ip::batch(node, &lines)?;
    for (netns, (_, addresses)) in made.iter().zip(pods) {
        ip::batch(netns, &cni.pod_lines(link, addresses))?;
    }
    let devices: Vec<&str> = pods.iter().map(|(place, _)| place.device.as_str()).collect();
    wait_ready(node, &devices)?;
    for (netns, (place, _)) in made.iter().zip(pods) {
        wait_ready(netns, &["eth0"])?;
        let lines = cni.announce_lines(place);
        if !lines.is_empty() {
            ip::batch(netns, &lines)?;
        }
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

/// Waits until IPv6 works on devices. The end of a veth pair that comes up first is not ready before the
/// kernel's link watch has seen the other, and until then hears no neighbour solicitation. It has made its own
/// link-local address once it is.
fn wait_ready(netns: &Netns, devices: &[&str]) -> Result<()> {
    let deadline = Instant::now() + READY;
    netns.run(|| {
        loop {
            let text = fs::read_to_string("/proc/thread-self/net/if_inet6").context("listing addresses")?;
            let unready =
                devices.iter().find(|device| !text.lines().any(|line| is_own_link_local(line, device)));
            let Some(device) = unready else { return Ok(()) };
            ensure!(Instant::now() < deadline, "{device} in {} does not come up", netns.name());
            thread::sleep(Duration::from_millis(1));
        }
    })?
}

/// Reads a line of `if_inet6`: address, index, prefix, scope, flags, device.
fn is_own_link_local(line: &str, device: &str) -> bool {
    const GATEWAY: &str = "fe800000000000000000000000000001";
    const TENTATIVE: u32 = 0x40;
    let mut fields = line.split_whitespace();
    let own = fields.next().is_some_and(|address| address.starts_with("fe80") && address != GATEWAY);
    let flags = fields.nth(3).and_then(|flags| u32::from_str_radix(flags, 16).ok());
    own && flags.is_some_and(|flags| flags & TENTATIVE == 0) && fields.next() == Some(device)
}

pub(crate) fn host_net(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}/32"),
        IpAddr::V6(v6) => format!("{v6}/128"),
    }
}

pub(crate) fn add_address(address: IpAddr, device: &str) -> String {
    let flag = if address.is_ipv6() { " nodad" } else { "" };
    format!("addr add {} dev {device}{flag}", host_net(address))
}
