//! T8: ICMP errors and echoes. T9: TCP's flags. T10: one pod's flows seen from another. T11: floods of new flows.

use std::process::Command;
use std::time::Duration;

use portcullis_common::event::{Direction, Reason};
use portcullis_lab::traffic::Liveness;
use portcullis_lab::{Ask, Client, Family, Probe, Target};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::field::{Fate, Field, OPEN, SHUT, Shot, Who};
use portcullis_tests::frames::{self, ACK, FIN, Path, RST, SYN, TCP, UDP};
use portcullis_tests::lifecycle::agent;
use portcullis_tests::privilege::number;
use serde_json::Value;

use crate::FAMILIES;

const SERVER: Who = Who::Pod("server");
const FRIEND: Who = Who::Pod("friend");
const STRANGER: Who = Who::Pod("stranger");
const OTHER: Who = Who::Pod("open");
const CAGED: Who = Who::Pod("caged");
const HALF: Who = Who::Pod("half");

const ISOLATED: Fate = Fate::Dropped(Direction::Ingress, Reason::Isolated);
const KEPT: Fate = Fate::Dropped(Direction::Egress, Reason::Isolated);
const SPOOFED: Fate = Fate::Dropped(Direction::Egress, Reason::SpoofedSource);

/// Connections that are held through a flood, and its datagrams; `PORTCULLIS_FLOOD` asks for another number.
const HELD: usize = 100;
const FLOOD: u64 = 20_000;

pub(crate) fn attack(field: &mut Field) {
    for family in FAMILIES {
        errors(field, family);
        errors_from_a_pod(field, family);
        echoes(field, family);
        flags_of_strangers(field, family);
        flags_that_open(field, family);
        flags_on_a_flow(field, family);
        tuples(field, family);
        flood(field, family);
    }
}

fn shot(threat: &'static str, what: &str, ends: (Who, &'static str), family: Family, fate: Fate) -> Shot {
    Shot { threat, what: what.to_owned(), from: ends.0, to: ends.1, family, fate }
}

fn datagram(path: Path, ports: (u16, u16), mark: &[u8]) -> Vec<Vec<u8>> {
    vec![frames::frame(path, UDP, &frames::udp(path, ports, mark))]
}

fn segment(path: Path, ports: (u16, u16), flags: u8, mark: &[u8]) -> Vec<Vec<u8>> {
    vec![frames::frame(path, TCP, &frames::tcp(path, ports, flags, mark))]
}

/// Types and codes of ICMP errors.
fn error_types(family: Family) -> Vec<(u8, u8)> {
    match family {
        Family::Ipv4 => {
            let unreachable = (0..16).map(|code| (3, code));
            unreachable.chain([(11, 0), (11, 1), (12, 0), (12, 1), (12, 2)]).collect()
        }
        Family::Ipv6 => {
            (0..7).map(|code| (1, code)).chain([(2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)]).collect()
        }
    }
}

/// An error about a datagram, of which more is embedded than it has to be: the mark.
fn error(path: Path, kind: (u8, u8), about: Path, ports: (u16, u16), mark: &[u8]) -> Vec<Vec<u8>> {
    let embedded = frames::packet(about, UDP, &frames::udp(about, ports, mark));
    error_with(path, kind, &embedded)
}

fn error_with(path: Path, kind: (u8, u8), embedded: &[u8]) -> Vec<Vec<u8>> {
    // The MTU of the two that carry one: one that changes nothing.
    let four = if kind == (3, 4) || path.is_v6() && kind.0 == 2 { [0, 0, 5, 0xdc] } else { [0; 4] };
    vec![frames::frame(path, path.icmp(), &frames::icmp(path, kind.0, kind.1, four, embedded))]
}

