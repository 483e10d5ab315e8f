//! The host firewall, where a socket's cgroup is not that of who uses it, where translation shows its two hooks different peers,
//! and where there is no socket: as docs/host-firewall.md says.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, socket,
};
use portcullis_common::packet::UDP;
use portcullis_lab::netns::Netns;
use portcullis_lab::{Family, Hook};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::field::run;
use portcullis_tests::frames::{self, Path as Between};
use portcullis_tests::hosts::{At, PORT, Party, Place, Stage};
use portcullis_tests::lifecycle::PATIENCE;
use portcullis_tests::privilege::is_root;
use portcullis_tests::services::{Heard, QUIET, listen};
use portcullis_tests::tap::Tap;
use serde_json::{Value, json};

const VIRTUAL: &str = "10.96.0.50";
/// Where frames are sent that processes write.
const WRITTEN: u16 = 6100;

fn policy(name: &str, app: &str, types: &[&str], more: &Value) -> Value {
    let mut spec =
        json!({"subject": {"pods": {"podSelector": {"matchLabels": {"app": app}}}}, "policyTypes": types});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy", "metadata": {"name": name}, "spec": spec})
}

fn of_node(name: &str, types: &[&str], more: &Value) -> Value {
    let mut policy = policy(name, "", types, more);
    policy["spec"]["subject"] = json!({"nodes": {}});
    policy
}

fn at(of: Party, protocol: Protocol, port: u16) -> At {
    At { of, place: Place::Address, protocol, family: Family::Ipv4, port }
}

/// True if the other end closes or answers within [`QUIET`].
fn hears(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(QUIET)).unwrap();
    matches!(stream.read(&mut [0; 16]), Ok(read) if read > 0)
}

fn listener(stage: &Stage, party: Party, port: u16) -> TcpListener {
    stage.enter(party);
    let address = SocketAddr::new(stage.address(Party::Host, Place::Address, Family::Ipv4), port);
    stage.lab().node().run(|| TcpListener::bind(address)).unwrap().unwrap()
}

fn connect(stage: &Stage, port: u16) -> Option<TcpStream> {
    let to = SocketAddr::new(stage.address(Party::Host, Place::Address, Family::Ipv4), port);
    stage.lab().outside().run(|| TcpStream::connect_timeout(&to, QUIET)).unwrap().ok()
}

/// The cgroup in which a socket was made counts, for ever: before a move, inherited, or handed over.
#[test]
fn a_socket_stays_its_makers() {
    if !is_root("a_socket_stays_its_makers") {
        return;
    }
    let mut stage = Stage::up(Hook::Tcx, &[]);
    let of_node_first = listener(&stage, Party::Host, 8001);
    let of_x = listener(&stage, Party::X, 8002);
    // Both are used by a process of Y from here on, as if inherited.
    stage.enter(Party::Y);
    stage.apply(&[policy("x-in", "x", &["Ingress"], &json!({}))]);
    let reached = connect(&stage, 8001);
    assert!(reached.is_some(), "made by a process of the node");
    drop(of_node_first.accept().unwrap());
    assert!(connect(&stage, 8002).is_none(), "made by X");
    stage.apply(&[policy("y", "y", &["Ingress", "Egress"], &json!({}))]);
    assert!(connect(&stage, 8002).is_some());
    // What was accepted is the listener's.
    let mut stream = connect(&stage, 8001).unwrap();
    let (mut accepted, _) = of_node_first.accept().unwrap();
    accepted.write_all(b"hello").unwrap();
    assert!(hears(&mut stream));
    stage
        .apply(&[of_node("node-out", &["Egress"], &json!({})), of_node("node-in", &["Ingress"], &json!({}))]);
    drop(accepted.write_all(b"hello"));
    assert!(!hears(&mut stream), "the node's policies judge it");
    drop(of_x);
    stage.down();
}

