//! One thread that serves every namespace of a lab. TCP: a line with the server's name, then an echo. UDP:
//! the same line, then what was sent. Datagrams of a [stream](super::UdpStream) are tallied besides.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use portcullis_policy::model::Protocol;

use super::socket::{listen_tcp, raise_file_limit, serve_udp};
use super::stream::read_packet;
use crate::netns::Netns;

/// The epoll token that says: there are commands.
const WAKE: u64 = 0;

/// What arrived of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often each sequence number arrived.
    pub arrivals: BTreeMap<u64, u32>,
}

type Tallies = Arc<Mutex<BTreeMap<u64, Tally>>>;

/// The servers of a lab; they end when it is dropped.
#[derive(Debug)]
pub struct Server {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    tallies: Tallies,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Serve(Arc<str>, Vec<Source>),
    Withdraw(String, mpsc::Sender<()>),
    End,
}

enum Source {
    Listener(TcpListener),
    Connection(TcpStream),
    Datagrams(UdpSocket),
}

impl Server {
    /// Starts the thread; it serves nothing yet.
    pub fn start() -> Result<Self> {
        raise_file_limit();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let (commands, inbox) = mpsc::channel();
        let tallies = Tallies::default();
        let desk = Desk {
            epoll,
            inbox,
            wake: wake.clone(),
            tallies: tallies.clone(),
            sources: BTreeMap::new(),
            last_token: WAKE,
        };
        let thread = thread::Builder::new().name("lab-server".into()).spawn(move || desk.work())?;
        Ok(Self { commands, wake, tallies, thread: Some(thread) })
    }

    /// Opens sockets in a namespace, on each of the addresses, and serves them under a name, besides what the
    /// name serves already. When it returns, they answer.
    pub fn serve<'a>(
        &self,
        netns: &Netns,
        name: &str,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
        ports: impl IntoIterator<Item = &'a (Protocol, u16)> + Clone,
    ) -> Result<()> {
        let addresses: Vec<IpAddr> = addresses.into_iter().copied().collect();
        let ports: Vec<(Protocol, u16)> = ports.into_iter().copied().collect();
        let sources =
            netns.run(|| open(&addresses, &ports))?.with_context(|| format!("serving for {name}"))?;
        self.send(Command::Serve(name.into(), sources))
    }

    /// Closes everything that is served under a name, connections included. When it returns, that is done.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        let (done, wait) = mpsc::channel();
        self.send(Command::Withdraw(name.to_owned(), done))?;
        wait.recv().context("the lab's server thread ended")
    }

    /// What arrived of a stream so far.
    #[must_use]
    pub fn tally(&self, stream: u64) -> Tally {
        lock(&self.tallies).get(&stream).cloned().unwrap_or_default()
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| anyhow!("the lab's server thread ended"))?;
        self.wake.write(1).context("waking the lab's server thread")?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.send(Command::End).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It reported its panic itself.
            drop(thread.join());
        }
    }
}

fn open(addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for address in addresses {
        for (protocol, port) in ports {
            let source = match protocol {
                Protocol::Tcp => listen_tcp(*address, *port).map(Source::Listener),
                Protocol::Udp => serve_udp(*address, *port).map(Source::Datagrams),
                Protocol::Sctp => continue,
            };
            sources.push(source.with_context(|| format!("opening {protocol}/{port} on {address}"))?);
        }
    }
    Ok(sources)
}

fn lock(tallies: &Tallies) -> MutexGuard<'_, BTreeMap<u64, Tally>> {
    tallies.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread has.
struct Desk {
    epoll: Epoll,
    inbox: mpsc::Receiver<Command>,
    wake: Arc<EventFd>,
    tallies: Tallies,
    sources: BTreeMap<u64, (Arc<str>, Source)>,
    last_token: u64,
}

/// Whether a source, or the thread, goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Keep,
    End,
}

impl Desk {
    fn work(mut self) {
        loop {
            let mut events = [EpollEvent::empty(); 128];
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => 0,
                Err(_) => return,
                Ok(count) => count,
            };
            for event in events.iter().take(count) {
                if event.data() != WAKE {
                    self.attend(event.data());
                } else if self.obey() == Next::End {
                    return;
                }
            }
        }
    }

    fn obey(&mut self) -> Next {
        // Its value counts nothing: every command that is there is taken.
        let _ = self.wake.read();
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Serve(name, sources) => {
                    for source in sources {
                        self.add(name.clone(), source);
                    }
                }
                Command::Withdraw(name, done) => {
                    self.sources.retain(|_, (owner, _)| **owner != *name);
                    let _ = done.send(());
                }
                Command::End => return Next::End,
            }
        }
        Next::Keep
    }

    fn add(&mut self, name: Arc<str>, source: Source) {
        self.last_token += 1;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.last_token);
        // A source that cannot be watched is closed, and its clients are refused: probes show it.
        if self.epoll.add(descriptor(&source), event).is_ok() {
            self.sources.insert(self.last_token, (name, source));
        }
    }

    fn attend(&mut self, token: u64) {
        let Some((name, source)) = self.sources.get_mut(&token) else { return };
        let next = match source {
            Source::Listener(listener) => {
                let accepted = accept(listener, name);
                let name = name.clone();
                for stream in accepted {
                    self.add(name.clone(), Source::Connection(stream));
                }
                Next::Keep
            }
            Source::Connection(stream) => echo(stream),
            Source::Datagrams(socket) => {
                answer(socket, name, &self.tallies);
                Next::Keep
            }
        };
        if next == Next::End {
            // Closing takes it out of the epoll.
            self.sources.remove(&token);
        }
    }
}

fn descriptor(source: &Source) -> BorrowedFd<'_> {
    match source {
        Source::Listener(listener) => listener.as_fd(),
        Source::Connection(stream) => stream.as_fd(),
        Source::Datagrams(socket) => socket.as_fd(),
    }
}

fn accept(listener: &TcpListener, name: &str) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                let greeted = stream
                    .set_nonblocking(true)
                    .and_then(|()| stream.set_nodelay(true))
                    .and_then(|()| stream.write_all(format!("{name}\n").as_bytes()));
                streams.extend(greeted.ok().map(|()| stream));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(_) => return streams,
        }
    }
}

/// Echoes what came. A client that sends more than the kernel buffers is cut off: the lab sends little.
fn echo(stream: &mut TcpStream) -> Next {
    let mut buffer = [0; 16 << 10];
    match stream.read(&mut buffer) {
        Ok(0) => Next::End,
        Ok(count) => match buffer.get(..count).map(|bytes| stream.write_all(bytes)) {
            Some(Ok(())) => Next::Keep,
            Some(Err(_)) | None => Next::End,
        },
        Err(error) if is_temporary(&error) => Next::Keep,
        Err(_) => Next::End,
    }
}

fn answer(socket: &UdpSocket, name: &str, tallies: &Tallies) {
    let mut buffer = [0; 2048];
    // Bounded, so that one busy socket does not silence the others.
    for _ in 0..256 {
        let (count, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // What an ICMP error left; the next receive is for data.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            Err(_) => return,
        };
        let data = buffer.get(..count).unwrap_or_default();
        if let Some((stream, sequence)) = read_packet(data) {
            *lock(tallies).entry(stream).or_default().arrivals.entry(sequence).or_default() += 1;
        }
        let reply = [name.as_bytes(), b"\n", data].concat();
        // A reply that cannot be sent is a probe that hears nothing.
        drop(socket.send_to(&reply, from));
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