/// Errors towards an isolated pod, from somebody who may send it nothing.
fn errors(field: &mut Field, family: Family) {
    const CLIENT: u16 = 41_000;
    let unrelated = Fate::Dropped(Direction::Ingress, Reason::UnrelatedError);
    let live = (OPEN, CLIENT);
    field.shoot(&shot("T8", "the flow", (FRIEND, "server"), family, Fate::Arrives), |path, mark| {
        datagram(path, (CLIENT, OPEN), mark)
    });
    // What the server sent on it.
    let sent = field.path(SERVER, "friend", family);
    let ends = (STRANGER, "server");
    for kind in error_types(family) {
        let what = |about: &str| format!("error {}/{} about {about}", kind.0, kind.1);
        field.shoot(&shot("T8", &what("a live flow"), ends, family, Fate::Arrives), |path, mark| {
            error(path, kind, sent, live, mark)
        });
        let others = [
            ("another port", sent, (OPEN, CLIENT + 1)),
            ("a closed port", sent, (SHUT, CLIENT)),
            ("what the friend sent", sent.turned(), (CLIENT, OPEN)),
            ("another peer", sent.to(field.address(OTHER, family)), live),
            ("another pod's", sent.from(field.address(CAGED, family)), live),
        ];
        for (about, embedded, ports) in others {
            field.shoot(&shot("T8", &what(about), ends, family, unrelated), |path, mark| {
                error(path, kind, embedded, ports, mark)
            });
        }
    }
    let kind = error_types(family)[0];
    let embedded = frames::packet(sent, UDP, &frames::udp(sent, live, &[]));
    let header = embedded.len() - 8;
    let changed = |place: usize, byte: u8| {
        let mut changed = embedded.clone();
        changed[place] = byte;
        changed
    };
    let next = if family == Family::Ipv6 { 6 } else { 9 };
    let mut odd = vec![
        ("of another protocol", changed(next, TCP)),
        ("of another version", changed(0, 0x55)),
        ("that ends in its ports", embedded[..header + 4].to_vec()),
        ("that ends in its header", embedded[..header - 4].to_vec()),
        ("of nothing", Vec::new()),
    ];
    if family == Family::Ipv4 {
        odd.push(("of a later fragment", changed(7, 1)));
        odd.push(("of a short header", changed(0, 0x44)));
    }
    for (what, embedded) in odd {
        let what = format!("error about a packet {what}");
        field.shoot(&shot("T8", &what, ends, family, unrelated), |path, _| error_with(path, kind, &embedded));
    }
    // It makes nothing of what it names.
    let to_it = field.path(SERVER, "stranger", family);
    field.shoot(&shot("T8", "error about a flow to come", ends, family, unrelated), |path, mark| {
        error(path, kind, to_it, (SHUT, CLIENT), mark)
    });
    field.shoot(&shot("T8", "the flow that it named", ends, family, ISOLATED), |path, mark| {
        datagram(path, (CLIENT, SHUT), mark)
    });
}

/// Errors of a pod that may send nothing else.
fn errors_from_a_pod(field: &mut Field, family: Family) {
    const CLIENT: u16 = 41_100;
    let control = portcullis_tests::field::CONTROL;
    field.shoot(&shot("T8", "the flow", (FRIEND, "caged"), family, Fate::Arrives), |path, mark| {
        datagram(path, (CLIENT, control), mark)
    });
    let got = field.path(FRIEND, "caged", family);
    let unrelated = Fate::Dropped(Direction::Egress, Reason::UnrelatedError);
    for kind in error_types(family) {
        let what = |about: &str| format!("own error {}/{} about {about}", kind.0, kind.1);
        let ends = (CAGED, "friend");
        field.shoot(&shot("T8", &what("a live flow"), ends, family, Fate::Arrives), |path, mark| {
            error(path, kind, got, (CLIENT, control), mark)
        });
        for (about, embedded, ports) in [
            ("another port", got, (CLIENT + 1, control)),
            ("what it sent", got.turned(), (control, CLIENT)),
            ("another's", got.from(field.address(OTHER, family)), (CLIENT, control)),
        ] {
            field.shoot(&shot("T8", &what(about), ends, family, unrelated), |path, mark| {
                error(path, kind, embedded, ports, mark)
            });
        }
    }
}

