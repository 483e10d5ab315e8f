//! Connections that stay open while policies and agents come and go.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portcullis_policy::model::Protocol;

use super::engine::Attempt;
use super::socket::connect_tcp;
use super::{Ask, Tuple};

/// How long opening one connection may take: three SYNs.
const OPEN: Duration = Duration::from_secs(4);

/// Whether a held connection still carries data both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// What was sent came back.
    Alive,
    /// Nothing came back in time.
    Silent,
    /// It was reset or closed.
    Closed,
}

/// TCP connections held open. They belong to their clients' namespaces whatever thread uses them.
#[derive(Debug)]
pub struct Held {
    connections: Vec<Connection>,
    round: u64,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    tuple: Tuple,
    heard: Vec<u8>,
    closed: bool,
}

impl Held {
    /// Opens them one after the other; every one must be answered.
    pub(crate) fn open(attempts: &[Attempt<'_>]) -> Result<Self> {
        let mut connections = Vec::new();
        for attempt in attempts {
            let Ask::Port(Protocol::Tcp, port) = attempt.ask else {
                bail!("only TCP connections can be held")
            };
            let opened = attempt.netns.run(|| greeted(attempt, port))?;
            connections.push(opened.with_context(|| {
                format!(
                    "holding a connection from {} to {}:{port}",
                    attempt.netns.name(),
                    attempt.path.target
                )
            })?);
        }
        Ok(Self { connections, round: 0 })
    }

    /// How many there are, closed ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// The two ends of each.
    pub fn tuples(&self) -> impl Iterator<Item = Tuple> + '_ {
        self.connections.iter().map(|c| c.tuple)
    }

    /// Sends a word on each, and waits for all echoes together. A word that was lost is sent again by TCP, so
    /// that one lost packet costs a fifth of a second and not the connection.
    pub fn ping(&mut self, timeout: Duration) -> Result<Vec<Liveness>> {
        self.round += 1;
        let word = format!("ping-{}\n", self.round);
        for connection in &mut self.connections {
            if !connection.closed && connection.stream.write_all(word.as_bytes()).is_err_and(|e| is_end(&e)) {
                connection.closed = true;
            }
        }
        let deadline = Instant::now() + timeout;
        loop {
            let waiting = || self.connections.iter().filter(|c| !c.closed && !c.has(&word));
            let mut fds: Vec<PollFd<'_>> =
                waiting().map(|c| PollFd::new(c.stream.as_fd(), PollFlags::POLLIN)).collect();
            let rest = deadline.saturating_duration_since(Instant::now());
            if fds.is_empty() || rest.is_zero() {
                break;
            }
            let rest = PollTimeout::try_from(rest.as_millis().clamp(1, 60_000)).unwrap_or(PollTimeout::ZERO);
            match poll(&mut fds, rest) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for echoes"),
            }
            for connection in self.connections.iter_mut().filter(|c| !c.closed) {
                connection.hear();
            }
        }
        let state = |c: &Connection| match (c.closed, c.has(&word)) {
            (true, _) => Liveness::Closed,
            (false, true) => Liveness::Alive,
            (false, false) => Liveness::Silent,
        };
        Ok(self.connections.iter().map(state).collect())
    }
}

impl Connection {
    fn has(&self, word: &str) -> bool {
        self.heard.ends_with(word.as_bytes())
    }

    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.closed = true,
            Ok(count) => self.heard.extend(buffer.iter().take(count)),
            Err(error) => self.closed = is_end(&error),
        }
    }
}

fn greeted(attempt: &Attempt<'_>, port: u16) -> Result<Connection> {
    let mut stream = connect_tcp(attempt.path, port, OPEN).context("connecting")?;
    stream.set_nodelay(true)?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("reading the server's word")?;
        line.extend(byte);
    }
    let by = String::from_utf8_lossy(&line);
    if attempt.expect.as_ref().is_some_and(|expected| expected != by.trim_end()) {
        return Err(anyhow!("{} answered", by.trim_end()));
    }
    let tuple = Tuple { local: stream.local_addr()?, remote: stream.peer_addr()? };
    stream.set_nonblocking(true)?;
    Ok(Connection { stream, tuple, heard: Vec::new(), closed: false })
}

fn is_end(error: &io::Error) -> bool {
    !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
