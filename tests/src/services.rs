//! What tests of Services share: a cgroup of their own, for what ends at a node's sockets is judged at the root of its cgroups,
//! and calls whose backend the kernel's table of connections tells, against an oracle that is told it.
#![allow(clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname, socket,
};
use portcullis_agent::attach::cgroup;
use portcullis_lab::netns::Netns;
use portcullis_oracle::{Direction, Family, Protocol as Transport, Traffic, Verdict, World};
use portcullis_policy::model::Protocol;

use crate::lifecycle::PATIENCE;

/// Moves this process into a cgroup of its own, made where there is none yet, below the root of all: sockets of the node and of
/// pods alike are opened by it, and those of the node alone are in the namespace where marks are.
///
/// # Panics
///
/// Without cgroup2.
#[must_use]
pub fn enter_cgroup() -> PathBuf {
    enter_cgroup_below(&root_of_cgroups())
}

/// The same, below another.
///
/// # Panics
///
/// If it cannot be entered.
#[must_use]
pub fn enter_cgroup_below(root: &Path) -> PathBuf {
    let dir = root.join(format!("portcullis-tests-{}", std::process::id()));
    if !dir.exists() {
        fs::create_dir(&dir).expect("a cgroup can be made");
        fs::write(dir.join("cgroup.procs"), std::process::id().to_string()).expect("a cgroup can be entered");
    }
    dir
}

/// Where cgroup2 is mounted.
///
/// # Panics
///
/// Where it is not.
#[must_use]
pub fn root_of_cgroups() -> PathBuf {
    cgroup::below(Path::new(cgroup::MOUNT)).expect("cgroup2 is mounted")
}

/// Goes back to the root of all, and takes the cgroup away.
///
/// # Panics
///
/// If it is still in use after [`PATIENCE`].
pub fn leave_cgroup(dir: &Path) {
    let process = std::process::id().to_string();
    fs::write(root_of_cgroups().join("cgroup.procs"), process).expect("the root can be entered");
    let begun = Instant::now();
    while fs::remove_dir(dir).is_err() {
        assert!(begun.elapsed() < PATIENCE, "{} is still in use", dir.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A connection, or a datagram that waits for its answer.
#[derive(Debug)]
pub struct Call {
    /// Protocol.
    pub protocol: Protocol,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it was sent to.
    pub to: SocketAddr,
    line: Line,
    heard: Heard,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing so far.
    Nothing,
    /// An answer.
    Answer,
    /// A refusal: RST, or an ICMP error.
    Refusal,
}

#[derive(Debug)]
enum Line {
    Tcp(TcpStream),
    Udp(UdpSocket, Vec<u8>),
}

impl Line {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Udp(socket, _) => socket.as_fd(),
        }
    }
}

impl Call {
    /// Opens a connection, or sends a datagram of so many bytes, from the calling thread's namespace.
    pub fn open(protocol: Protocol, from: IpAddr, to: SocketAddr, bytes: usize) -> io::Result<Self> {
        let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let kind = match protocol {
            Protocol::Tcp => SockType::Stream,
            Protocol::Udp | Protocol::Sctp => SockType::Datagram,
        };
        let fd = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
        let port = name
            .as_sockaddr_in()
            .map(nix::sys::socket::SockaddrIn::port)
            .or_else(|| name.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port))
            .unwrap_or_default();
        let line = match protocol {
            Protocol::Tcp => Line::Tcp(TcpStream::from(fd)),
            Protocol::Udp | Protocol::Sctp => {
                let socket = UdpSocket::from(fd);
                let text = vec![b'x'; bytes];
                socket.send(&text)?;
                Line::Udp(socket, text)
            }
        };
        Ok(Self { protocol, source: SocketAddr::new(from, port), to, line, heard: Heard::Nothing })
    }

    /// What came back so far.
    #[must_use]
    pub const fn heard(&self) -> Heard {
        self.heard
    }

    /// Forgets what came back, and says something more: a line by TCP, the datagram again by UDP.
    pub fn say_again(&mut self) {
        self.heard = Heard::Nothing;
        // What is not sent is not answered.
        match &mut self.line {
            Line::Tcp(stream) => drop(stream.write_all(b"more\n")),
            Line::Udp(socket, text) => drop(socket.send(text)),
        }
    }

    fn hear(&mut self) {
        let mut bytes = [0; 8_192];
        let read = match &mut self.line {
            Line::Tcp(stream) => stream.read(&mut bytes),
            Line::Udp(socket, _) => socket.recv(&mut bytes),
        };
        match read {
            Ok(0) => self.heard = Heard::Refusal,
            Ok(_) => self.heard = Heard::Answer,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::ECONNRESET)) => {
                self.heard = Heard::Refusal;
            }
            // Nothing yet, or a way that takes smaller packets only: the next goes in pieces of that size.
            Err(_) => {}
        }
    }
}