/// Echo's types: request and reply.
const fn echo_types(family: Family) -> (u8, u8) {
    match family {
        Family::Ipv4 => (8, 0),
        Family::Ipv6 => (128, 129),
    }
}

fn echo(path: Path, kind: u8, id: u16, mark: &[u8]) -> Vec<Vec<u8>> {
    let [high, low] = id.to_be_bytes();
    vec![frames::frame(path, path.icmp(), &frames::icmp(path, kind, 0, [high, low, 0, 1], mark))]
}

fn echoes(field: &mut Field, family: Family) {
    const ID: u16 = 0x5150;
    let (request, reply) = echo_types(family);
    let t8 = |what: &str, ends, fate| shot("T8", what, ends, family, fate);
    let to_server = (STRANGER, "server");
    let stranger = field.address(STRANGER, family);
    field.shoot(&t8("echo reply to nothing", to_server, ISOLATED), |path, mark| echo(path, reply, ID, mark));
    field.shoot(&t8("echo request", to_server, ISOLATED), |path, mark| echo(path, request, ID, mark));
    // The friend may use a port, not echo.
    field
        .shoot(&t8("echo request", (FRIEND, "server"), ISOLATED), |path, mark| echo(path, request, ID, mark));
    field.shoot(&t8("echo request", (FRIEND, "bell"), Fate::Arrives), |path, mark| {
        echo(path, request, ID, mark)
    });
    field
        .shoot(&t8("echo request", (STRANGER, "bell"), ISOLATED), |path, mark| echo(path, request, ID, mark));
    // The server asks the stranger.
    field.shoot(&t8("the server's request", (SERVER, "stranger"), Fate::Arrives), |path, mark| {
        echo(path, request, ID, mark)
    });
    field.shoot(&t8("its reply", to_server, Fate::Arrives), |path, mark| echo(path, reply, ID, mark));
    for id in [ID + 1, ID.swap_bytes(), 0, !ID] {
        field.shoot(&t8(&format!("reply of id {id:#06x}"), to_server, ISOLATED), |path, mark| {
            echo(path, reply, id, mark)
        });
    }
    field.shoot(&t8("reply of another", (OTHER, "server"), ISOLATED), |path, mark| {
        echo(path, reply, ID, mark)
    });
    field.shoot(&t8("reply in another's name", (OTHER, "server"), SPOOFED), |path, mark| {
        echo(path.from(stranger), reply, ID, mark)
    });
    field.shoot(&t8("request as an answer", to_server, ISOLATED), |path, mark| echo(path, request, ID, mark));
    // Neither is a way in: source quench, redirect, timestamps, information, masks; of IPv6 what nobody gave a meaning.
    let others: &[u8] = match family {
        Family::Ipv4 => &[4, 5, 9, 10, 13, 14, 15, 16, 17, 18, 40, 255],
        Family::Ipv6 => &[0, 5, 100, 127, 138, 139, 140, 141, 142, 151, 200, 255],
    };
    for kind in others {
        field.shoot(&t8(&format!("ICMP type {kind}"), to_server, ISOLATED), |path, mark| {
            echo(path, *kind, ID, mark)
        });
    }
    // Half may not send; what it is asked it may answer, and no more.
    field.shoot(&t8("half is asked", (STRANGER, "half"), Fate::Arrives), |path, mark| {
        echo(path, request, ID, mark)
    });
    field.shoot(&t8("half answers", (HALF, "stranger"), Fate::Arrives), |path, mark| {
        echo(path, reply, ID, mark)
    });
    field.shoot(&t8("half asks back", (HALF, "stranger"), KEPT), |path, mark| echo(path, request, ID, mark));
    field.shoot(&t8("half answers what was not asked", (HALF, "stranger"), KEPT), |path, mark| {
        echo(path, reply, ID + 1, mark)
    });
}