/// A connection that is half open when a policy comes is judged by it; one that is over is answered by the kernel.
#[test]
fn half_open_and_closed_connections() {
    if !is_root("half_open_and_closed_connections") {
        return;
    }
    let mut stage = Stage::up(Hook::Tcx, &[]);
    let listening = listener(&stage, Party::X, 8003);
    // The answer to the SYN is lost on its way.
    let outside = Netns::open(stage.lab().outside().name()).unwrap();
    let outside = &outside;
    let rules = "table ip hold {\n chain in {\n type filter hook input priority 0; tcp sport 8003 tcp flags & (syn|ack) == syn|ack drop\n }\n}";
    let _ = run(outside, &["nft", rules]);
    let to = SocketAddr::new(stage.address(Party::Host, Place::Address, Family::Ipv4), 8003);
    let client = std::thread::scope(|scope| {
        let opening =
            scope.spawn(|| outside.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(6))).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        stage.apply(&[policy("x-in", "x", &["Ingress"], &json!({}))]);
        std::thread::sleep(Duration::from_secs(2));
        let _ = run(outside, &["nft", "delete table ip hold"]);
        opening.join().unwrap()
    });
    assert!(client.is_err(), "a SYN that was in flight opens nothing");
    stage.apply(&[policy("other", "y", &["Ingress"], &json!({}))]);
    // X closes first, so its end is in TIME_WAIT: of no cgroup any more.
    let mut stream = connect(&stage, 8003).unwrap();
    let (accepted, _) = listening.accept().unwrap();
    drop(accepted);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    stage.apply(&[policy("x-in", "x", &["Ingress", "Egress"], &json!({}))]);
    let local = stream.local_addr().unwrap().port();
    drop(stream);
    // The kernel answers the last FIN, so the client is done with it.
    let begun = Instant::now();
    let needle = format!(":{local:04X} ");
    while stage
        .lab()
        .outside()
        .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))
        .unwrap()
        .unwrap()
        .contains(&needle)
    {
        assert!(begun.elapsed() < PATIENCE, "the last FIN is not answered");
        std::thread::sleep(Duration::from_millis(50));
    }
    // A connection that takes the place of one in TIME_WAIT is seen.
    assert!(connect(&stage, 8003).is_none());
    stage.down();
}

/// What hostNetwork pods send to a virtual address is judged by the backend, and answers come back, which their hook sees from the
/// virtual address; also where the node puts another source in, and by sockets that are not connected.
#[test]
fn answers_of_virtual_addresses_come_back() {
    if !is_root("answers_of_virtual_addresses_come_back") {
        return;
    }
    let mut stage = Stage::up(Hook::Tcx, &[]);
    let p = stage.address(Party::Pod, Place::Address, Family::Ipv4);
    let r = stage.address(Party::RemotePod, Place::Address, Family::Ipv4);
    let x = stage.address(Party::X, Place::Address, Family::Ipv4);
    let rules = format!(
        "table ip svc {{
            chain out {{ type nat hook output priority -100;
                ip daddr {VIRTUAL} tcp dport 80 dnat to {p}:{PORT}; ip daddr {VIRTUAL} udp dport 80 dnat to {p}:{PORT};
                ip daddr {VIRTUAL} tcp dport 81 dnat to {r}:{PORT}; ip daddr {VIRTUAL} udp dport 81 dnat to {r}:{PORT};
                ip daddr {VIRTUAL} tcp dport 82 dnat to {x}:7010; ip daddr {VIRTUAL} udp dport 82 dnat to {x}:7010; }}
            chain post {{ type nat hook postrouting priority 100; ip daddr {p} masquerade random; ip daddr {r} masquerade random; }}
        }}"
    );
    let _ = run(stage.lab().node(), &["nft", &rules]);
    let to_p = json!({"egress": [{"to": [{"podSelector": {"matchLabels": {"app": "p"}}}], "ports": [{"port": PORT}, {"port": PORT, "protocol": "UDP"}]},
        {"to": [{"nodes": {}}], "ports": [{"port": 7010}, {"port": 7010, "protocol": "UDP"}]}]});
    let mut objects = stage.objects(&[policy("x", "x", &["Ingress", "Egress"], &to_p)]);
    objects.push(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "svc", "namespace": "apps"},
        "spec": {"clusterIP": VIRTUAL, "clusterIPs": [VIRTUAL], "ports": [{"port": 80, "protocol": "TCP"}]}}),
    );
    stage.apply_all(&objects);
    for (protocol, port, reaches) in [
        (Protocol::Tcp, 80, true),
        (Protocol::Udp, 80, true),
        (Protocol::Tcp, 81, false),
        (Protocol::Udp, 81, false),
        (Protocol::Tcp, 82, true),
        (Protocol::Udp, 82, true),
        (Protocol::Tcp, 83, false),
    ] {
        stage.enter(Party::X);
        let to: SocketAddr = format!("{VIRTUAL}:{port}").parse().unwrap();
        let answer = stage.lab().node().run(|| ask(protocol, to)).unwrap();
        assert_eq!(answer, reaches, "{protocol}/{port}, connected");
        if protocol == Protocol::Udp {
            let answer = stage.lab().node().run(|| ask_unconnected(to)).unwrap();
            assert_eq!(answer, reaches, "{protocol}/{port}, not connected");
        }
    }
    // They are nobody else's way in, not to a socket that is not connected and has sent either.
    stage.enter(Party::X);
    let deaf = stage.lab().node().run(|| UdpSocket::bind((x, 8009))).unwrap().unwrap();
    deaf.send_to(b"hello", (p, PORT)).unwrap();
    deaf.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(deaf.recv(&mut [0; 16]).is_ok(), "the answer");
    stage
        .lab()
        .outside()
        .run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (x, 8009)))
        .unwrap()
        .unwrap();
    deaf.set_read_timeout(Some(QUIET)).unwrap();
    assert!(deaf.recv(&mut [0; 4]).is_err());
    stage.down();
}

