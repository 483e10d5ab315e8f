//! What an endpoint sees of a tracked connection.

use portcullis_common::packet::{ICMP, UDP};

use super::*;

const GENERATION: u32 = 5;
const NOW: u32 = 1_000;

fn tuple(source: [u8; 4], source_port: u16, destination: [u8; 4], destination_port: u16) -> Tuple {
    Tuple { source: source.into(), destination: destination.into(), source_port, destination_port }
}

/// From 10.0.0.1 to a Service, whose backend is 10.0.0.2; the backend sees the node.
fn translated(protocol: u8, stage: Stage) -> Tracked {
    Tracked {
        protocol,
        original: tuple([10, 0, 0, 1], 40_000, [10, 96, 0, 1], 80),
        reply: tuple([10, 0, 0, 2], 8080, [10, 0, 0, 254], 50_000),
        stage,
    }
}

fn flow_of(tracked: &Tracked, opener: Opener) -> (FlowKey, FlowEntry) {
    flow(tracked, opener, 1, GENERATION, NOW)
}

#[test]
fn who_opened_sees_the_service_and_the_backend_who_it_was_told() {
    let tracked = translated(TCP, Stage::Established);
    let (key, entry) = flow_of(&tracked, Opener::Pod);
    assert_eq!((key.remote, key.local_port, key.remote_port), (wire_addr([10, 96, 0, 1].into()), 40_000, 80));
    assert_eq!((key.protocol, key.local), (TCP, 1));
    assert_eq!(entry.tag, key.tag(), "opened by the pod");
    let (key, entry) = flow_of(&tracked, Opener::Other { is_node: false });
    let expected = (wire_addr([10, 0, 0, 254].into()), 8080, 50_000);
    assert_eq!((key.remote, key.local_port, key.remote_port), expected);
    assert_eq!(entry.tag, key.tag() | FLOW_OPENED_INGRESS);
}

#[test]
fn no_generation_makes_a_taken_flow_current() {
    let (_, entry) = flow_of(&translated(TCP, Stage::Established), Opener::Pod);
    // Generation and epochs, added up, begin at the generation and grow.
    assert!((0..1_000).all(|epochs| entry.stamp != GENERATION + epochs), "{entry:?}");
    assert_eq!((entry.seen, entry.opened, entry.counter), (NOW, NOW, COUNTER_NONE));
}

#[test]
fn stages_are_states() {
    let state = |stage| flow_of(&translated(TCP, stage), Opener::Pod).1.state;
    let stages = [Stage::Opening, Stage::Answered, Stage::Established, Stage::Closing];
    assert_eq!(stages.map(state), [STATE_OPENING, STATE_ANSWERED, STATE_ESTABLISHED, STATE_CLOSING]);
}

#[test]
fn only_what_cannot_be_forged_is_the_nodes_own() {
    let by_node = |protocol| {
        let (key, entry) = flow_of(&translated(protocol, Stage::Answered), Opener::Other { is_node: true });
        entry.tag & !key.tag()
    };
    assert_eq!(by_node(TCP), FLOW_OPENED_INGRESS | FLOW_OWN_NODE);
    assert_eq!(by_node(SCTP), FLOW_OPENED_INGRESS | FLOW_OWN_NODE);
    assert_eq!([by_node(UDP), by_node(ICMP)], [FLOW_OPENED_INGRESS; 2]);
}
