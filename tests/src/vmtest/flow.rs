//! One flow through the attached kind of load: the maps of flows, which the asked kind leaves out.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use portcullis_common::event::{Action, Direction, Reason};
use portcullis_common::packet::{TCP, TCP_ACK, TCP_SYN};
use portcullis_policy::frame;
use portcullis_tests::attached::{Attached, Place};
use portcullis_tests::compare::{cluster_of, compile, key_of};
use portcullis_tests::device::Veth;
use serde_json::json;

const CLIENT: [u8; 4] = [10, 0, 0, 1];
const SERVER: [u8; 4] = [192, 0, 2, 7];

/// A pod that may reach one address at one port. A packet of a test run looks like one of the node's own, so
/// the flow goes out of the pod: that direction has no exemption.
pub(crate) fn follow() -> Result<String> {
    let cluster = cluster_of(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "client"},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "out"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
                    "ports": [{"protocol": "TCP", "port": 80}]}]}}),
    ]);
    let veth = Veth::create("pct-flow")?;
    let mut load = Attached::load()?;
    load.write(&cluster, &compile(&cluster), &[(key_of("x/client"), veth.index)])?;
    let mut put = |direction, (from, from_port), (to, to_port), flags, expected: (Action, Reason)| {
        let mut header = Vec::new();
        header.extend(u16::to_be_bytes(from_port));
        header.extend(u16::to_be_bytes(to_port));
        header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        let frame = frame::packet(IpAddr::from(from), IpAddr::from(to), TCP, &header).context("a frame")?;
        let before = load.packets(direction, expected.0, expected.1)?;
        let ran = load.run(Place { direction, ifindex: veth.index, came_from: 0 }, &frame, 1)?;
        let counted = load.packets(direction, expected.0, expected.1)? - before;
        ensure!(
            ran.action == expected.0 && counted == 1,
            "{direction:?} port {from_port} to {to_port} with flags {flags:#x}: {:?}, {counted} counted as {expected:?}",
            ran.action
        );
        Ok(())
    };
    let (client, server, closed) = ((CLIENT, 40_000), (SERVER, 80), (SERVER, 81));
    let (rule, flow) = ((Action::Allow, Reason::Rule), (Action::Allow, Reason::Flow));
    let isolated = (Action::Deny, Reason::Isolated);
    put(Direction::Egress, client, closed, TCP_SYN, isolated)?;
    put(Direction::Egress, client, server, TCP_SYN, rule)?;
    put(Direction::Ingress, server, client, TCP_SYN | TCP_ACK, flow)?;
    put(Direction::Egress, client, server, TCP_ACK, flow)?;
    put(Direction::Ingress, server, client, TCP_ACK, flow)?;
    Ok("refused, opened by a rule, answered, established".to_owned())
}