fn ask(protocol: Protocol, to: SocketAddr) -> bool {
    let mut bytes = [0; 16];
    match protocol {
        Protocol::Tcp => {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, QUIET) else { return false };
            stream.set_read_timeout(Some(QUIET)).unwrap();
            matches!(stream.read(&mut bytes), Ok(read) if read > 0)
        }
        Protocol::Udp | Protocol::Sctp => {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(QUIET)).unwrap();
            socket.send(b"hello").is_ok() && socket.recv(&mut bytes).is_ok()
        }
    }
}

fn ask_unconnected(to: SocketAddr) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(QUIET)).unwrap();
    socket.send_to(b"hello", to).is_ok() && socket.recv_from(&mut [0; 16]).is_ok()
}

/// A socket that is connected may send elsewhere, and one that writes headers may name anybody: neither gets further than others.
#[test]
fn what_a_socket_says_of_itself_opens_nothing() {
    if !is_root("what_a_socket_says_of_itself_opens_nothing") {
        return;
    }
    let mut stage = Stage::up(Hook::Tcx, &[]);
    let to_p = json!({"egress": [{"to": [{"podSelector": {"matchLabels": {"app": "p"}}}, {"nodes": {}}]}]});
    let from_outside = json!({"ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.1/32"}}]}]});
    stage.apply(&[
        policy("x", "x", &["Ingress", "Egress"], &to_p),
        policy("y", "y", &["Ingress"], &from_outside),
    ]);
    let p = SocketAddr::new(stage.address(Party::Pod, Place::Address, Family::Ipv4), PORT);
    let outside = SocketAddr::new(stage.address(Party::Outside, Place::Address, Family::Ipv4), PORT);
    stage.enter(Party::X);
    let heard = |connected: SocketAddr, to: SocketAddr| {
        stage
            .lab()
            .node()
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect(connected).unwrap();
                drop(socket.send(b"hello"));
                socket.set_read_timeout(Some(QUIET)).unwrap();
                drop(socket.recv(&mut [0; 16]));
                let sent =
                    sendto(socket.as_raw_fd(), b"hello", &SockaddrStorage::from(to), MsgFlags::empty());
                sent.is_ok()
            })
            .unwrap()
    };
    assert!(heard(p, p), "to whom it may");
    assert!(!heard(p, outside), "to another than it is connected to");
    // Y takes from the outside alone; X says that it is the outside, by the loopback device.
    let y = stage.address(Party::Y, Place::Address, Family::Ipv4);
    stage.enter(Party::Y);
    let server = stage.lab().node().run(|| UdpSocket::bind((y, 8010))).unwrap().unwrap();
    server.set_read_timeout(Some(QUIET)).unwrap();
    stage.enter(Party::X);
    stage
        .lab()
        .node()
        .run(|| {
            let fd =
                socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
            let IpAddr::V4(to) = y else { panic!("the address is IPv4") };
            // IPv4 and UDP headers of 28 bytes; the kernel fills in length and checksum, and UDP's 0 is none.
            let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1];
            packet.extend(to.octets());
            packet.extend([0x13, 0x88, 0x1f, 0x4a, 0, 12, 0, 0]);
            packet.extend(b"fake");
            let to = SockaddrStorage::from(SocketAddr::new(y, 0));
            let _ = sendto(fd.as_raw_fd(), &packet, &to, MsgFlags::empty());
        })
        .unwrap();
    assert!(server.recv(&mut [0; 16]).is_err(), "a forged source");
    stage
        .lab()
        .outside()
        .run(|| UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"true", (y, 8010)))
        .unwrap()
        .unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(server.recv(&mut [0; 16]).is_ok(), "the outside itself");
    stage.down();
}

