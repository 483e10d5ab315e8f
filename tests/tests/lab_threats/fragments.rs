//! T2: datagrams in pieces, in every order, too small, one over another, of two senders; and legal ones, which arrive
//! whole.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use portcullis_common::event::{Direction, Reason};
use portcullis_lab::{Cni, Family};
use portcullis_tests::field::{Conntrack, Fate, Field, Mark, OPEN, SHUT, Shot, Who};
use portcullis_tests::frames::{self, ACK, ICMP, ICMPV6, Path, SCTP, SYN, TCP, UDP};

use crate::{FAMILIES, WAYS, Way};

/// Bytes of a piece: a transport header and a mark fit.
const PIECE: usize = 32;
/// How long a legal datagram may take on a loaded machine.
const SOON: Duration = Duration::from_secs(10);

pub(crate) fn attack(field: &mut Field) {
    let mut ids = 0x2000;
    for family in FAMILIES {
        for way in WAYS {
            for count in 2..=4 {
                for order in orders(count) {
                    for (protocol, port) in
                        [(UDP, OPEN), (UDP, SHUT), (TCP, OPEN), (SCTP, OPEN), (SCTP, SHUT)]
                    {
                        if protocol == UDP || count == 2 {
                            ids += 1;
                            train(field, way, family, (protocol, port), ids, &order);
                        }
                    }
                }
            }
        }
        tiny(field, family);
        over_another(field, family);
        of_another(field, family);
        never_in_pieces(field, family);
        big_datagrams(field, family);
        big_echoes(field, family);
    }
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    let insert = |order: &Vec<usize>, at: usize| {
        let mut longer = order.clone();
        longer.insert(at, count - 1);
        longer
    };
    shorter.iter().flat_map(|order| (0..count).map(|at| insert(order, at)).collect::<Vec<_>>()).collect()
}

/// What stands at the beginning of a datagram of so many bytes in all, from a client to a port.
fn begin(path: Path, protocol: u8, port: u16, rest: &[u8]) -> Vec<u8> {
    match protocol {
        TCP => frames::tcp(path, (40_100, port), SYN, rest),
        SCTP => frames::sctp((40_100, port), 0, &frames::chunk(1, 0, rest)),
        _ => frames::udp(path, (40_100, port), rest),
    }
}

/// A mark in each piece, behind where a transport header may be. The first piece's stands in its last bytes.
fn marked(
    field: &mut Field,
    path: Path,
    (protocol, port): (u8, u16),
    id: u32,
    count: usize,
) -> Vec<(Vec<u8>, Mark)> {
    let marks: Vec<Mark> = (0..count).map(|_| field.mark()).collect();
    let mut whole = vec![0; PIECE * count];
    for (number, mark) in marks.iter().enumerate() {
        let end = (number + 1) * PIECE;
        whole[end - 8..end].copy_from_slice(mark);
    }
    let header = begin(path, protocol, port, &[]).len();
    let whole = begin(path, protocol, port, &whole[header..]);
    frames::pieces(path, protocol, id, PIECE, &whole).into_iter().zip(marks).collect()
}

/// Which pieces get past a program that judges them in this order, and how many come ahead of their first.
fn judged(order: &[usize], allowed: bool) -> (Vec<usize>, usize) {
    let ahead = order.iter().take_while(|piece| **piece != 0).count();
    let rest = order.iter().skip(ahead).copied();
    if allowed { (rest.collect(), ahead) } else { (Vec::new(), ahead) }
}