/// Whatever the flags, from one that may send nothing, and to a port that nobody may send to.
fn flags_of_strangers(field: &mut Field, family: Family) {
    for (from, port) in [(STRANGER, OPEN), (STRANGER, SHUT), (FRIEND, SHUT)] {
        for flags in 0..=255 {
            let what = format!("flags {flags:#04x} to {port}");
            field.shoot(&shot("T9", &what, (from, "server"), family, ISOLATED), |path, mark| {
                segment(path, (40_900, port), flags, mark)
            });
        }
    }
}

/// What opens a flow: SYN, without what says that there is one already or is over.
const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | FIN | RST) == SYN
}

/// To a pod that anybody may send to and that may send nothing: it answers where a flow was opened, and nowhere else.
fn flags_that_open(field: &mut Field, family: Family) {
    for flags in 0..=255u8 {
        let ports = (30_000 + u16::from(flags), 20_000 + u16::from(flags));
        let what = format!("flags {flags:#04x} to half");
        field.shoot(&shot("T9", &what, (FRIEND, "half"), family, Fate::Arrives), |path, mark| {
            segment(path, ports, flags, mark)
        });
        let fate = if opens(flags) { Fate::Arrives } else { KEPT };
        field.shoot(
            &shot("T9", &format!("an answer to {what}"), (HALF, "friend"), family, fate),
            |path, mark| segment(path, (ports.1, ports.0), ACK, mark),
        );
    }
}

/// On the tuple of a flow that the isolated pod opened: all that belongs to it passes, nothing opens another, and no
/// flag kills it.
fn flags_on_a_flow(field: &mut Field, family: Family) {
    let (local, remote) = (42_000, 42_001);
    let ends = (STRANGER, "server");
    field
        .shoot(&shot("T9", "the server's SYN", (SERVER, "stranger"), family, Fate::Arrives), |path, mark| {
            segment(path, (local, remote), SYN, mark)
        });
    for flags in 0..=255u8 {
        let fate = if flags & (SYN | ACK) == SYN { ISOLATED } else { Fate::Arrives };
        let what = format!("flags {flags:#04x} on a flow");
        field.shoot(&shot("T9", &what, ends, family, fate), |path, mark| {
            segment(path, (remote, local), flags, mark)
        });
        for ports in [(remote + 1, local), (remote, local + 1)] {
            let what = format!("flags {flags:#04x} beside a flow");
            field.shoot(&shot("T9", &what, ends, family, ISOLATED), |path, mark| {
                segment(path, ports, flags, mark)
            });
        }
    }
    field.shoot(&shot("T9", "the flow goes on", ends, family, Fate::Arrives), |path, mark| {
        segment(path, (remote, local), ACK, mark)
    });
}

