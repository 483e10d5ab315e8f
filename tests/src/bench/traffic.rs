//! Real connections between two pods, all on one CPU, for so long: what they cost and how many there were. Knows
//! nothing of what filters them.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_gettime};

use crate::live;
use crate::pods::{Pods, SERVER};
use crate::rules::{CLOSED, PORT};

/// One write of a stream.
const BLOCK: usize = 128 * 1024;
/// A request, and its answer.
const MESSAGE: usize = 64;
/// How long anything may take that is let through.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection is tried that should be dropped.
const DROPPED: Duration = Duration::from_millis(150);
/// How often the server looks whether it is over.
const GLANCE: i64 = 20_000;

/// What goes between the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    /// One connection, blocks one way.
    Stream,
    /// One connection, a small message there and one back.
    Requests,
    /// Connections: a byte there, a byte back, and reset, so that none waits.
    Connections,
}

impl Workload {
    pub(crate) const ALL: [Self; 3] = [Self::Stream, Self::Requests, Self::Connections];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Requests => "requests",
            Self::Connections => "connections",
        }
    }

    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Stream => "MiB",
            Self::Requests => "request",
            Self::Connections => "connection",
        }
    }
}

/// What was done, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// In the workload's unit.
    pub(crate) units: f64,
    pub(crate) wall: f64,
    /// Seconds of CPU: of this process, on top of whose threads the kernel handles packets, and of the kernel's
    /// own threads for what it put off.
    pub(crate) cpu: f64,
}

impl std::ops::Add for Done {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { units: self.units + other.units, wall: self.wall + other.wall, cpu: self.cpu + other.cpu }
    }
}

/// The pods with a server, ready for any workload.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) pods: Pods,
    listener: TcpListener,
    /// Accounts of the kernel's threads.
    softirq: Vec<String>,
}

impl Traffic {
    pub(crate) fn new() -> Result<Self> {
        let pods = Pods::new()?;
        let listener = pods.server.run(|| {
            TcpListener::bind(SocketAddrV4::new(SERVER, PORT)).context("listening in the server's namespace")
        })?;
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(0, GLANCE))
            .context("limiting accept")?;
        Ok(Self { pods, listener, softirq: softirq_threads() })
    }

    /// Whether a port that no policy names is dropped. Without policies the pod's kernel refuses it.
    pub(crate) fn is_closed(&self) -> Result<bool> {
        self.pods.client.run(|| {
            match TcpStream::connect_timeout(&SocketAddr::V4(SocketAddrV4::new(SERVER, CLOSED)), DROPPED) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
                Err(error) if error.kind() == ErrorKind::TimedOut => Ok(true),
                Err(error) => Err(error).context("trying a closed port"),
                Ok(_) => Err(anyhow!("a port on which nobody listens answers")),
            }
        })
    }

    /// Runs a workload for so long.
    pub(crate) fn run(&self, workload: Workload, time: Duration) -> Result<Done> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let server = scope.spawn(|| -> Result<u64> {
                live::stay()?;
                serve(&self.listener, workload, &over)
            });
            let client = scope.spawn(|| -> Result<Done> {
                self.pods.client.enter()?;
                live::stay()?;
                let done = self.client(workload, time);
                over.store(true, Ordering::Relaxed);
                done
            });
            let done = client.join().map_err(|_| anyhow!("the client panicked"))?;
            let received = server.join().map_err(|_| anyhow!("the server panicked"))?;
            let (mut done, received) = (done?, received?);
            if workload == Workload::Stream {
                #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
                let mib = received as f64 / f64::from(1u32 << 20);
                done.units = mib;
            }
            ensure!(done.units > 0.0, "nothing came through");
            Ok(done)
        })
    }

    fn client(&self, workload: Workload, time: Duration) -> Result<Done> {
        let mut stream = match workload {
            Workload::Stream | Workload::Requests => Some(connect()?),
            Workload::Connections => None,
        };
        let block = vec![0x5a; BLOCK];
        let mut message = [0x5a; MESSAGE];
        let mut units = 0u32;
        let before = self.cpu()?;
        let begin = Instant::now();
        while begin.elapsed() < time {
            match (&mut stream, workload) {
                (Some(stream), Workload::Stream) => stream.write_all(&block).context("sending")?,
                (Some(stream), _) => {
                    stream.write_all(&message).context("asking")?;
                    stream.read_exact(&mut message).context("reading an answer")?;
                }
                (None, _) => {
                    let mut stream = connect()?;
                    reset_at_end(&stream)?;
                    stream.write_all(&[1]).context("sending a byte")?;
                    stream.read_exact(&mut [0]).context("reading a byte")?;
                }
            }
            units += 1;
        }
        if let (Some(stream), Workload::Stream) = (&mut stream, workload) {
            // All has arrived when the server closes.
            stream.shutdown(std::net::Shutdown::Write).context("ending the stream")?;
            let _end = stream.read(&mut message).context("waiting for the stream's end")?;
        }
        let wall = begin.elapsed().as_secs_f64();
        Ok(Done { units: f64::from(units), wall, cpu: (self.cpu()? - before).max(f64::MIN_POSITIVE) })
    }

    fn cpu(&self) -> Result<f64> {
        let own: Duration = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
            .context("reading the process's CPU clock")?
            .into();
        // Nanoseconds on a CPU are the first field.
        let put_off = |path: &String| -> Option<f64> {
            fs::read_to_string(path).ok()?.split_whitespace().next()?.parse::<f64>().ok()
        };
        let put_off: f64 = self.softirq.iter().filter_map(put_off).sum();
        Ok(own.as_secs_f64() + put_off / 1e9)
    }
}

/// The accounts of the kernel's threads that handle packets which were put off; none where they cannot be seen.
fn softirq_threads() -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(Result::ok)
        .map(|process| process.path())
        .filter(|path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/")))
        .map(|path| path.join("schedstat").to_string_lossy().into_owned())
        .collect()
}

fn connect() -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::V4(SocketAddrV4::new(SERVER, PORT)), PATIENCE)
        .context("connecting to the server")?;
    stream.set_nodelay(true).context("sending at once")?;
    stream.set_read_timeout(Some(PATIENCE)).context("limiting reads")?;
    stream.set_write_timeout(Some(PATIENCE)).context("limiting writes")?;
    Ok(stream)
}

/// Closing resets: no port is kept back.
fn reset_at_end(stream: &TcpStream) -> Result<()> {
    setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })
        .context("asking for a reset")
}

/// Serves until the client is done; returns the bytes of a stream.
fn serve(listener: &TcpListener, workload: Workload, over: &AtomicBool) -> Result<u64> {
    let mut buffer = vec![0; BLOCK];
    let mut received = 0u64;
    while !over.load(Ordering::Relaxed) {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).context("accepting"),
        };
        stream.set_nodelay(true).context("sending at once")?;
        stream.set_read_timeout(Some(PATIENCE)).context("limiting reads")?;
        loop {
            let read = match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error).context("serving"),
            };
            received += u64::try_from(read)?;
            if workload != Workload::Stream {
                let answer = buffer.get(..read).context("what was read")?;
                stream.write_all(answer).context("answering")?;
            }
        }
    }
    Ok(received)
}
