//! T1: IPv4's options and the length of its header. T4: what ends before its headers do.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use nix::libc;
use portcullis_common::event::{Direction, Reason};
use portcullis_lab::Family;
use portcullis_tests::field::{Fate, Field, Mark, OPEN, SHUT, Shot, Who};
use portcullis_tests::frames::{self, ETHERNET, Ipv4, Ipv6, Path};

use crate::{FAMILIES, WAYS, Way};

/// Types of options (RFC 791, and 94 of RFC 4727: an experiment).
const NO_OPERATION: u8 = 1;
const RECORD_ROUTE: u8 = 7;
const TIMESTAMP: u8 = 68;
const EXPERIMENT: u8 = 94;
const LOOSE: u8 = 131;
const STRICT: u8 = 137;
const ROUTER_ALERT: u8 = 148;

pub(crate) fn attack(field: &mut Field) {
    for way in WAYS {
        header_lengths(field, way);
        options(field, way);
        for family in FAMILIES {
            truncated(field, way, family);
            left_in_pages(field, way, family);
        }
    }
    set_by_sockets(field);
    for family in FAMILIES {
        in_bulk(field, family);
    }
}

fn shot(way: Way, threat: &'static str, what: &str, family: Family, fate: Fate) -> Shot {
    Shot { threat, what: what.to_owned(), from: way.from, to: "server", family, fate }
}

fn denied(way: Way) -> Fate {
    Fate::Dropped(way.direction, Reason::Isolated)
}

/// Every length, the ports where it says, and others where a fixed header would have them.
fn header_lengths(field: &mut Field, way: Way) {
    for ihl in 0..16u8 {
        for (real, decoy) in [(OPEN, SHUT), (SHUT, OPEN)] {
            let fate = match ihl {
                ..5 => field.unreadable(way.direction, Reason::BadHeader),
                _ if real == OPEN => Fate::Arrives,
                _ => denied(way),
            };
            let what = format!("IHL {ihl}, port {real}, decoy {decoy}");
            field.shoot(&shot(way, "T1", &what, Family::Ipv4, fate), |path, mark| {
                // One option that fills the header, and holds where ports would be those of the decoy.
                let room = usize::from(ihl.saturating_sub(5)) * 4;
                let mut options = vec![EXPERIMENT, room as u8];
                options.extend(decoy.to_be_bytes());
                options.resize(room.max(4), 0);
                options.truncate(room);
                let header = Ipv4 { options, ihl: Some(ihl), ..Ipv4::default() };
                vec![header.frame(path, frames::UDP, &frames::udp(path, (40_000, real), mark))]
            });
        }
    }
}

fn options(field: &mut Field, way: Way) {
    let route = |kind: u8| vec![kind, 7, 4, 10, 79, 0, 1, 0];
    let bad = Reason::BadHeader;
    let cases: [(&str, Vec<u8>, Result<(), Reason>); 12] = [
        ("loose source route", route(LOOSE), Err(Reason::SourceRoute)),
        ("strict source route", route(STRICT), Err(Reason::SourceRoute)),
        (
            "source route behind 33 no-operations",
            [vec![NO_OPERATION; 32], route(LOOSE)].concat(),
            Err(Reason::SourceRoute),
        ),
        (
            "source route behind another option",
            [vec![EXPERIMENT, 4, 0, 0], route(STRICT)].concat(),
            Err(Reason::SourceRoute),
        ),
        ("source route at its end", vec![LOOSE, 7, 8, 10, 79, 0, 9, 0], Err(Reason::SourceRoute)),
        ("record route", vec![RECORD_ROUTE, 7, 4, 0, 0, 0, 0, 0], Ok(())),
        ("timestamp", vec![TIMESTAMP, 8, 5, 0, 0, 0, 0, 0], Ok(())),
        ("router alert", vec![ROUTER_ALERT, 4, 0, 0], Ok(())),
        ("no operations", vec![NO_OPERATION; 40], Ok(())),
        ("length 0", vec![EXPERIMENT, 0, 0, 0], Err(bad)),
        ("length 1", vec![EXPERIMENT, 1, 0, 0], Err(bad)),
        ("past the header", vec![EXPERIMENT, 5, 0, 0], Err(bad)),
    ];
    for (what, options, readable) in cases {
        for port in [OPEN, SHUT] {
            let fate = match readable {
                Err(reason) => field.unreadable(way.direction, reason),
                Ok(()) if port == OPEN => Fate::Arrives,
                Ok(()) => denied(way),
            };
            let header = Ipv4 { options: options.clone(), ..Ipv4::default() };
            field.shoot(&shot(way, "T1", &format!("{what}, {port}"), Family::Ipv4, fate), |path, mark| {
                vec![header.frame(path, frames::UDP, &frames::udp(path, (40_001, port), mark))]
            });
        }
    }
}