/// Between two looks; datagrams that were not answered are sent again after [`AGAIN`] of them, for neighbours that have to be
/// found first hold few.
const LOOK: Duration = Duration::from_millis(50);
const AGAIN: u32 = 10;

/// Listens to calls until all that are wanted have heard something, or the time is over.
pub fn listen(calls: &mut [Call], patience: Duration, is_wanted: impl Fn(usize) -> bool) {
    let begun = Instant::now();
    let mut looks = 0;
    loop {
        let waiting: Vec<usize> =
            (0..calls.len()).filter(|number| calls[*number].heard == Heard::Nothing).collect();
        if !waiting.iter().any(|number| is_wanted(*number)) {
            return;
        }
        let mut fds: Vec<PollFd<'_>> =
            waiting.iter().map(|number| PollFd::new(calls[*number].line.fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut fds, timeout);
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        for (number, _) in waiting.iter().zip(&ready).filter(|(_, ready)| **ready) {
            calls[*number].hear();
        }
        if begun.elapsed() > patience {
            return;
        }
        looks += 1;
        if looks % AGAIN == 0 {
            for number in waiting.iter().filter(|number| is_wanted(**number)) {
                if let Line::Udp(socket, text) = &calls[*number].line {
                    // A refusal is heard at the next look.
                    drop(socket.send(text));
                }
            }
        }
        if !ready.iter().any(|ready| *ready) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Where calls really went.
#[derive(Debug, Default)]
pub struct Chosen(BTreeMap<Original, Reply>);

/// Protocol, who opened it, and to where.
type Original = (u8, SocketAddr, SocketAddr);
/// Who answers, and to whom.
type Reply = (SocketAddr, SocketAddr);

impl Chosen {
    /// What the kernel of this namespace says, of connections that are over too.
    ///
    /// # Panics
    ///
    /// If it does not say.
    #[must_use]
    pub fn read(node: &Netns) -> Self {
        let text = node.run(|| fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
        let text = text.expect("the namespace is there").expect("connections are tracked");
        Self(text.lines().filter_map(parse).collect())
    }

    /// The backend of a call, and who that takes for its sender; none where nothing was tracked: it was dropped before.
    #[must_use]
    pub fn of(&self, call: &Call) -> Option<Reply> {
        self.0.get(&(call.protocol.number(), call.source, call.to)).copied()
    }
}

/// A line of `nf_conntrack`: the protocol's number is its fourth word; addresses and ports are those of the opener's way, then
/// those of the answers'.
fn parse(line: &str) -> Option<(Original, Reply)> {
    let protocol = line.split_ascii_whitespace().nth(3)?.parse().ok()?;
    let all = |key: &'static str| {
        line.split_ascii_whitespace().filter_map(move |word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let end = |address, port, way| {
        let address = all(address).nth(way)?.parse().ok()?;
        Some(SocketAddr::new(address, all(port).nth(way)?.parse().ok()?))
    };
    let original = (protocol, end("src", "sport", 0)?, end("dst", "dport", 0)?);
    Some((original, (end("src", "sport", 1)?, end("dst", "dport", 1)?)))
}

/// How long after the first look a denied call is believed to be denied.
pub const QUIET: Duration = Duration::from_millis(600);

/// How a backend is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// By an address of the Service.
    Virtual,
    /// By a port of a node.
    NodePort,
    /// By an address that a rule translates and no Service shows.
    Unknown,
}

/// A call to be made.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// `namespace/name` of the pod that makes it.
    pub client: &'a str,
    /// How the address leads to a backend.
    pub face: Face,
    /// Protocol.
    pub protocol: Protocol,
    /// The address and port.
    pub to: SocketAddr,
    /// Bytes of a datagram.
    pub bytes: usize,
}

/// Where calls are made: pods of one node, whose rules translate.
pub trait Field {
    /// The node's namespace.
    fn node(&self) -> &Netns;
    /// A pod's namespace.
    fn pod(&self, name: &str) -> &Netns;
    /// What policies say.
    fn world(&self) -> &World;
    /// True where nobody listens.
    fn is_closed(&self, backend: SocketAddr) -> bool;

    /// Makes a call.
    ///
    /// # Panics
    ///
    /// If the pod has no address of the family, or no socket.
    fn open(&self, ask: &Ask<'_>) -> Call {
        let family = Family::of(ask.to.ip());
        let from = self.world().address(ask.client, family).expect("the pod has an address of the family");
        let call = self.pod(ask.client).run(|| Call::open(ask.protocol, from, ask.to, ask.bytes));
        call.expect("the namespace is there").expect("a socket can be opened")
    }

    /// What the oracle says of a call, told which backend was chosen for it.
    ///
    /// # Panics
    ///
    /// If the oracle does not know the pod.
    fn is_allowed(&self, ask: &Ask<'_>, chosen: Option<(SocketAddr, SocketAddr)>) -> bool {
        let allows = |pod: &str, direction, remote: IpAddr, port| {
            let transport = match ask.protocol {
                Protocol::Tcp => Transport::Tcp,
                Protocol::Udp => Transport::Udp,
                Protocol::Sctp => Transport::Sctp,
            };
            let verdict = self.world().judge(pod, direction, remote, Traffic::To(transport, port));
            verdict.expect("the oracle knows the pod").verdict == Verdict::Allow
        };
        let sends = |to: SocketAddr| allows(ask.client, Direction::Egress, to.ip(), to.port());
        // Of a translation that no Service shows the address is judged too.
        if ask.face == Face::Unknown && !sends(ask.to) {
            return false;
        }
        // What was not tracked was dropped before. What nobody translated is a virtual address, or the node itself.
        let Some((backend, seen_as)) = chosen.filter(|(to, _)| *to != ask.to || ask.face == Face::NodePort)
        else {
            return false;
        };
        let owner = self.world().owner(backend.ip());
        // A pod reaches itself.
        owner.as_deref() == Some(ask.client)
            || (sends(backend)
                && owner.is_none_or(|pod| allows(&pod, Direction::Ingress, seen_as.ip(), backend.port())))
    }
}

/// What was asked, of how much of it something came back, and what went wrong.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Calls.
    pub asked: usize,
    /// Answers.
    pub answered: usize,
    /// Refusals.
    pub refused: usize,
    /// Calls that came out otherwise than the oracle says.
    pub wrong: Vec<String>,
}

impl Score {
    /// Makes calls, all at once.
    pub fn add<F: Field>(&mut self, field: &F, asks: &[Ask<'_>]) {
        let mut calls: Vec<Call> = asks.iter().map(|ask| field.open(ask)).collect();
        listen(&mut calls, QUIET, |_| true);
        let chosen = Chosen::read(field.node());
        let allowed: Vec<bool> =
            asks.iter().zip(&calls).map(|(ask, call)| field.is_allowed(ask, chosen.of(call))).collect();
        listen(&mut calls, PATIENCE, |number| allowed[number]);
        for ((ask, call), allowed) in asks.iter().zip(&calls).zip(&allowed) {
            let chosen = chosen.of(call);
            let (heard, backend) = (call.heard(), chosen.map(|(backend, _)| backend));
            // An allowed call that nobody hears is refused by an ICMP error, which finds its way back.
            let wanted = match (allowed, backend.is_some_and(|backend| field.is_closed(backend))) {
                (true, false) => Heard::Answer,
                (true, true) => Heard::Refusal,
                (false, _) => Heard::Nothing,
            };
            // A node port that leads nowhere is a closed port of the node, whose kernel says so without a socket.
            let nowhere = ask.face == Face::NodePort && backend == Some(ask.to) && heard == Heard::Refusal;
            self.asked += 1;
            self.answered += usize::from(heard == Heard::Answer);
            self.refused += usize::from(heard == Heard::Refusal);
            if heard != wanted && !nowhere {
                self.wrong
                    .push(format!("{ask:?} from {}: {chosen:?}: {heard:?}, not {wanted:?}", call.source));
            }
        }
    }

    /// That nothing went wrong.
    ///
    /// # Panics
    ///
    /// Else.
    pub fn check_all(&self) {
        let Self { asked, wrong, .. } = self;
        assert!(*asked > 0 && wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// That nothing went wrong, and that enough was allowed and denied to tell.
    ///
    /// # Panics
    ///
    /// Else.
    pub fn check(&self) {
        let Self { asked, answered, wrong, .. } = self;
        assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
        assert!(answered * 10 > *asked && answered * 10 < asked * 9, "{answered} of {asked} were answered");
    }
}
