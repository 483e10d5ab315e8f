//! Frames of all kinds, whole, cut and corrupted: the loaded programs and userspace must judge each alike.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::net::IpAddr;

use portcullis_agent::bpf::load::{self, Purpose};
use portcullis_agent::bpf::probe::Private;
use portcullis_agent::world::{AskKernel as _, World};
use portcullis_common::event::{Action, Direction, Reason};
use portcullis_common::judge::{Origin, Verdict};
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::answer::{Answers, Question};
use portcullis_policy::frame;
use portcullis_policy::manifest::{self, SourceFile};
use portcullis_policy::model::ObjectKey;
use portcullis_policy::sizes::Sizes;
use portcullis_tests::compare::compile;
use portcullis_tests::privilege::{is_root, number};

/// Corrupted copies of each frame.
const CORRUPTIONS: u64 = 400;
/// `BPF_PROG_TEST_RUN` takes nothing shorter than an Ethernet header, and newer kernels (6.18) nothing that says
/// IP and ends before the fixed IP header does.
fn can_be_asked(frame: &[u8]) -> bool {
    let shortest = match frame.get(12..14) {
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        _ => 14,
    };
    frame.len() >= shortest
}

const OWN4: [u8; 4] = [10, 77, 0, 1];
const PEER4: [u8; 4] = [10, 77, 0, 2];
const OWN6: &str = "fd77::1";
const PEER6: &str = "fd77::2";

const MANIFESTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: x}}
---
{apiVersion: v1, kind: Pod, metadata: {name: closed, namespace: x, labels: {a: b}},
 spec: {containers: [{name: c}]}, status: {podIPs: [{ip: 10.77.0.1}, {ip: "fd77::1"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: open, namespace: x},
 spec: {containers: [{name: c}]}, status: {podIPs: [{ip: 10.77.0.2}, {ip: "fd77::2"}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: x},
 spec: {podSelector: {matchLabels: {a: b}}, policyTypes: [Ingress, Egress],
 ingress: [{ports: [{port: 80}, {protocol: UDP, port: 53}]}], egress: [{ports: [{port: 80}, {protocol: UDP, port: 53}]}]}}
"#;

fn world() -> World {
    let file = SourceFile { path: "frames.yaml", content: MANIFESTS.as_bytes() };
    let loaded = manifest::load_sources(&[file], &manifest::Options::default());
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let desired = compile(&loaded.cluster);
    World { cluster: loaded.cluster, desired, ..World::default() }
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

fn arp(sender: [u8; 4]) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2];
    body.extend(sender);
    body.extend([0; 6]);
    body.extend(PEER4);
    ethernet(0x0806, &body)
}

/// An IPv4 packet with options, from the pod or to it.
fn with_options(options: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(20 + options.len() + payload.len()).unwrap();
    let ihl = u8::try_from(5 + options.len() / 4).unwrap();
    let mut body = vec![0x40 | ihl, 0, 0, len, 0, 1, 0x40, 0, 64, 6, 0, 0];
    body.extend(OWN4);
    body.extend(PEER4);
    body.extend(options);
    body.extend(payload);
    ethernet(0x0800, &body)
}

fn ipv6(next: u8, hops: u8, from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut body = vec![0x60, 0, 0, 0];
    body.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    body.extend([next, hops]);
    body.extend(address(from));
    body.extend(address(to));
    body.extend(payload);
    ethernet(0x86dd, &body)
}

const SYN: [u8; 20] = [0xc3, 0x50, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
const HOP_BY_HOP: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];

/// What it is, its bytes, and, where a rule of its own says so, what its pod's egress makes of it.
type Frame = (&'static str, Vec<u8>, Option<(Action, Reason)>);

fn frames() -> Vec<Frame> {
    let (own, peer): (IpAddr, IpAddr) = (OWN4.into(), PEER4.into());
    let v4 = |protocol, payload: &[u8]| frame::packet(own, peer, protocol, payload).unwrap();
    let v6 = |next, payload: &[u8]| ipv6(next, 255, OWN6, PEER6, payload);
    let mut listener = HOP_BY_HOP.to_vec();
    listener.extend([143, 0, 0, 0, 0, 0, 0, 0]);
    let mut behind = HOP_BY_HOP.to_vec();
    behind[0] = 6;
    behind.extend(SYN);
    let mut error = vec![3, 4, 0, 0, 0, 0, 5, 0];
    error.extend(&frame::opening(peer, own, "TCP/80".parse().unwrap()).unwrap()[14..42]);
    let fragment = |mut frame: Vec<u8>, word: [u8; 2]| {
        frame[20..22].copy_from_slice(&word);
        frame
    };
    let deny = |reason| Some((Action::Deny, reason));
    let discovery = Some((Action::Allow, Reason::Discovery));
    vec![
        ("ARP of its own", arp(OWN4), discovery),
        ("ARP probe", arp([0; 4]), discovery),
        ("ARP for another", arp([10, 77, 0, 9]), deny(Reason::SpoofedSource)),
        ("TCP", v4(6, &SYN), Some((Action::Allow, Reason::Rule))),
        ("TCP behind options", with_options(&[1, 1, 1, 0], &SYN), Some((Action::Allow, Reason::Rule))),
        ("TCP behind 40 bytes of options", with_options(&[1; 40], &SYN), Some((Action::Allow, Reason::Rule))),
        ("source route", with_options(&[131, 7, 4, 10, 0, 0, 1, 0], &SYN), deny(Reason::SourceRoute)),
        ("tiny first fragment", fragment(v4(6, &SYN), [0x20, 0]), deny(Reason::Fragment)),
        ("later fragment", fragment(v4(6, &SYN), [0, 1]), deny(Reason::Fragment)),
        ("UDP", v4(17, &[0xc3, 0x50, 0, 53, 0, 8, 0, 0]), Some((Action::Allow, Reason::Rule))),
        ("SCTP", frame::opening(own, peer, "SCTP/80".parse().unwrap()).unwrap(), deny(Reason::Isolated)),
        ("echo", v4(1, &[8, 0, 0, 0, 0, 1, 0, 1]), None),
        ("ICMP error", v4(1, &error), None),
        ("DHCP discover", discover(), None),
        ("GRE", v4(47, &[0; 16]), None),
        ("IPv6 TCP", v6(6, &SYN), Some((Action::Allow, Reason::Rule))),
        ("neighbour solicitation", v6(58, &neighbour(135, "fd77::2")), discovery),
        (
            "long solicitation",
            v6(58, &[neighbour(135, "fd77::2"), vec![0; 200]].concat()),
            deny(Reason::BadHeader),
        ),
        ("timestamp", v4(1, &[13, 0, 0, 0, 0, 0, 0, 0]), deny(Reason::Isolated)),
        ("neighbour advertisement", v6(58, &neighbour(136, OWN6)), discovery),
        ("another's advertisement", v6(58, &neighbour(136, "fd77::9")), deny(Reason::SpoofedSource)),
        ("router advertisement", v6(58, &neighbour(134, OWN6)), None),
        ("listener report", ipv6(0, 1, OWN6, "ff02::16", &listener), discovery),
        ("TCP behind hop-by-hop", v6(0, &behind), Some((Action::Allow, Reason::Rule))),
        ("IPv6 fragment", v6(44, &[6, 0, 0, 1, 0, 0, 0, 1]), deny(Reason::Fragment)),
        ("mapped source", ipv6(6, 64, "::ffff:10.77.0.1", PEER6, &SYN), None),
        ("VLAN", ethernet(0x8100, &[0, 5, 8, 0, 0x45, 0, 0, 20]), deny(Reason::NotIp)),
        ("LLC", ethernet(0x0026, &[0x42, 0x42, 3, 0, 0, 0]), deny(Reason::NotIp)),
    ]
}

fn discover() -> Vec<u8> {
    let udp = [0, 68, 0, 67, 0, 8, 0, 0];
    frame::packet([0, 0, 0, 0].into(), [255; 4].into(), 17, &udp).unwrap()
}

fn neighbour(kind: u8, target: &str) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(target.parse::<std::net::Ipv6Addr>().unwrap().octets());
    message
}

struct Compared {
    answers: u64,
    wrong: Vec<String>,
}

fn compare(private: &Private, answers: &Answers<'_>, what: &str, frame: &[u8], compared: &mut Compared) {
    for pod in ["closed", "open"] {
        for (direction, origin) in [
            (Direction::Egress, Origin::OwnInterface),
            (Direction::Ingress, Origin::Forwarded),
            (Direction::Ingress, Origin::OwnNode),
        ] {
            let question =
                Question { pod: ObjectKey::new("x", pod), direction, origin, frame: frame.to_vec() };
            let userspace = answers.verdict(&question);
            let kernel = private.ask(&question).unwrap_or_else(|e| panic!("{what}: {e:#}: {frame:02x?}"));
            let kernel = kernel.expect("the pod has a slot");
            compared.answers += 1;
            let Verdict { action, reason, counter, .. } = userspace;
            if (kernel.action, kernel.reason, kernel.counter) != (action, reason, counter) {
                compared
                    .wrong
                    .push(format!("{what}: {question:02x?}: kernel {kernel:?}, userspace {userspace:?}"));
            }
        }
    }
}

#[test]
fn frames_are_judged_alike_in_kernel_and_userspace() {
    if !is_root("loading programs") {
        return;
    }
    let world = world();
    let private = Private::load(&world).unwrap();
    let answers = Answers::new(&world.cluster, &world.desired);
    let (count, seed) = (number("PORTCULLIS_CORRUPTIONS", CORRUPTIONS), number("PORTCULLIS_SEED", 1_000_000));
    let mut rng = SplitMix64::new(seed);
    let mut compared = Compared { answers: 0, wrong: Vec::new() };
    for (what, frame, _) in frames() {
        for len in (0..=frame.len()).filter(|len| can_be_asked(&frame[..*len])) {
            compare(&private, &answers, what, &frame[..len], &mut compared);
        }
        for _ in 0..count {
            let mut corrupt = frame.clone();
            for _ in 0..=rng.below(3) {
                // The destination's and source's MAC mean nothing here.
                let at = 12 + rng.below(frame.len() - 12);
                corrupt[at] = u8::try_from(rng.below(256)).unwrap();
            }
            if can_be_asked(&corrupt) {
                compare(&private, &answers, what, &corrupt, &mut compared);
            }
        }
    }
    println!("frames: {} answers from seed {seed}, {} wrong", compared.answers, compared.wrong.len());
    let some: Vec<&str> = compared.wrong.iter().take(10).map(String::as_str).collect();
    assert!(some.is_empty(), "{}", some.join("\n"));
}

#[test]
fn a_pods_own_frames_get_their_rules_verdict() {
    let world = world();
    let answers = Answers::new(&world.cluster, &world.desired);
    for (what, frame, expected) in frames() {
        let question = Question {
            pod: ObjectKey::new("x", "closed"),
            direction: Direction::Egress,
            origin: Origin::OwnInterface,
            frame,
        };
        let verdict = answers.verdict(&question);
        println!("{what}: {verdict:?}");
        if let Some(expected) = expected {
            assert_eq!((verdict.action, verdict.reason), expected, "{what}");
        }
    }
}

/// Instructions that the verifier may look at in one load before Linux refuses it: `BPF_COMPLEXITY_LIMIT_INSNS`.
const VERIFIER_LIMIT: u32 = 1_000_000;

#[test]
fn the_programs_are_far_from_what_the_verifier_gives_up_at() {
    if !is_root("loading programs") {
        return;
    }
    for purpose in [Purpose::Ask, Purpose::Attach] {
        let mut ebpf = load::load(purpose, None, &Sizes::default()).unwrap();
        for name in [load::POD_EGRESS, load::POD_INGRESS] {
            let info = load::classifier(&mut ebpf, name).unwrap().info().unwrap();
            // Told since Linux 5.16.
            let looked_at = info.verified_instruction_count().unwrap_or(0);
            println!("{purpose:?} {name}: {looked_at} instructions");
            assert!(looked_at < VERIFIER_LIMIT / 4, "{purpose:?} {name}: {looked_at}");
        }
        if purpose == Purpose::Attach {
            let out = load::classifier(&mut ebpf, load::DELIVER_OUT).unwrap().info().unwrap();
            let here = load::of_cgroup(&mut ebpf, load::DELIVER_HERE).unwrap().info().unwrap();
            let host_in = load::loaded(&mut ebpf, load::HOST_IN).unwrap().info().unwrap();
            let host_out = load::loaded(&mut ebpf, load::HOST_OUT).unwrap().info().unwrap();
            let all = [
                (load::DELIVER_OUT, out),
                (load::DELIVER_HERE, here),
                (load::HOST_IN, host_in),
                (load::HOST_OUT, host_out),
            ];
            for (name, info) in all {
                let looked_at = info.verified_instruction_count().unwrap_or(0);
                println!("{purpose:?} {name}: {looked_at} instructions");
                assert!(looked_at < VERIFIER_LIMIT / 4, "{name}: {looked_at}");
            }
        }
    }
}