/// True if an echo is answered within [`QUIET`].
fn echo(to: IpAddr) -> bool {
    let (family, protocol, request, reply, header) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8u8, 0u8, 20),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129, 0),
    };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_NONBLOCK, protocol).unwrap();
    let mut message = [request, 0, 0, 0, 0x12, 0x34, 0, 1];
    // Over four words; of IPv6 the kernel works it out.
    let sum = !(u16::from(request) << 8).wrapping_add(0x1234 + 1);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    if sendto(fd.as_raw_fd(), &message, &SockaddrStorage::from(SocketAddr::new(to, 0)), MsgFlags::empty())
        .is_err()
    {
        return false;
    }
    let begun = Instant::now();
    let mut bytes = [0; 128];
    while begun.elapsed() < QUIET {
        if let Ok(read) = recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty())
            && read > header + 6
            && bytes[header] == reply
            && bytes[header + 4..header + 6] == [0x12, 0x34]
        {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// The node's kernel answers by itself only whom its policies let in.
#[test]
fn the_kernels_own_answers_are_judged_as_what_they_answer() {
    if !is_root("the_kernels_own_answers_are_judged_as_what_they_answer") {
        return;
    }
    let mut stage = Stage::up(Hook::Tcx, &[]);
    let node: Vec<IpAddr> =
        [Family::Ipv4, Family::Ipv6].map(|family| stage.address(Party::Host, Place::Address, family)).into();
    let pings = |stage: &Stage, party: Party, to: IpAddr| {
        let netns = if party == Party::Pod {
            stage.lab().pod(&ObjectKey::new("apps", "p")).unwrap()
        } else {
            stage.lab().outside()
        };
        netns.run(|| echo(to)).unwrap()
    };
    let refused = |stage: &Stage, party: Party| {
        let call = stage.open(party, at(Party::Host, Protocol::Tcp, 9999)).unwrap();
        let mut calls = [call];
        listen(&mut calls, QUIET, |_| true);
        calls[0].heard() == Heard::Refusal
    };
    for party in [Party::Pod, Party::Outside] {
        assert!(
            node.iter().all(|to| pings(&stage, party, *to)) && refused(&stage, party),
            "nothing isolates"
        );
    }
    let from_p = json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "p"}}}]}]});
    stage.apply(&[of_node("in", &["Ingress", "Egress"], &from_p)]);
    assert!(node.iter().all(|to| pings(&stage, Party::Pod, *to)) && refused(&stage, Party::Pod));
    assert!(!node.iter().any(|to| pings(&stage, Party::Outside, *to)) && !refused(&stage, Party::Outside));
    // What a process of the node sends past its sockets.
    let outside: IpAddr = "192.0.2.1".parse().unwrap();
    stage.enter(Party::Host);
    assert!(!stage.lab().node().run(|| echo(outside)).unwrap(), "egress is isolated");
    stage.apply(&[of_node("in", &["Ingress"], &json!({}))]);
    assert!(stage.lab().node().run(|| echo(outside)).unwrap(), "its answer comes back");
    assert!(!node.iter().any(|to| pings(&stage, Party::Pod, *to)) && !refused(&stage, Party::Pod));
    stage.down();
}