fn tuples(field: &mut Field, family: Family) {
    let (local, remote) = (43_000, 43_001);
    let t10 = |what: &str, ends, fate| shot("T10", what, ends, family, fate);
    let stranger = field.address(STRANGER, family);
    field.shoot(&t10("the server's datagram", (SERVER, "stranger"), Fate::Arrives), |path, mark| {
        datagram(path, (local, remote), mark)
    });
    field.shoot(&t10("its answer", (STRANGER, "server"), Fate::Arrives), |path, mark| {
        datagram(path, (remote, local), mark)
    });
    field.shoot(&t10("the same ports from another", (OTHER, "server"), ISOLATED), |path, mark| {
        datagram(path, (remote, local), mark)
    });
    field.shoot(&t10("the same tuple from another", (OTHER, "server"), SPOOFED), |path, mark| {
        datagram(path.from(stranger), (remote, local), mark)
    });
    field.shoot(&t10("its answer still", (STRANGER, "server"), Fate::Arrives), |path, mark| {
        datagram(path, (remote, local), mark)
    });
    // TCP: a flow that another would end.
    field.shoot(&t10("the server's SYN", (SERVER, "stranger"), Fate::Arrives), |path, mark| {
        segment(path, (local, remote), SYN, mark)
    });
    for flags in [RST, FIN | ACK, RST | ACK] {
        field.shoot(&t10("an end in another's name", (OTHER, "server"), SPOOFED), |path, mark| {
            segment(path.from(stranger), (remote, local), flags, mark)
        });
    }
    field.shoot(&t10("the flow goes on", (STRANGER, "server"), Fate::Arrives), |path, mark| {
        segment(path, (remote, local), ACK, mark)
    });
    // A flow of the caged pod is no way out for another, nor a way in for anybody.
    field.shoot(&t10("the caged pod's datagram", (CAGED, "server"), Fate::Arrives), |path, mark| {
        datagram(path, (local, OPEN), mark)
    });
    field.shoot(&t10("the same ports of half", (HALF, "server"), KEPT), |path, mark| {
        datagram(path, (local, OPEN), mark)
    });
    let caged = field.address(CAGED, family);
    field.shoot(&t10("the same tuple of half", (HALF, "server"), SPOOFED), |path, mark| {
        datagram(path.from(caged), (local, OPEN), mark)
    });
    field.shoot(&t10("the server's answer", (SERVER, "caged"), Fate::Arrives), |path, mark| {
        datagram(path, (OPEN, local), mark)
    });
    field.shoot(&t10("an answer of another", (STRANGER, "caged"), ISOLATED), |path, mark| {
        datagram(path, (OPEN, local), mark)
    });
}

/// A pod that is denied, and one that is not, send as much as they can: nobody else loses a flow, and what is denied
/// makes none.
fn flood(field: &mut Field, family: Family) {
    let count = number("PORTCULLIS_FLOOD", FLOOD);
    let probe = Probe {
        from: Client::Pod(ObjectKey::new("field", "friend")),
        to: Target::Pod(ObjectKey::new("field", "server"), family),
        ask: Ask::Port(Protocol::Tcp, OPEN),
    };
    let mut held = field.lab.hold(&vec![probe; HELD]).unwrap();
    // What is denied where it arrives, and what is denied where it leaves: neither makes a flow there.
    for (from, to, counted) in [(STRANGER, "server", "server"), (HALF, "open", "half")] {
        let path = field.path(from, to, family);
        let before = flows(field, counted);
        for sent in 0..count {
            // 60,000 ports of the sender to one, then to the next.
            let ports = (1024 + (sent % 60_000) as u16, 10_000 + (sent / 60_000) as u16);
            field.send(from, &frames::frame(path, UDP, &frames::udp(path, ports, &[])));
        }
        field.listen(from, to, family);
        let made = flows(field, counted).saturating_sub(before);
        // The legal frame behind the flood, and whatever else is going on.
        if made > 20 {
            field.wrong.push(format!("T11 {}: {made} flows at {counted} of what is denied", family.name()));
        }
    }
    let alive = held.ping(Duration::from_secs(10)).unwrap();
    let lost = alive.iter().filter(|one| **one != Liveness::Alive).count();
    if lost > 0 {
        field.wrong.push(format!("T11 {}: {lost} of {HELD} held connections lost", family.name()));
    }
}

/// Flows in a pod's table, as the agent counts them.
fn flows(field: &Field, pod: &str) -> u64 {
    let mut command = Command::new(agent());
    command.args(["endpoints", "-o", "json", "--run-dir"]).arg(field.lab.run_dir());
    let output = command.output().unwrap();
    let endpoints: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = endpoints.as_array().or_else(|| endpoints["endpoints"].as_array()).unwrap();
    let of_pod = all.iter().find(|one| one["name"] == pod || one["pod"] == format!("field/{pod}"));
    of_pod.and_then(|one| one["flows"]["entries"].as_u64()).unwrap_or_else(|| panic!("{pod} in {endpoints}"))
}
