//! Many probes at once: sockets opened in their clients' namespaces, watched together until each has an
//! answer or the time is up.

use std::io::{self, ErrorKind, Read as _};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use portcullis_policy::model::Protocol;

use super::socket::{Path, raise_file_limit, start_echo, start_tcp, start_udp};
use super::{Ask, Outcome, ProbeOptions};
use crate::netns::Netns;

/// How often a datagram is sent in all.
const SENDS: u32 = 3;

/// How long a finished handshake may wait for the server's word, in time-outs: the server's thread may be
/// slow, the kernel's handshake is not.
const STALL: u32 = 5;

/// A probe with its addresses found.
#[derive(Clone, Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) path: Path,
    pub(crate) ask: Ask,
    /// The name of the server that should answer, where that is known.
    pub(crate) expect: Option<&'a str>,
}

enum Socket {
    Stream(TcpStream),
    Datagram(UdpSocket),
}

struct Live<'a> {
    socket: Socket,
    attempt: &'a Attempt<'a>,
    index: usize,
    heard: Vec<u8>,
}

/// Makes all attempts, and returns their outcomes in the same order.
pub(crate) fn run(attempts: &[Attempt<'_>], options: &ProbeOptions) -> Result<Vec<Outcome>> {
    let limit = (raise_file_limit() / 2).clamp(64, 30_000);
    let mut order: Vec<usize> = (0..attempts.len()).collect();
    // Stable, so that a thread enters each namespace once for a batch.
    order.sort_by_key(|i| attempts.get(*i).map(|a| a.netns.name()));
    let mut outcomes = vec![Outcome::Silent; attempts.len()];
    for batch in order.chunks(options.in_flight.clamp(1, limit)) {
        let batch: Vec<(usize, &Attempt<'_>)> =
            batch.iter().filter_map(|i| attempts.get(*i).map(|a| (*i, a))).collect();
        // A thread of its own, because it wanders between namespaces.
        let found = thread::scope(|scope| {
            scope.spawn(|| run_batch(&batch, options.timeout)).join().map_err(|_| anyhow!("a probe panicked"))
        })??;
        for (index, outcome) in found {
            if let Some(slot) = outcomes.get_mut(index) {
                *slot = outcome;
            }
        }
    }
    Ok(outcomes)
}

fn run_batch(batch: &[(usize, &Attempt<'_>)], timeout: Duration) -> Result<Vec<(usize, Outcome)>> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("making an epoll")?;
    let mut outcomes = Vec::new();
    let mut live: Vec<Option<Live<'_>>> = Vec::new();
    let mut inside = "";
    for (index, attempt) in batch {
        if inside != attempt.netns.name() {
            attempt.netns.enter()?;
            inside = attempt.netns.name();
        }
        let made = start(attempt).and_then(|socket| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, live.len() as u64);
            epoll.add(descriptor(&socket), event)?;
            Ok(Live { socket, attempt, index: *index, heard: Vec::new() })
        });
        match made {
            Ok(probe) => live.push(Some(probe)),
            Err(error) => outcomes.push((*index, judge_error(&error))),
        }
    }

    let begin = Instant::now();
    let mut sends = 1;
    let mut waiting = live.len();
    while waiting > 0 && begin.elapsed() < timeout * STALL {
        let late = begin.elapsed() >= timeout;
        if late {
            // Whoever has not even shaken hands is silent; the others have a word to come.
            for slot in &mut live {
                if slot.as_ref().is_some_and(|probe| !shook_hands(probe))
                    && let Some(probe) = slot.take()
                {
                    waiting -= 1;
                    outcomes.push((probe.index, Outcome::Silent));
                }
            }
        } else if sends < SENDS && begin.elapsed() >= timeout * sends / SENDS {
            sends += 1;
            live.iter().flatten().for_each(resend);
        }
        let next = if late { timeout * STALL } else { timeout * sends / SENDS };
        let rest = next.saturating_sub(begin.elapsed()).as_millis().clamp(1, 60_000);
        let mut events = [EpollEvent::empty(); 256];
        let wait = EpollTimeout::try_from(rest).unwrap_or(EpollTimeout::ZERO);
        let count = match epoll.wait(&mut events, wait) {
            Err(Errno::EINTR) => 0,
            count => count.context("waiting for answers")?,
        };
        for event in events.iter().take(count) {
            let Some(slot) = usize::try_from(event.data()).ok().and_then(|i| live.get_mut(i)) else { continue };
            let Some(outcome) = slot.as_mut().and_then(hear) else { continue };
            if let Some(probe) = slot.take() {
                waiting -= 1;
                outcomes.push((probe.index, outcome));
            }
        }
    }
    outcomes.extend(live.into_iter().flatten().map(|probe| {
        let outcome = if shook_hands(&probe) { Outcome::Stalled } else { Outcome::Silent };
        (probe.index, outcome)
    }));
    Ok(outcomes)
}

fn start(attempt: &Attempt<'_>) -> io::Result<Socket> {
    let datagram = |socket: UdpSocket| {
        socket.send(&question(attempt))?;
        Ok(Socket::Datagram(socket))
    };
    match attempt.ask {
        Ask::Port(Protocol::Tcp, port) => start_tcp(attempt.path, port).map(Socket::Stream),
        Ask::Port(Protocol::Udp, port) => start_udp(attempt.path, port).and_then(datagram),
        Ask::Port(Protocol::Sctp, _) => Err(io::Error::other("SCTP is not probed")),
        Ask::Echo => start_echo(attempt.path).and_then(datagram),
    }
}

/// What a datagram holds: for an echo the kernel fills in checksum and identifier.
fn question(attempt: &Attempt<'_>) -> Vec<u8> {
    match (attempt.ask, attempt.path.target.is_ipv4()) {
        (Ask::Port(..), _) => b"probe".to_vec(),
        (Ask::Echo, true) => vec![8, 0, 0, 0, 0, 0, 0, 1, b'p'],
        (Ask::Echo, false) => vec![128, 0, 0, 0, 0, 0, 0, 1, b'p'],
    }
}

fn resend(probe: &Live<'_>) {
    match &probe.socket {
        Socket::Stream(_) => {}
        // An error is heard by the next look at the socket.
        Socket::Datagram(socket) => drop(socket.send(&question(probe.attempt))),
    }
}

fn descriptor(socket: &Socket) -> BorrowedFd<'_> {
    match socket {
        Socket::Stream(stream) => stream.as_fd(),
        Socket::Datagram(socket) => socket.as_fd(),
    }
}

fn shook_hands(probe: &Live<'_>) -> bool {
    match &probe.socket {
        Socket::Stream(stream) => stream.peer_addr().is_ok(),
        Socket::Datagram(_) => false,
    }
}

/// Takes what came; an outcome once there is one.
fn hear(probe: &mut Live<'_>) -> Option<Outcome> {
    let mut buffer = [0; 2048];
    let read = match &mut probe.socket {
        Socket::Stream(stream) => stream.read(&mut buffer),
        Socket::Datagram(socket) => socket.recv(&mut buffer),
    };
    let count = match read {
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::Interrupted => {
            return None;
        }
        Err(error) => return Some(judge_error(&error)),
    };
    match (&probe.socket, probe.attempt.ask) {
        (Socket::Stream(_), _) if count == 0 => {
            return Some(Outcome::Failed("the server closed without a word".into()));
        }
        (_, Ask::Echo) => return Some(Outcome::Answered(None)),
        (Socket::Stream(_) | Socket::Datagram(_), Ask::Port(..)) => {}
    }
    probe.heard.extend(buffer.iter().take(count));
    let line = probe.heard.split(|b| *b == b'\n').next().filter(|l| l.len() < probe.heard.len())?;
    let by = String::from_utf8_lossy(line).into_owned();
    Some(match probe.attempt.expect {
        Some(expected) if expected != by => Outcome::Misdelivered(by),
        Some(_) | None => Outcome::Answered(Some(by)),
    })
}

fn judge_error(error: &io::Error) -> Outcome {
    let refused = [Errno::ECONNREFUSED, Errno::ECONNRESET].map(|errno| errno as i32);
    match error.raw_os_error() {
        Some(errno) if refused.contains(&errno) => Outcome::Refused,
        Some(errno) if errno == Errno::ETIMEDOUT as i32 => Outcome::Silent,
        Some(_) | None => Outcome::Failed(error.to_string()),
    }
}
