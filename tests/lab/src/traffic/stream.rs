//! A stream of numbered datagrams at a steady pace, counted where it arrives: what passed while an agent was
//! away shows by number.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::engine::Attempt;
use super::server::Server;
use super::socket::unconnected_udp;

/// Begins every datagram of a stream.
const MAGIC: [u8; 8] = *b"PCLSTRM1";

/// How long stragglers are waited for after the last arrival.
const SETTLE: Duration = Duration::from_millis(200);

/// What became of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamReport {
    /// How many datagrams were handed to the kernel: numbers 0 to this, exclusive.
    pub sent: u64,
    /// How many of them reached the server's socket.
    pub arrived: u64,
    /// How many arrived more than once.
    pub duplicated: u64,
    /// The numbers that never arrived.
    pub missing: Vec<u64>,
    /// How many echoes came back to the sender.
    pub answered: u64,
    /// How often the kernel refused to send; such a number is tried again.
    pub send_errors: u64,
    /// The longest time between two datagrams sent.
    pub longest_pause: Duration,
}

/// A stream under way; it ends when it is dropped.
#[derive(Debug)]
pub struct UdpStream {
    id: u64,
    tally: Arc<Server>,
    shared: Arc<Shared>,
    sender: Option<JoinHandle<Sent>>,
    remote: SocketAddr,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
}

#[derive(Default)]
struct Sent {
    answered: u64,
    send_errors: u64,
    longest_pause: Duration,
}

impl UdpStream {
    /// Starts to send from the attempt's namespace to a port that the server serves.
    pub(crate) fn start(
        attempt: &Attempt<'_>,
        port: u16,
        interval: Duration,
        tally: Arc<Server>,
    ) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let remote = SocketAddr::new(attempt.path.target, port);
        let socket =
            attempt.netns.run(|| unconnected_udp(attempt.path))?.context("opening a stream's socket")?;
        let shared = Arc::new(Shared::default());
        let worker = {
            let shared = shared.clone();
            move || send(&socket, id, remote, interval, &shared)
        };
        let sender = thread::Builder::new().name("lab-stream".into()).spawn(worker)?;
        Ok(Self { id, tally, shared, sender: Some(sender), remote })
    }

    /// How many datagrams were sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Acquire)
    }

    /// How many different ones arrived so far.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.tally.tally(self.id).arrivals.len() as u64
    }

    /// Where it sends to.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Stops sending, waits for stragglers, and reports.
    pub fn finish(mut self) -> Result<StreamReport> {
        self.shared.stop.store(true, Ordering::Release);
        let sender = self.sender.take().ok_or_else(|| anyhow!("the stream has ended"))?;
        let Sent { answered, send_errors, longest_pause } =
            sender.join().map_err(|_| anyhow!("a stream's sender panicked"))?;
        let sent = self.sent();
        let (mut arrived, mut since) = (self.arrived(), Instant::now());
        while arrived < sent && since.elapsed() < SETTLE {
            thread::sleep(Duration::from_millis(5));
            let now = self.arrived();
            if now != arrived {
                (arrived, since) = (now, Instant::now());
            }
        }
        let arrivals = self.tally.tally(self.id).arrivals;
        let missing: Vec<u64> = (0..sent).filter(|n| !arrivals.contains_key(n)).collect();
        let duplicated = arrivals.values().filter(|count| **count > 1).count() as u64;
        let arrived = arrivals.len() as u64;
        Ok(StreamReport { sent, arrived, duplicated, missing, answered, send_errors, longest_pause })
    }
}

impl Drop for UdpStream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(sender) = self.sender.take() {
            drop(sender.join());
        }
    }
}

/// Sends at the pace given; after a pause it catches up, so that the count stays what the time says.
fn send(socket: &UdpSocket, id: u64, remote: SocketAddr, interval: Duration, shared: &Shared) -> Sent {
    let mut report = Sent::default();
    let begin = Instant::now();
    let (mut last, mut due) = (begin, Duration::ZERO);
    let mut sequence = 0_u64;
    while !shared.stop.load(Ordering::Acquire) {
        if let Some(rest) = due.checked_sub(begin.elapsed()) {
            thread::sleep(rest);
        }
        match socket.send_to(&packet(id, sequence), remote) {
            Ok(_) => {
                report.longest_pause = report.longest_pause.max(last.elapsed());
                last = Instant::now();
                sequence += 1;
                shared.sent.store(sequence, Ordering::Release);
            }
            Err(_) => report.send_errors += 1,
        }
        due += interval;
        report.answered += drain(socket);
    }
    thread::sleep(Duration::from_millis(20));
    report.answered += drain(socket);
    report
}

/// Counts what is there to be read.
fn drain(socket: &UdpSocket) -> u64 {
    let mut buffer = [0; 2048];
    let mut count = 0;
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => count += 1,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return count,
        }
    }
}

fn packet(stream: u64, sequence: u64) -> Vec<u8> {
    [MAGIC, stream.to_be_bytes(), sequence.to_be_bytes()].concat()
}

/// The stream and number of a datagram, if it is one of a stream.
pub(crate) fn read_packet(data: &[u8]) -> Option<(u64, u64)> {
    let (stream, sequence) = data.strip_prefix(&MAGIC)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*stream), u64::from_be_bytes(*sequence.first_chunk::<8>()?)))
}