/// A datagram in pieces, sent in this order.
fn train(field: &mut Field, way: Way, family: Family, to: (u8, u16), id: u32, order: &[usize]) {
    let allowed = to.1 == OPEN;
    let path = field.path(way.from, "server", family);
    let pieces = marked(field, path, to, id, order.len());
    let sent: Vec<(Vec<u8>, Mark)> = order.iter().map(|piece| pieces[*piece].clone()).collect();
    let (mut there, mut ahead) = match way.direction {
        Direction::Egress => judged(order, allowed),
        Direction::Ingress => (order.to_vec(), 0),
    };
    if field.conntrack == Conntrack::On {
        // The node puts it together, or keeps it.
        there.sort_unstable();
        if there.len() < order.len() {
            there.clear();
        }
    }
    let (arrived, late) = judged(&there, allowed);
    if way.direction == Direction::Ingress {
        ahead = late;
    }
    // By their places among what was sent.
    let arrives: BTreeSet<usize> = order
        .iter()
        .enumerate()
        .filter(|(_, piece)| arrived.contains(piece))
        .map(|(place, _)| place)
        .collect();
    let denied = usize::from(!allowed && (way.direction == Direction::Egress || there.contains(&0)));
    // Of a denied datagram everything but its first came ahead of it.
    let ahead = match (allowed, way.direction) {
        (true, _) => ahead,
        (false, Direction::Egress) => order.len() - 1,
        (false, Direction::Ingress) => there.len().saturating_sub(1),
    };
    // A node that takes a datagram apart again stops at the first piece that is not taken.
    let fate = match (field.conntrack, way.direction) {
        (Conntrack::On, Direction::Ingress) => Fate::Lost,
        (Conntrack::On | Conntrack::Off, _) => Fate::Dropped(way.direction, Reason::FragmentAhead),
    };
    let shot = Shot {
        threat: "T2",
        what: format!("pieces {order:?}, protocol {}, port {}", to.0, to.1),
        from: way.from,
        to: "server",
        family,
        fate,
    };
    let isolated = field.counted(way.direction, portcullis_common::event::Outcome::Deny, Reason::Isolated);
    field.volley(&shot, &sent, &arrives, ahead);
    let isolated =
        field.counted(way.direction, portcullis_common::event::Outcome::Deny, Reason::Isolated) - isolated;
    if isolated != denied as u64 {
        field.wrong.push(format!("T2 {}: {isolated} and not {denied} isolated", shot.what));
    }
}

/// One frame of a kind, with a mark of its own.
fn one(field: &mut Field, shot: &Shot, make: impl FnOnce(Path, &[u8]) -> Vec<u8>) {
    field.shoot(shot, |path, mark| vec![make(path, mark)]);
}

fn shot(what: &str, from: Who, to: &'static str, family: Family, fate: Fate) -> Shot {
    Shot { threat: "T2", what: what.to_owned(), from, to, family, fate }
}

const CAGED: Who = Who::Pod("caged");
const FRIEND: Who = Who::Pod("friend");
const BAD: Fate = Fate::Dropped(Direction::Egress, Reason::Fragment);
const AHEAD: Fate = Fate::Dropped(Direction::Egress, Reason::FragmentAhead);

/// First pieces without the whole header, and second pieces that would bring the rest of it.
fn tiny(field: &mut Field, family: Family) {
    let id = 0x3000;
    for (protocol, header) in [(TCP, 20), (SCTP, 16), (UDP, 8)] {
        for bytes in (8..header).step_by(8) {
            let what = format!("{bytes} bytes of protocol {protocol}");
            one(field, &shot(&what, CAGED, "server", family, BAD), |path, _| {
                frames::piece(path, protocol, id, 0, true, &begin(path, protocol, OPEN, &[0; 64])[..bytes])
            });
            // And so what would complete it comes ahead.
            let fate = if bytes == 8 { BAD } else { AHEAD };
            one(
                field,
                &shot(&format!("what follows {what}"), CAGED, "server", family, fate),
                |path, mark| {
                    frames::piece(path, protocol, id, (bytes / 8) as u16, false, &[&[0; 16], mark].concat())
                },
            );
        }
    }
    // TCP whose options are in the next piece.
    one(field, &shot("TCP without its options", CAGED, "server", family, BAD), |path, mark| {
        let mut segment = begin(path, TCP, OPEN, mark);
        segment[12] = 0xf0;
        segment.resize(56, 0);
        frames::piece(path, TCP, id + 1, 0, true, &segment)
    });
    for (what, offset, more, length) in [
        ("offset 1", 1, true, 16),
        ("offset 1, the last", 1, false, 16),
        ("nothing", 4, true, 0),
        ("nothing, the last", 4, false, 0),
        ("no whole units", 4, true, 15),
        ("the end past 64 KiB", 0x1fff, false, 64),
    ] {
        one(field, &shot(what, CAGED, "server", family, BAD), |path, _| {
            frames::piece(path, UDP, id + 2, offset, more, &vec![0; length])
        });
    }
}