/// Every length of a datagram to the open port: the mark stands in the IP header's fields that nobody reads, and what
/// is left of the frame says more than it holds.
fn truncated(field: &mut Field, way: Way, family: Family) {
    let path = field.path(way.from, "server", family);
    let whole = |mark: &[u8], said: usize| {
        let datagram = frames::udp(path, (40_002, OPEN), &[mark, &[0; 64]].concat());
        let length = Some(said as u16);
        match family {
            Family::Ipv4 => Ipv4 { total: length, ..Ipv4::default() }.frame(path, frames::UDP, &datagram),
            Family::Ipv6 => Ipv6 { length, ..Ipv6::default() }.frame(path, frames::UDP, &datagram),
        }
    };
    let header = frames::transport(path) - ETHERNET;
    let total = header + 8 + 8 + 64;
    let said = |length: usize| if path.is_v6() { length - header } else { length };
    for length in 0..=total {
        let fate = match length {
            _ if length == total => Fate::Arrives,
            // Whose it is cannot be read, and so not whether it is the pod's.
            _ if length < header => Fate::Dropped(Direction::Egress, Reason::Truncated),
            _ => field.unreadable(way.direction, Reason::Truncated),
        };
        let what = format!("{length} of {total} bytes");
        field.shoot(&shot(way, "T4", &what, family, fate), |_, mark| {
            vec![whole(mark, said(total))[..ETHERNET + length].to_vec()]
        });
    }
    // What the IP header says is there, and is less than the transport's header.
    for length in header..header + 8 {
        let fate = field.unreadable(way.direction, Reason::Truncated);
        let what = format!("a header that says {length} bytes");
        field.shoot(&shot(way, "T4", &what, family, fate), |_, mark| vec![whole(mark, said(length))]);
    }
    // TCP: a data offset that is too small, or past the end.
    for words in 0..16u8 {
        let fate = match words {
            ..5 => Fate::Dropped(way.direction, Reason::BadHeader),
            5..=7 => Fate::Arrives,
            8.. => Fate::Dropped(way.direction, Reason::Truncated),
        };
        let what = format!("TCP data offset {words} of 28 bytes");
        field.shoot(&shot(way, "T4", &what, family, fate), |path, mark| {
            let mut segment = frames::tcp(path, (40_003 + u16::from(words), OPEN), frames::SYN, mark);
            segment[12] = words << 4;
            vec![frames::frame(path, frames::TCP, &resummed(path, segment))]
        });
    }
}

/// Packets of which the program finds nothing but the link's header where it looks first.
fn left_in_pages(field: &mut Field, way: Way, family: Family) {
    let Who::Pod(pod) = way.from else { return };
    field.send_by_ring(Some(pod));
    let spoofed = Fate::Dropped(Direction::Egress, Reason::SpoofedSource);
    let somebody = field.address(Who::Pod("open"), family);
    for (what, source, port, fate) in [
        ("to the open port", None, OPEN, Fate::Arrives),
        ("to another", None, SHUT, denied(way)),
        ("in another's name", Some(somebody), OPEN, spoofed),
    ] {
        for protocol in [frames::TCP, frames::UDP] {
            let what = format!("by a ring {what}, protocol {protocol}");
            field.shoot(&shot(way, "T4", &what, family, fate), |path, mark| {
                let path = source.map_or(path, |source| path.from(source));
                let segment = match protocol {
                    frames::TCP => frames::tcp(path, (40_060, port), frames::SYN, mark),
                    _ => frames::udp(path, (40_060, port), mark),
                };
                vec![frames::frame(path, protocol, &segment)]
            });
        }
    }
    if family == Family::Ipv4 {
        header_lengths(field, way);
        options(field, way);
    }
    field.send_by_ring(None);
}

