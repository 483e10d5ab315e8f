//! The attacks of the threat model that are made of frames, by real packets against a real agent: IPv4 and IPv6,
//! routed and behind a bridge, with a node that tracks connections and one that does not.
//!
//! A lab is dear, so each of the four runs all attacks in turn. An attack is a shot or several of
//! [`portcullis_tests::field`]; what is wrong is collected and told at the end.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on has failed"
)]

mod absence;
mod extensions;
mod flows;
mod fragments;
mod headers;
mod links;
mod node;
mod sctp;
mod spoofing;
mod tunnels;

use std::time::Instant;

use portcullis_common::event::Direction;
use portcullis_lab::{Cni, Family};
use portcullis_tests::field::{Conntrack, Field, Who};
use portcullis_tests::privilege::is_root;

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// A way to the server, on which one direction is isolated but for the open port.
#[derive(Clone, Copy)]
struct Way {
    from: Who,
    direction: Direction,
}

/// Judged where it arrives, and judged where it leaves.
const WAYS: [Way; 2] = [
    Way { from: Who::Pod("friend"), direction: Direction::Ingress },
    Way { from: Who::Pod("caged"), direction: Direction::Egress },
];

/// Attacks of one kind.
type Round = fn(&mut Field);

fn attacks(cni: Cni, conntrack: Conntrack) {
    if !is_root("a lab") {
        return;
    }
    let begin = Instant::now();
    // Of rules that match nothing one lab is enough: what becomes of them is the same in all.
    let (manifests, heard) = match (cni, conntrack) {
        (Cni::Routed, Conntrack::Off) => (absence::manifests(), &absence::PODS[..]),
        (Cni::Routed | Cni::Bridge, _) => (String::new(), &[][..]),
    };
    let mut field = Field::up(cni, conntrack, &manifests, heard);
    let up = begin.elapsed();
    let rounds: [(&str, Round); 11] = [
        ("headers", headers::attack),
        ("fragments", fragments::attack),
        ("segments", fragments::segments),
        ("extensions", extensions::attack),
        ("links", links::attack),
        ("spoofing", spoofing::attack),
        ("tunnels", tunnels::attack),
        ("flows", flows::attack),
        ("sctp", sctp::attack),
        ("absence", absence::attack),
        ("node", node::attack),
    ];
    let mut took = vec![format!("up {up:.1?}")];
    for (name, round) in rounds {
        let begin = Instant::now();
        round(&mut field);
        took.push(format!("{name} {:.1?}", begin.elapsed()));
    }
    println!("{}", took.join(", "));
    field.close();
}

#[test]
fn routed() {
    attacks(Cni::Routed, Conntrack::Off);
}

#[test]
fn routed_and_tracked() {
    attacks(Cni::Routed, Conntrack::On);
}

#[test]
fn bridged() {
    attacks(Cni::Bridge, Conntrack::Off);
}

#[test]
fn bridged_and_tracked() {
    attacks(Cni::Bridge, Conntrack::On);
}
