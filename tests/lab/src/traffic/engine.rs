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
    pub(crate) expect: Option<String>,
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

/// Probes under way, by epoll token.
struct Batch<'a> {
    epoll: Epoll,
    live: Vec<Option<Live<'a>>>,
    waiting: usize,
    outcomes: Vec<(usize, Outcome)>,
}

fn run_batch(attempts: &[(usize, &Attempt<'_>)], timeout: Duration) -> Result<Vec<(usize, Outcome)>> {
    let mut batch = Batch::start(attempts)?;
    let begin = Instant::now();
    for sends in 1..=SENDS {
        batch.listen_until(begin + timeout * sends / SENDS)?;
        if sends < SENDS {
            batch.live.iter().flatten().for_each(resend);
        }
    }
    // Whoever has not even shaken hands is silent; the others have a word to come.
    batch.give_up(|probe| (!shook_hands(probe)).then_some(Outcome::Silent));
    batch.listen_until(begin + timeout * STALL)?;
    batch.give_up(|probe| Some(if shook_hands(probe) { Outcome::Stalled } else { Outcome::Silent }));
    Ok(batch.outcomes)
}

impl<'a> Batch<'a> {
    fn start(attempts: &[(usize, &'a Attempt<'a>)]) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("making an epoll")?;
        let mut batch = Self { epoll, live: Vec::new(), waiting: 0, outcomes: Vec::new() };
        let mut inside = "";
        for (index, attempt) in attempts {
            if inside != attempt.netns.name() {
                attempt.netns.enter()?;
                inside = attempt.netns.name();
            }
            let made = start(attempt).and_then(|socket| {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, batch.live.len() as u64);
                batch.epoll.add(descriptor(&socket), event)?;
                Ok(Live { socket, attempt, index: *index, heard: Vec::new() })
            });
            match made {
                Ok(probe) => batch.live.push(Some(probe)),
                Err(error) => batch.outcomes.push((*index, judge_error(&error))),
            }
        }
        batch.waiting = batch.live.len();
        Ok(batch)
    }

    /// Takes answers until then, or until none is waited for.
    fn listen_until(&mut self, deadline: Instant) -> Result<()> {
        while self.waiting > 0 {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            let rest =
                EpollTimeout::try_from(rest.as_millis().clamp(1, 60_000)).unwrap_or(EpollTimeout::ZERO);
            let mut events = [EpollEvent::empty(); 256];
            let count = match self.epoll.wait(&mut events, rest) {
                Err(Errno::EINTR) => 0,
                count => count.context("waiting for answers")?,
            };
            for event in events.iter().take(count) {
                let slot = usize::try_from(event.data()).ok().and_then(|i| self.live.get_mut(i));
                let Some(slot) = slot else { continue };
                if let Some(outcome) = slot.as_mut().and_then(hear) {
                    self.outcomes.extend(slot.take().map(|probe| (probe.index, outcome)));
                    self.waiting -= 1;
                }
            }
        }
        Ok(())
    }

    /// Ends the probes that the judge has an outcome for.
    fn give_up(&mut self, judge: impl Fn(&Live<'_>) -> Option<Outcome>) {
        for slot in &mut self.live {
            if let Some(outcome) = slot.as_ref().and_then(&judge) {
                self.outcomes.extend(slot.take().map(|probe| (probe.index, outcome)));
                self.waiting -= 1;
            }
        }
    }
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
    Some(match &probe.attempt.expect {
        Some(expected) if *expected != by => Outcome::Misdelivered(by),
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
