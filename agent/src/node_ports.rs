//! What this node's rules translate at the addresses of nodes: node ports and load balancers of Services, host ports of the
//! node's own pods. Told apart by port, for at all others the node itself is meant. Not to know one closes: its address is
//! judged at the pod, and the backend where the packet is delivered.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;

use portcullis_policy::model::{Cluster, HostPort, Protocol};

use crate::attach::foreign;

/// Addresses of nodes, and ports that are translated at any of them. Where one is not translated at that address, it is judged
/// as what it is where it is delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodePorts {
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) ports: BTreeSet<(Protocol, u16)>,
}

impl NodePorts {
    /// Of this cluster, and of the node that this is, as its kernel says.
    pub(crate) fn find(cluster: &Cluster, node: Option<&str>) -> anyhow::Result<Self> {
        let mut found = Self::new(cluster, node, foreign::node_addresses)?;
        if found.ports.iter().any(|(protocol, _)| *protocol == Protocol::Udp) {
            for file in ["/proc/self/net/udp", "/proc/self/net/udp6"] {
                match fs::read_to_string(file) {
                    Ok(text) => found.keep_from(&bound_ports(&text)),
                    // Without IPv6.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(anyhow::Error::new(error).context(format!("reading {file}"))),
                }
            }
        }
        Ok(found)
    }

    /// Where somebody on the node takes datagrams it may be the kernel itself (a tunnel), which does so before the node's
    /// cgroups see them: these are judged at the pod, too.
    fn keep_from(&mut self, ports: &BTreeSet<u16>) {
        self.ports.retain(|(protocol, port)| *protocol != Protocol::Udp || !ports.contains(port));
    }

    /// Of this cluster, on this node; `own` reads the node's addresses, and is asked only where a port needs them.
    pub(crate) fn new<E>(
        cluster: &Cluster,
        node: Option<&str>,
        own: impl FnOnce() -> Result<BTreeSet<IpAddr>, E>,
    ) -> Result<Self, E> {
        let mut found = Self::default();
        let of_services = cluster.services.values().flat_map(|service| service.ports.iter());
        found.ports.extend(of_services.filter_map(|port| Some((port.protocol, port.node_port?))));
        let here = cluster.pods.values().filter(|pod| {
            pod.is_live() && node.is_none_or(|node| pod.node.as_deref().is_none_or(|on| on == node))
        });
        let is_outside = |port: &&HostPort| port.host_ip.is_none_or(|address| !address.is_loopback());
        let of_pods = here.flat_map(|pod| pod.host_ports.iter()).filter(is_outside);
        found.ports.extend(of_pods.map(|port| (port.protocol, port.host_port)));
        if !found.ports.is_empty() {
            found.addresses = own()?;
        }
        // A load balancer whose address is a node's.
        let nodes: BTreeSet<IpAddr> =
            cluster.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
        for service in cluster.services.values() {
            let mut claimed = service.addresses.intersection(&nodes).copied().peekable();
            if claimed.peek().is_some() {
                found.ports.extend(service.ports.iter().map(|port| (port.protocol, port.port)));
                found.addresses.extend(claimed);
            }
        }
        Ok(found)
    }
}

/// Ports of sockets that take datagrams from anybody, in a table of `/proc/net/udp`'s form.
fn bound_ports(table: &str) -> BTreeSet<u16> {
    let port = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (_, port) = words.next()?.rsplit_once(':')?;
        let (_, remote) = words.next()?.rsplit_once(':')?;
        (remote == "0000").then(|| u16::from_str_radix(port, 16).ok())?
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use portcullis_policy::manifest::{Options, SourceFile, load_sources};

    use super::*;

    const OWN: [&str; 2] = ["172.18.0.2", "fd00::2"];

    fn found(text: &str, node: Option<&str>) -> NodePorts {
        let file = SourceFile { path: "x.yaml", content: text.as_bytes() };
        let cluster = load_sources(&[file], &Options::default()).cluster;
        let own = || Ok::<_, Infallible>(OWN.map(|address| address.parse().unwrap()).into());
        NodePorts::new(&cluster, node, own).unwrap()
    }

    fn ports(ports: &[(Protocol, u16)]) -> BTreeSet<(Protocol, u16)> {
        ports.iter().copied().collect()
    }

    #[test]
    fn node_ports_are_at_the_own_nodes_addresses() {
        let found = found(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: NodePort, clusterIP: 10.96.0.1, \
             selector: {a: b}, ports: [{port: 80, nodePort: 30080}, {port: 53, protocol: UDP, nodePort: 30053}]}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 81}]}",
            None,
        );
        assert_eq!(found.ports, ports(&[(Protocol::Tcp, 30080), (Protocol::Udp, 30053)]));
        assert_eq!(found.addresses, OWN.map(|address| address.parse().unwrap()).into());
    }

    #[test]
    fn where_somebody_takes_datagrams_is_no_node_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n \
                     10: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4710 2\n \
                     11: 0100007F:7580 0100007F:0035 01 00000000:00000000 00:00000000 00000000     0        0 4711 2\n\
                     broken 7581\n";
        assert_eq!(bound_ports(table), BTreeSet::from([4789]));
        let all = [(Protocol::Udp, 4789), (Protocol::Tcp, 4789), (Protocol::Udp, 30080)];
        let mut found = NodePorts { addresses: BTreeSet::new(), ports: ports(&all) };
        found.keep_from(&bound_ports(table));
        assert_eq!(found.ports, ports(&[(Protocol::Tcp, 4789), (Protocol::Udp, 30080)]));
    }

    #[test]
    fn without_a_port_nobody_asks_for_the_nodes_addresses() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 81}]}";
        assert_eq!(found(text, None), NodePorts::default());
    }

    #[test]
    fn host_ports_are_those_of_this_nodes_pods() {
        let pod = |name, node, port| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}, containers: [{{name: c, \
                 ports: [{{containerPort: 80, hostPort: {port}}}]}}]}}\nstatus: {{podIP: 10.0.0.{port}}}\n"
            )
        };
        let text = pod("a", "n1", 81) + &pod("b", "n2", 82);
        assert_eq!(found(&text, Some("n1")).ports, ports(&[(Protocol::Tcp, 81)]));
        assert_eq!(found(&text, None).ports, ports(&[(Protocol::Tcp, 81), (Protocol::Tcp, 82)]));
    }

    #[test]
    fn a_load_balancer_on_another_node_is_at_that_nodes_address() {
        let found = found(
            "apiVersion: v1\nkind: Node\nmetadata: {name: n2}\nstatus: {addresses: [{type: InternalIP, address: 172.18.0.3}]}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: LoadBalancer, clusterIP: 10.96.0.1, \
             ports: [{port: 443}]}\nstatus: {loadBalancer: {ingress: [{ip: 172.18.0.3}]}}",
            None,
        );
        assert_eq!(found.ports, ports(&[(Protocol::Tcp, 443)]));
        assert_eq!(found.addresses, BTreeSet::from(["172.18.0.3".parse().unwrap()]));
    }
}
