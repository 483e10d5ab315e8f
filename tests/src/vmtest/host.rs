//! The host firewall's programs at the root of the cgroups of this kernel: what a socket of the node gets and sends.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use portcullis_agent::attach::{self, cgroup};
use portcullis_common::packet::UDP;
use portcullis_common::wire::RULESET_OPEN;
use portcullis_policy::desired::EndpointRulesets;
use portcullis_tests::attached::Attached;
use portcullis_tests::device::{Veth, ip};
use portcullis_tests::frames::{self, Path as Between};
use portcullis_tests::tap;

use crate::attachment::Links;

const NODE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const PORT: u16 = 7000;
#[allow(clippy::cast_possible_truncation)]
const OPEN: EndpointRulesets = EndpointRulesets { ingress: RULESET_OPEN as u16, egress: RULESET_OPEN as u16 };
/// Of the far end, one that nobody has; and nobody was asked for the near end's.
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 2];
const EVERYBODY: [u8; 6] = [0xff; 6];
/// A frame that is not dropped is there when `send` returns, or soon.
const PATIENCE: Duration = Duration::from_secs(2);
/// Threads that send at once, and for how long.
const CROWD: u32 = 12;
const RUSH: Duration = Duration::from_secs(3);

/// Open, closed, and gone again.
pub(crate) fn check(load: &mut Attached) -> Result<String> {
    let links = Links::new()?;
    let root = cgroup::below(Path::new(cgroup::MOUNT)).context("no cgroup2 is mounted")?;
    let root = cgroup::Root::new(&root, links.path());
    let wire = Wire::new()?;
    load.guard(&root, OPEN)?;
    ensure!(wire.gets(1)?, "where nothing isolates, a datagram did not come in");
    ensure!(sends()?, "where nothing isolates, a datagram did not go out");
    let sent = crowd().context("many threads that send at once")?;
    let taken = load.places_taken()?;
    ensure!(taken == 0, "{taken} places stay taken after {sent} datagrams");
    load.guard(&root, EndpointRulesets::CLOSED)?;
    ensure!(!wire.gets(2)?, "to an isolated node a datagram came in");
    ensure!(!sends()?, "from an isolated node a datagram went out");
    let left = attach::cleanup(links.path());
    ensure!(left.failed.is_empty(), "cleaning up: {:?}", left.failed);
    // The kernel takes the links away a little after their pins.
    let begin = Instant::now();
    while !sends()? && begin.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(10));
    }
    ensure!(wire.gets(3)? && sends()?, "without programs a datagram did not pass");
    Ok(format!("both ways open, {sent} datagrams of {CROWD} threads, both closed, gone"))
}

/// A socket of the node, and the far end of a wire.
struct Wire {
    socket: UdpSocket,
    far: tap::Tap,
}

impl Wire {
    fn new() -> Result<Self> {
        let veth = Veth::create("pct-host")?;
        veth.up()?;
        ip(&["addr", "add", &format!("{NODE}/24"), "dev", veth.name()])?;
        let socket = UdpSocket::bind((NODE, PORT)).context("binding a socket")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, far: tap::Tap::here(veth.peer()).context("a packet socket")? })
    }

    /// Whether a datagram from a port of the other's comes to the socket.
    fn gets(&self, number: u16) -> Result<bool> {
        let path = Between { src_mac: FAR, dst_mac: EVERYBODY, src: OTHER.into(), dst: NODE.into() };
        self.far.send(&frames::frame(path, UDP, &frames::udp(path, (PORT + number, PORT), b"word")));
        let mut word = [0; 16];
        match self.socket.recv(&mut word) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("waiting for a datagram"),
        }
    }
}

/// Sends from many threads, which preempt each other in the kernel where it lets them; how many datagrams. None may be refused.
fn crowd() -> Result<u64> {
    let begin = Instant::now();
    thread::scope(|scope| {
        let send = || -> Result<u64> {
            let socket = UdpSocket::bind((NODE, 0)).context("binding a socket")?;
            let mut sent = 0;
            while begin.elapsed() < RUSH {
                socket.send_to(b"word", (OTHER, PORT)).context("sending a datagram")?;
                sent += 1;
            }
            Ok(sent)
        };
        let threads: Vec<_> = (0..CROWD).map(|_| scope.spawn(send)).collect();
        threads.into_iter().map(|one| one.join().map_err(|_| anyhow!("a thread ended"))?).sum()
    })
}

/// Whether the kernel takes a datagram of a new socket.
fn sends() -> Result<bool> {
    let socket = UdpSocket::bind((NODE, 0)).context("binding a socket")?;
    match socket.send_to(b"word", (OTHER, PORT)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error).context("sending a datagram"),
    }
}