/// A frame that a process writes to a device is judged by its own policies: to the outside, and to a pod of the node. To a node's
/// address it passes, as the outer packet of a tunnel would.
#[test]
fn what_is_written_past_sockets_is_its_senders() {
    if !is_root("what_is_written_past_sockets_is_its_senders") {
        return;
    }
    let mut stage = Stage::up(Hook::Tcx, &[]);
    let pod = ObjectKey::new("apps", "p");
    let device = stage.lab().pod_state(&pod).unwrap().device.clone();
    let receivers = [
        (Party::Outside, stage.lab().outside(), "uplink"),
        (Party::RemoteNode, stage.lab().outside(), "uplink"),
        (Party::Pod, stage.lab().pod(&pod).unwrap(), device.as_str()),
    ]
    .map(|(party, netns, device)| {
        let address = stage.address(party, Place::Address, Family::Ipv4);
        let socket = netns.run(|| UdpSocket::bind((address, WRITTEN))).unwrap().unwrap();
        socket.set_read_timeout(Some(QUIET)).unwrap();
        (party, socket, device.to_owned())
    });
    let arrive = |stage: &Stage| -> Vec<Party> {
        stage.enter(Party::X);
        let src = stage.address(Party::Host, Place::Address, Family::Ipv4);
        let comes = |socket: &UdpSocket, device: &str| {
            let dst = socket.local_addr().unwrap().ip();
            let path = Between { src_mac: [2, 0, 0, 0, 0, 9], dst_mac: [0xff; 6], src, dst };
            let frame = frames::frame(path, UDP, &frames::udp(path, (WRITTEN, WRITTEN), b"word"));
            Tap::open(stage.lab().node(), device).offer(&frame) && socket.recv(&mut [0; 16]).is_ok()
        };
        let got = receivers.iter().filter(|(_, socket, device)| comes(socket, device));
        let parties = got.map(|(party, ..)| *party).collect();
        stage.enter(Party::Host);
        parties
    };
    let all = [Party::Outside, Party::RemoteNode, Party::Pod];
    assert_eq!(arrive(&stage), all, "nothing isolates");
    stage.apply(&[policy("x", "x", &["Egress"], &json!({}))]);
    assert_eq!(arrive(&stage), [Party::RemoteNode]);
    stage.apply(&[policy("y", "y", &["Egress"], &json!({})), of_node("node", &["Egress"], &json!({}))]);
    assert_eq!(arrive(&stage), all, "they are of others");
    let to_pods = json!({"egress": [{"to": [{"podSelector": {"matchLabels": {"app": "p"}}}]}]});
    stage.apply(&[policy("x", "x", &["Egress"], &to_pods)]);
    assert_eq!(arrive(&stage), [Party::RemoteNode, Party::Pod]);
    stage.down();
}

/// Flows live through the end of an agent, and connections that are older than any agent keep what policies allow.
#[test]
fn connections_outlive_the_agent_and_its_absence() {
    if !is_root("connections_outlive_the_agent_and_its_absence") {
        return;
    }
    for is_cold in [false, true] {
        let mut stage = Stage::up(Hook::Tcx, &[]);
        let ways = [
            (Party::X, at(Party::Outside, Protocol::Tcp, PORT)),
            (Party::Host, at(Party::Pod, Protocol::Tcp, PORT)),
            (Party::Outside, at(Party::Y, Protocol::Tcp, 7010)),
            (Party::X, At { place: Place::Loopback, ..at(Party::Y, Protocol::Tcp, 7011) }),
        ];
        let mut calls: Vec<_> = ways.iter().map(|(from, to)| stage.open(*from, *to).unwrap()).collect();
        listen(&mut calls, PATIENCE, |_| true);
        let x_may = json!({"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}, {"nodes": {}}]}]});
        let y_may = json!({"ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.1/32"}}, {"nodes": {}}]}]});
        let policies = [
            policy("x", "x", &["Ingress", "Egress"], &x_may),
            policy("y", "y", &["Ingress", "Egress"], &y_may),
            of_node("node", &["Ingress", "Egress"], &json!({})),
        ];
        if is_cold {
            stage.kill(Signal::SIGTERM);
            let (code, text) = stage.verb(&["cleanup"]);
            assert_eq!(code, 0, "{text}");
            stage.write(&policies);
        } else {
            stage.apply(&policies);
            stage.kill(Signal::SIGKILL);
            // Nobody is there, and policies are in force.
            assert!(!stage.reaches(Party::Outside, at(Party::X, Protocol::Tcp, 7000)));
        }
        stage.restart();
        for call in &mut calls {
            call.say_again();
        }
        listen(&mut calls, PATIENCE, |_| true);
        let heard: Vec<Heard> = calls.iter().map(portcullis_tests::services::Call::heard).collect();
        assert_eq!(heard, [Heard::Answer; 4], "cold: {is_cold}, {ways:?}");
        assert!(!stage.reaches(Party::Outside, at(Party::X, Protocol::Tcp, 7000)));
        assert!(stage.reaches(Party::Outside, at(Party::Y, Protocol::Tcp, 7010)));
        assert!(!stage.reaches(Party::Host, at(Party::Outside, Protocol::Tcp, PORT)));
        stage.down();
    }
}