/// A stream that the kernel hands on in segments of many packets, whole at its end.
fn in_bulk(field: &mut Field, family: Family) {
    const PORT: u16 = 7003;
    const BYTES: usize = 4 << 20;
    let to = SocketAddr::new(field.address(Who::Pod("bell"), family), PORT);
    let listener = field.netns("bell").run(|| TcpListener::bind(to)).unwrap().unwrap();
    let mut client = field.netns("friend").run(|| TcpStream::connect(to)).unwrap().unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let writer = thread::spawn(move || {
        let bytes: Vec<u8> = (0..BYTES).map(|at| (at % 253) as u8).collect();
        client.write_all(&bytes)
    });
    let mut heard = Vec::new();
    let read = server.read_to_end(&mut heard);
    let written = writer.join().unwrap();
    let whole = heard.len() == BYTES && heard.iter().enumerate().all(|(at, byte)| *byte == (at % 253) as u8);
    if !whole {
        let name = family.name();
        field
            .wrong
            .push(format!("T4 a stream, {name}: {} of {BYTES} bytes, {read:?}, {written:?}", heard.len()));
    }
    let longest = field.longest("bell");
    if longest <= 1514 {
        field
            .wrong
            .push(format!("T4 a stream: no frame was longer than {longest} bytes, so this tells nothing"));
    }
}

/// With the checksum of what the segment holds now: a node that tracks connections looks.
fn resummed(path: Path, mut segment: Vec<u8>) -> Vec<u8> {
    segment[16..18].fill(0);
    let mut bytes = frames::octets(path.src);
    bytes.extend(frames::octets(path.dst));
    bytes.extend([0, frames::TCP]);
    bytes.extend((segment.len() as u16).to_be_bytes());
    bytes.extend(&segment);
    let sum = frames::checksum(&bytes);
    segment[16..18].copy_from_slice(&sum);
    segment
}

/// The way that needs no rights: a socket's own options, and a socket that hears.
fn set_by_sockets(field: &mut Field) {
    let Some(IpAddr::V4(server)) = Some(field.address(Who::Pod("server"), Family::Ipv4)) else { return };
    let to = SocketAddr::from((server, SHUT + 1));
    let heard = field.netns("bell").run(|| UdpSocket::bind(("0.0.0.0", SHUT + 1))).unwrap().unwrap();
    heard.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let bell = SocketAddr::from((
        match field.address(Who::Pod("bell"), Family::Ipv4) {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => return,
        },
        SHUT + 1,
    ));
    let options: [(&str, &[u8]); 2] = [
        ("record route", &[RECORD_ROUTE, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("no operation", &[NO_OPERATION; 8]),
    ];
    for (what, bytes) in options {
        // Allowed by any protocol: it is heard by a socket.
        field.netns("friend").run(|| send_with(bytes, bell, what.as_bytes())).unwrap().unwrap();
        let mut buffer = [0; 64];
        match heard.recv(&mut buffer) {
            Ok(length) if &buffer[..length] == what.as_bytes() => {}
            other => field.wrong.push(format!("T1 {what} by a socket: {other:?}")),
        }
        // Denied: it is heard by nobody.
        let mark = field.mark();
        field.netns("friend").run(|| send_with(bytes, to, &mark)).unwrap().unwrap();
        not_heard(field, what, mark);
    }
    let IpAddr::V4(friend) = field.address(Who::Pod("friend"), Family::Ipv4) else { return };
    let mut routed = vec![LOOSE, 7, 4];
    routed.extend(server.octets());
    routed.push(0);
    let open = SocketAddr::from((server, OPEN));
    let mark = field.mark();
    field.netns("friend").run(|| send_with(&routed, open, &mark)).unwrap().unwrap();
    not_heard(field, &format!("source route of {friend}"), mark);
}

/// Said after a packet of the same pod: what it sent before has come, or never will.
fn not_heard(field: &mut Field, what: &str, mark: Mark) {
    let number = u32::from_be_bytes(mark[4..].try_into().unwrap());
    if field.listen(Who::Pod("friend"), "server", Family::Ipv4).contains(&number) {
        field.wrong.push(format!("T1 {what} by a socket: ARRIVED"));
    }
}

fn send_with(options: &[u8], to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    // SAFETY: the option takes bytes, of which so many are there.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            options.len() as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(set)?;
    socket.send_to(payload, to).map(drop)
}
