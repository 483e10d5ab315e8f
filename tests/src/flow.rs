//! One flow of each family through the attached kind of load: the maps of flows, which the asked kind leaves
//! out, and the ICMP errors that only a flow lets pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use portcullis_common::event::{Action, Direction, Reason};
use portcullis_common::packet::{ICMP, ICMPV6, TCP, TCP_ACK, TCP_SYN};
use portcullis_policy::frame;
use serde_json::json;

use crate::attached::{Attached, Place};
use crate::compare::{cluster_of, compile, key_of};
use crate::device::Veth;

const PORTS: (u16, u16) = (40_000, 80);
const ETHERNET_BYTES: usize = 14;
/// What an ICMP error carries behind the IP header at least.
const CARRIED: usize = 8;

const ALLOWED: (Action, Reason) = (Action::Allow, Reason::Rule);
const FLOW: (Action, Reason) = (Action::Allow, Reason::Flow);
const ISOLATED: (Action, Reason) = (Action::Deny, Reason::Isolated);
const RELATED: (Action, Reason) = (Action::Allow, Reason::RelatedError);
const UNRELATED: (Action, Reason) = (Action::Deny, Reason::UnrelatedError);

/// A pod that may reach one address at one port, refused elsewhere, then with an established flow. Needs root
/// and a network namespace in which a device may be made.
///
/// A packet of a test run looks like one of the node's own, so the flow goes out of the pod: that direction has
/// no exemption.
pub fn follow() -> Result<()> {
    let cluster = cluster_of(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "client"},
            "status": {"phase": "Running", "podIP": "10.0.0.1",
                "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "out"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                "egress": [{
                    "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "2001:db8::/64"}}],
                    "ports": [{"protocol": "TCP", "port": PORTS.1}]}]}}),
    ]);
    let veth = Veth::create("pct-flow")?;
    let mut load = Attached::load()?;
    load.write(&cluster, &compile(&cluster), &[(key_of("x/client"), veth.index)])?;
    let v4 = (IpAddr::from(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::from(Ipv4Addr::new(192, 0, 2, 7)));
    let v6: (Ipv6Addr, Ipv6Addr) = ("fd00::1".parse()?, "2001:db8::7".parse()?);
    for (client, server) in [v4, (v6.0.into(), v6.1.into())] {
        one(&mut load, veth.index, client, server).with_context(|| format!("{client} to {server}"))?;
    }
    Ok(())
}

fn one(load: &mut Attached, ifindex: u32, client: IpAddr, server: IpAddr) -> Result<()> {
    let (client_port, port) = PORTS;
    let mut put = |what, direction, frame: Result<Vec<u8>>, expected: (Action, Reason)| -> Result<()> {
        let before = load.packets(direction, expected.0, expected.1)?;
        let ran = load.run(Place { direction, ifindex, came_from: 0 }, &frame?, 1)?;
        let counted = load.packets(direction, expected.0, expected.1)? - before;
        ensure!(
            ran.action == expected.0 && counted == 1,
            "{what}: {:?}, {counted} counted as {expected:?}",
            ran.action
        );
        Ok(())
    };
    let out = |port, flags| tcp(client, server, client_port, port, flags);
    let back = |flags| tcp(server, client, port, client_port, flags);
    let error = |to_port| error(client, server, &tcp(server, client, port, to_port, TCP_ACK)?);
    put("SYN to a closed port", Direction::Egress, out(port + 1, TCP_SYN), ISOLATED)?;
    put("error about no flow", Direction::Egress, error(client_port), UNRELATED)?;
    put("SYN", Direction::Egress, out(port, TCP_SYN), ALLOWED)?;
    put("SYN-ACK", Direction::Ingress, back(TCP_SYN | TCP_ACK), FLOW)?;
    put("ACK", Direction::Egress, out(port, TCP_ACK), FLOW)?;
    put("ACK back", Direction::Ingress, back(TCP_ACK), FLOW)?;
    put("error about the flow", Direction::Egress, error(client_port), RELATED)?;
    put("error about another flow", Direction::Egress, error(client_port + 1), UNRELATED)
}

fn tcp(from: IpAddr, to: IpAddr, from_port: u16, to_port: u16, flags: u8) -> Result<Vec<u8>> {
    let mut header = Vec::new();
    header.extend(from_port.to_be_bytes());
    header.extend(to_port.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame::packet(from, to, TCP, &header).context("addresses of one family")
}

/// "Port unreachable" about the packet in a frame.
fn error(from: IpAddr, to: IpAddr, about: &[u8]) -> Result<Vec<u8>> {
    let (protocol, head, ip_bytes) = if from.is_ipv4() { (ICMP, [3, 3], 20) } else { (ICMPV6, [1, 4], 40) };
    let carried = about.get(ETHERNET_BYTES..ETHERNET_BYTES + ip_bytes + CARRIED).context("a whole packet")?;
    let payload = [&head, [0; 6].as_slice(), carried].concat();
    frame::packet(from, to, protocol, &payload).context("addresses of one family")
}