/// Pieces that write over others.
fn over_another(field: &mut Field, family: Family) {
    let id = 0x3100;
    let tracked = field.conntrack == Conntrack::On;
    // A node that puts pieces together hands on none of a datagram that is never whole.
    let arrives = if tracked { Fate::Lost } else { Fate::Arrives };
    let whole = |path, port, mark: &[u8]| begin(path, UDP, port, &[&[0; 16], mark, &[0; 16]].concat());
    one(field, &shot("a first piece", CAGED, "server", family, arrives), |path, mark| {
        frames::piece(path, UDP, id, 0, true, &whole(path, OPEN, mark)[..40])
    });
    for offset in 2..5 {
        for more in [true, false] {
            let what = format!("one over the first, at {offset}");
            one(field, &shot(&what, CAGED, "server", family, BAD), |path, mark| {
                frames::piece(path, UDP, id, offset, more, &[&[0; 32], mark].concat())
            });
        }
    }
    let denied = Fate::Dropped(Direction::Egress, Reason::Isolated);
    one(field, &shot("another first, to another port", CAGED, "server", family, denied), |path, mark| {
        frames::piece(path, UDP, id, 0, true, &whole(path, SHUT, mark)[..40])
    });
    one(field, &shot("the first's own second", CAGED, "server", family, arrives), |path, mark| {
        frames::piece(path, UDP, id, 5, true, &[&[0; 32], mark].concat())
    });
    // A second first piece, longer than the first one: what it covers is covered from then on.
    one(field, &shot("a longer first", CAGED, "server", family, arrives), |path, mark| {
        frames::piece(path, UDP, id, 0, true, &begin(path, UDP, OPEN, &[&[0; 64], mark].concat()))
    });
    one(field, &shot("one over the longer first", CAGED, "server", family, BAD), |path, mark| {
        frames::piece(path, UDP, id, 9, true, &[&[0; 32], mark].concat())
    });
}

/// The same identification from somebody else, another way, another protocol, or later.
fn of_another(field: &mut Field, family: Family) {
    let id = 0x3200;
    let tracked = field.conntrack == Conntrack::On;
    let arrives = if tracked { Fate::Lost } else { Fate::Arrives };
    let caged = field.address(CAGED, family);
    let first = |path, mark: &[u8]| {
        frames::piece(path, UDP, id, 0, true, &begin(path, UDP, OPEN, &[&[0; 16], mark].concat()))
    };
    let second = |path, protocol, id, mark: &[u8]| {
        frames::piece(path, protocol, id, 4, true, &[&[0; 16], mark].concat())
    };
    one(field, &shot("a first piece", CAGED, "server", family, arrives), |path, mark| first(path, mark));
    let half = Who::Pod("half");
    one(field, &shot("a second of another", half, "server", family, AHEAD), |path, mark| {
        second(path, UDP, id, mark)
    });
    let spoofed = Fate::Dropped(Direction::Egress, Reason::SpoofedSource);
    one(field, &shot("a second in its name", half, "server", family, spoofed), |path, mark| {
        second(path.from(caged), UDP, id, mark)
    });
    one(field, &shot("another protocol's", CAGED, "server", family, AHEAD), |path, mark| {
        second(path, TCP, id, mark)
    });
    one(field, &shot("another identification's", CAGED, "server", family, AHEAD), |path, mark| {
        second(path, UDP, id + 1, mark)
    });
    one(field, &shot("to another", CAGED, "open", family, AHEAD), |path, mark| second(path, UDP, id, mark));
    one(field, &shot("its own", CAGED, "server", family, arrives), |path, mark| second(path, UDP, id, mark));
    // Towards a pod.
    let ingress = if tracked { Fate::Lost } else { Fate::Dropped(Direction::Ingress, Reason::FragmentAhead) };
    one(field, &shot("one the other way", Who::Pod("server"), "caged", family, ingress), |path, mark| {
        second(path, UDP, id, mark)
    });
    one(field, &shot("a first of a friend", FRIEND, "server", family, arrives), |path, mark| {
        first(path, mark)
    });
    one(
        field,
        &shot("a second of a stranger", Who::Pod("stranger"), "server", family, ingress),
        |path, mark| second(path, UDP, id, mark),
    );
    // Once it has passed whole there is nothing to ride on.
    let way = WAYS[1];
    train(field, way, family, (UDP, OPEN), id + 2, &[0, 1]);
    one(field, &shot("one after the last", CAGED, "server", family, AHEAD), |path, mark| {
        second(path, UDP, id + 2, mark)
    });
}

