//! Sockets as the lab needs them. All are opened in the calling thread's namespace and stay in it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, listen,
    setsockopt, socket, sockopt,
};

/// Source ports of probes: below the kernel's own range, above the ports that pods usually serve.
const SOURCE_PORTS: std::ops::Range<u32> = 12_000..32_000;

/// Room for what arrives while a busy machine does not let us read.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A source and a target of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// None: the kernel chooses.
    pub(crate) source: Option<IpAddr>,
    pub(crate) target: IpAddr,
}

/// Starts a TCP connection without waiting for it.
pub(crate) fn start_tcp(path: Path, port: u16) -> io::Result<TcpStream> {
    let fd = open(path.target, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    bind_fresh(&fd, path)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(path.target, port))) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(fd)),
        Err(error) => Err(error.into()),
    }
}

/// Makes a TCP connection, within the time given; reads and writes block no longer than that either.
pub(crate) fn connect_tcp(path: Path, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let fd = open(path.target, SockType::Stream, SockFlag::empty(), None)?;
    bind_fresh(&fd, path)?;
    let stream = TcpStream::from(fd);
    // The send timeout bounds connect(2) as well.
    stream.set_write_timeout(Some(patience))?;
    stream.set_read_timeout(Some(patience))?;
    connect(stream.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(path.target, port)))?;
    Ok(stream)
}

/// A UDP socket that hears its target only, ICMP errors included.
pub(crate) fn start_udp(path: Path, port: u16) -> io::Result<UdpSocket> {
    let socket = unconnected_udp(path)?;
    socket.connect(SocketAddr::new(path.target, port))?;
    Ok(socket)
}

/// A UDP socket that no ICMP error makes fail.
pub(crate) fn unconnected_udp(path: Path) -> io::Result<UdpSocket> {
    let fd = open(path.target, SockType::Datagram, SockFlag::SOCK_NONBLOCK, None)?;
    bind_fresh(&fd, path)?;
    enlarge(&fd);
    Ok(UdpSocket::from(fd))
}

/// A ping socket: it sends echo requests and hears their replies.
pub(crate) fn start_echo(path: Path) -> io::Result<UdpSocket> {
    let protocol = if path.target.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    let fd = open(path.target, SockType::Datagram, SockFlag::SOCK_NONBLOCK, Some(protocol))?;
    if let Some(source) = path.source {
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    }
    let socket = UdpSocket::from(fd);
    socket.connect(SocketAddr::new(path.target, 0))?;
    Ok(socket)
}

/// A TCP listener that takes many connections at once.
pub(crate) fn listen_tcp(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let fd = open(address, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, port)))?;
    listen(&fd, Backlog::new(4096)?)?;
    Ok(TcpListener::from(fd))
}

/// A UDP server's socket.
pub(crate) fn serve_udp(address: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let fd = open(address, SockType::Datagram, SockFlag::SOCK_NONBLOCK, None)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, port)))?;
    enlarge(&fd);
    Ok(UdpSocket::from(fd))
}

/// Lets the process open as many files as it may, and returns how many those are.
pub(crate) fn raise_file_limit() -> usize {
    const WANTED: u64 = 65_536;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let wanted = WANTED.max(soft);
    // Root may raise the hard limit as well, unless it lacks CAP_SYS_RESOURCE.
    let tries = [(wanted, hard.max(wanted)), (wanted.min(hard), hard)];
    let limit = tries.into_iter().find(|(s, h)| setrlimit(Resource::RLIMIT_NOFILE, *s, *h).is_ok());
    usize::try_from(limit.map_or(soft, |(s, _)| s)).unwrap_or(usize::MAX)
}

fn open(
    family: IpAddr,
    kind: SockType,
    flags: SockFlag,
    protocol: Option<SockProtocol>,
) -> io::Result<OwnedFd> {
    let domain = if family.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(domain, kind, flags | SockFlag::SOCK_CLOEXEC, protocol)?;
    if family.is_ipv6() && kind == SockType::Stream {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    Ok(fd)
}

/// Binds to a source port that this process has not used lately, so that no earlier flow's state answers for
/// a new one.
fn bind_fresh(fd: &OwnedFd, path: Path) -> io::Result<()> {
    let any = match path.target {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = path.source.unwrap_or(any);
    for _ in 0..256 {
        match bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, fresh_port()))) {
            Err(Errno::EADDRINUSE) => {}
            bound => return Ok(bound?),
        }
    }
    Err(io::Error::from_raw_os_error(Errno::EADDRINUSE as i32))
}

fn fresh_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(u32::MAX);
    let span = SOURCE_PORTS.end - SOURCE_PORTS.start;
    // Probing processes that follow each other start at different ports.
    let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_micros()) % span;
    let _ = NEXT.compare_exchange(u32::MAX, start, Ordering::Relaxed, Ordering::Relaxed);
    let ticket = NEXT.fetch_add(1, Ordering::Relaxed) % span;
    u16::try_from(SOURCE_PORTS.start + ticket).unwrap_or(u16::MAX)
}

/// A larger buffer where we may have one; without, a busy machine may lose datagrams.
fn enlarge(fd: &OwnedFd) {
    let _ = setsockopt(fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
}