/// What is never made of pieces: errors and discovery.
fn never_in_pieces(field: &mut Field, family: Family) {
    let id = 0x3300;
    let (protocol, kinds): (u8, &[u8]) = match family {
        Family::Ipv4 => (ICMP, &[3, 11, 12]),
        Family::Ipv6 => (ICMPV6, &[1, 2, 3, 4]),
    };
    for kind in kinds {
        one(field, &shot(&format!("error {kind}"), CAGED, "server", family, BAD), |path, _| {
            let message = frames::icmp(path, *kind, 0, [0; 4], &frames::packet(path.turned(), UDP, &[0; 8]));
            let cut = message.len() / 8 * 8;
            frames::piece(path, protocol, id, 0, true, &message[..cut])
        });
    }
    if family == Family::Ipv6 {
        // As it would pass, were it whole.
        for kind in [133, 135, 136, 137] {
            let fate = match (kind, field.cni) {
                // No pod redirects.
                (137, Cni::Bridge) => Fate::Dropped(Direction::Egress, Reason::SpoofedSource),
                (_, Cni::Routed | Cni::Bridge) => BAD,
            };
            one(field, &shot(&format!("discovery {kind}"), CAGED, "server", family, fate), |path, mark| {
                let target = if kind == 133 { Vec::new() } else { frames::octets(path.src) };
                let rest = [target, vec![14, 2, 0, 0, 0, 0, 0, 0], mark.to_vec()].concat();
                let message = frames::icmp(path, kind, 0, [0; 4], &rest);
                let body = frames::fragment_header(ICMPV6, id, 0, true, &message);
                frames::frame_with_hops(path, 255, frames::FRAGMENT, &body)
            });
        }
    }
}

fn within(socket: &UdpSocket) {
    socket.set_read_timeout(Some(SOON)).unwrap();
}

/// Sockets' own datagrams of 2 to 8 pieces and of the largest size: whole at a socket, or nothing of them.
fn big_datagrams(field: &mut Field, family: Family) {
    const PORT: u16 = 7000;
    let bell = SocketAddr::new(field.address(Who::Pod("bell"), family), PORT);
    let any: IpAddr = match family {
        Family::Ipv4 => [0, 0, 0, 0].into(),
        Family::Ipv6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let heard = field.netns("bell").run(|| UdpSocket::bind((any, PORT))).unwrap().unwrap();
    let friend = field.netns("friend").run(|| UdpSocket::bind((any, PORT))).unwrap().unwrap();
    within(&heard);
    within(&friend);
    let mut buffer = vec![0; 1 << 16];
    for size in (2..=8).map(|pieces| pieces * 1400).chain([65_000]) {
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        friend.send_to(&bytes, bell).unwrap();
        match heard.recv_from(&mut buffer) {
            Ok((length, from)) if buffer[..length] == bytes => {
                // And back, where nothing but the flow lets it in: the friend's own direction is open, the bell's is not.
                heard.send_to(&bytes, from).unwrap();
                if !matches!(friend.recv(&mut buffer), Ok(length) if buffer[..length] == bytes) {
                    field.wrong.push(format!("T2 {size} bytes back to the friend: not whole"));
                }
            }
            other => field.wrong.push(format!("T2 {size} bytes to the bell, {}: {other:?}", family.name())),
        }
    }
    // What the bell itself asks of one that may send it nothing is answered, in pieces too.
    let open = field.netns("open").run(|| UdpSocket::bind((any, PORT))).unwrap().unwrap();
    within(&open);
    heard.send_to(b"?", SocketAddr::new(field.address(Who::Pod("open"), family), PORT)).unwrap();
    let (_, asker) = open.recv_from(&mut buffer).unwrap();
    let bytes: Vec<u8> = (0..9_000).map(|at| (at % 241) as u8).collect();
    open.send_to(&bytes, asker).unwrap();
    if !matches!(heard.recv(&mut buffer), Ok(length) if buffer[..length] == bytes) {
        field.wrong.push(format!("T2 an answer of 9,000 bytes, {}: not whole", family.name()));
    }
    // Denied, and marked all over: no piece of it arrives.
    for from in ["stranger", "caged"] {
        let mark = field.mark();
        let bytes = mark.repeat(1_000);
        let sent = field.netns(from).run(|| UdpSocket::bind((any, 0))?.send_to(&bytes, bell)).unwrap();
        assert_eq!(sent.unwrap(), bytes.len());
        let number = portcullis_tests::field::number_of(&mark);
        if field.listen(Who::Pod(from), "bell", family).contains(&number) {
            field.wrong.push(format!("T2 8,000 bytes {from} -> bell {}: ARRIVED", family.name()));
        }
    }
}

/// An echo of 20,000 bytes, by a socket that keeps to the kernel's own pieces.
fn big_echoes(field: &mut Field, family: Family) {
    // Asked by one that may, and by an isolated pod that asks: its answer comes by the flow.
    for (from, to) in [("friend", "bell"), ("server", "stranger")] {
        let to = SocketAddr::new(field.address(Who::Pod(to), family), 0);
        let outcome = field.netns(from).run(|| echo(to)).unwrap();
        if !matches!(outcome, Ok(20_008)) {
            field
                .wrong
                .push(format!("T2 an echo of 20,000 bytes from {from}, {}: {outcome:?}", family.name()));
        }
    }
}

/// Sends an echo request of 20,000 bytes; how many came back.
pub(crate) fn echo(to: SocketAddr) -> io::Result<usize> {
    let (family, protocol, kind) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        SocketAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(SOON.as_secs() as i64, 0))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 1];
    message.resize(20_008, b'e');
    send(fd.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    Ok(recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?)
}

/// TCP that is on its way is one flow, in pieces too: a segment of it passes, and what opens nothing opens nothing.
pub(crate) fn segments(field: &mut Field) {
    for family in FAMILIES {
        let path = field.path(CAGED, "server", family);
        let mark = field.mark();
        let segment = frames::tcp(path, (40_150, OPEN), ACK, &[&[0; 28], &mark[..], &[0; 40]].concat());
        let pieces = frames::pieces(path, TCP, 0x3400, 56, &segment);
        let sent: Vec<(Vec<u8>, Mark)> = pieces.into_iter().map(|piece| (piece, mark)).collect();
        let shot = shot("a segment in two", CAGED, "server", family, Fate::Arrives);
        field.volley(&shot, &sent, &BTreeSet::from([0, 1]), 0);
        let denied = Fate::Dropped(Direction::Ingress, Reason::Isolated);
        let what = self::shot("its answer", Who::Pod("server"), "caged", family, denied);
        one(field, &what, |path, mark| {
            frames::frame(path, TCP, &frames::tcp(path, (OPEN, 40_150), ACK, mark))
        });
    }
}
