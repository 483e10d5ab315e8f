//! Owns the conversation with the kernel's routing netlink: one request, its acknowledgement or its dump.
//!
//! Requests and answers are bytes here: a message's fixed header is read at the offsets of the kernel's uapi
//! headers, and of the attributes only those are decoded that someone asks for. A decoder of everything would
//! fail a whole dump on one attribute of a newer kernel, or on one odd filter of somebody else. It must not
//! know what interfaces, filters and routes mean to us.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, recv, send, socket,
};

/// `struct nlmsghdr`: length, type, flags, sequence, port.
pub(super) const HEADER: usize = 16;
/// A dump's datagrams are at most 32 KiB (`netlink_dump` in `net/netlink/af_netlink.c`).
const DATAGRAM: usize = 64 * 1024;
/// How often a dump that a change interrupted is asked for again.
const DUMP_ATTEMPTS: usize = 16;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are flags in an attribute's type.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// A request under construction.
pub(super) struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    /// A request of type `kind` (`RTM_*`) with `NLM_F_*` flags besides `NLM_F_REQUEST`, and its fixed header.
    pub(super) fn new(kind: u16, flags: libc::c_int, fixed: &[u8]) -> Self {
        // The flags that exist fill 16 bits.
        let flags = u16::try_from(flags).unwrap_or_default();
        Self { kind, flags, body: fixed.to_vec() }
    }

    /// Adds an attribute.
    #[must_use]
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.body, kind, value);
        self
    }

    fn bytes(&self, sequence: u32, extra: libc::c_int) -> Vec<u8> {
        let extra = u16::try_from(extra).unwrap_or_default();
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&(self.flags | extra).to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Appends an attribute, padded to four bytes.
pub(super) fn push_attribute(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(value);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

/// A blocking socket in the network namespace of the thread that opened it. It is connected to the kernel, so
/// that nobody else's datagram is taken for an answer.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens the socket.
    pub(super) fn open() -> io::Result<Self> {
        Self::open_of(SockProtocol::NetlinkRoute)
    }

    /// Opens a socket to the packet filter instead.
    pub(super) fn open_netfilter() -> io::Result<Self> {
        Self::open_of(SockProtocol::NetlinkNetFilter)
    }

    fn open_of(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket_with(SockFlag::SOCK_CLOEXEC, protocol)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits until the kernel has carried it out.
    pub(super) fn act(&mut self, request: &Request) -> io::Result<()> {
        self.exchange(request, libc::NLM_F_ACK).map(drop)
    }

    /// The bodies of the messages that answer a request for one object.
    pub(super) fn ask(&mut self, request: &Request) -> io::Result<Vec<Vec<u8>>> {
        match self.exchange(request, libc::NLM_F_ACK)? {
            Answer::Whole(messages) => Ok(messages),
            Answer::Interrupted => Err(malformed()),
        }
    }

    /// The bodies (fixed header and attributes) of all messages that answer a dump request, asked for again while changes make it inconsistent.
    pub(super) fn dump(&mut self, request: &Request) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Answer::Whole(messages) = self.exchange(request, libc::NLM_F_DUMP)? {
                return Ok(messages);
            }
        }
        Err(io::Error::other("the kernel's tables changed during every dump"))
    }

    /// Hands over the bodies of all messages that answer a dump request, as they come: for tables that are too large to
    /// be held. Asked once: what changes meanwhile may be missing, or come twice.
    pub(super) fn stream(&mut self, request: &Request, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.converse(request, libc::NLM_F_DUMP, |answer| {
            answer.messages.drain(..).for_each(|body| each(&body));
        })
        .map(drop)
    }

    /// As [`Self::stream`], until `each` has enough, and tells whether anything changed meanwhile.
    pub(super) fn stream_until(
        &mut self,
        request: &Request,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<Streamed> {
        let answer = self.converse(request, libc::NLM_F_DUMP, |answer| {
            // What the kernel still has to say goes with the socket.
            answer.done |= answer.messages.drain(..).any(|body| each(&body).is_break());
        })?;
        Ok(if answer.interrupted { Streamed::Interrupted } else { Streamed::Whole })
    }

    fn exchange(&mut self, request: &Request, flags: libc::c_int) -> io::Result<Answer> {
        let answer = self.converse(request, flags, |_| {})?;
        Ok(if answer.interrupted { Answer::Interrupted } else { Answer::Whole(answer.messages) })
    }

    /// Sends a request and takes what answers it; `heard` may empty the collector after each datagram.
    fn converse(
        &mut self,
        request: &Request,
        flags: libc::c_int,
        mut heard: impl FnMut(&mut Collector),
    ) -> io::Result<Collector> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.bytes(self.sequence, libc::NLM_F_REQUEST | flags);
        retry(|| send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()))?;
        let mut answer = Collector::new(self.sequence);
        let mut buffer = vec![0u8; DATAGRAM];
        while !answer.done {
            let length = retry(|| recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()))?;
            answer.take(buffer.get(..length).unwrap_or_default())?;
            heard(&mut answer);
        }
        Ok(answer)
    }
}

/// A non-blocking socket that hears the multicast groups of the mask (`RTMGRP_*`).
pub(super) fn listen(groups: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

fn socket_with(flags: SockFlag, protocol: SockProtocol) -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?)
}

/// Repeats a system call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// How a dump was that was not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streamed {
    /// It is of one moment.
    Whole,
    /// A change interrupted it: something may be missing, or come twice.
    Interrupted,
}

enum Answer {
    Whole(Vec<Vec<u8>>),
    Interrupted,
}

/// Puts the datagrams of one answer together.
struct Collector {
    sequence: u32,
    messages: Vec<Vec<u8>>,
    interrupted: bool,
    done: bool,
}

impl Collector {
    const fn new(sequence: u32) -> Self {
        Self { sequence, messages: Vec::new(), interrupted: false, done: false }
    }

    fn take(&mut self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() && !self.done {
            let (Some(length), Some(kind), Some(flags), Some(sequence)) =
                (u32_at(rest, 0), u16_at(rest, 4), u16_at(rest, 6), u32_at(rest, 8))
            else {
                return Err(malformed());
            };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let body = rest.get(HEADER..length).ok_or_else(malformed)?;
            if sequence == self.sequence {
                self.one(kind, i32::from(flags), body)?;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn one(&mut self, kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<()> {
        self.interrupted |= flags & libc::NLM_F_DUMP_INTR != 0;
        match i32::from(kind) {
            libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                self.done = true;
                // An acknowledgement and the end of a dump both carry a negated errno.
                match u32_at(body, 0).map(u32::cast_signed) {
                    None | Some(0) => Ok(()),
                    Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
                }
            }
            libc::NLMSG_NOOP => Ok(()),
            _ => {
                self.messages.push(body.to_vec());
                Ok(())
            }
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's netlink message cannot be read")
}

/// The attributes in a buffer. Ends at the first that does not fit.
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those after the fixed header of `fixed` bytes.
    pub(super) fn after(body: &'a [u8], fixed: usize) -> Self {
        Self(body.get(fixed..).unwrap_or_default())
    }

    /// The value of the first attribute of this type.
    pub(super) fn find(body: &'a [u8], fixed: usize, kind: u16) -> Option<&'a [u8]> {
        Self::after(body, fixed).find_map(|(found, value)| (found == kind).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & ATTRIBUTE_TYPE;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Bytes at an offset.
pub(super) fn bytes_at<const N: usize>(buffer: &[u8], offset: usize) -> Option<[u8; N]> {
    buffer.get(offset..)?.first_chunk().copied()
}

/// A word of 16 bits at an offset, in the byte order of this machine.
pub(super) fn u16_at(buffer: &[u8], offset: usize) -> Option<u16> {
    bytes_at(buffer, offset).map(u16::from_ne_bytes)
}

/// A word of 32 bits at an offset, in the byte order of this machine.
pub(super) fn u32_at(buffer: &[u8], offset: usize) -> Option<u32> {
    bytes_at(buffer, offset).map(u32::from_ne_bytes)
}

/// A string that may end in NUL.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_padded_and_read_back() {
        let mut buffer = vec![9, 9, 9, 9];
        push_attribute(&mut buffer, 1, b"bpf\0");
        push_attribute(&mut buffer, 2 | 0x8000, b"abcde");
        push_attribute(&mut buffer, 3, &7u32.to_ne_bytes());

        assert_eq!(buffer.len() % 4, 0);
        let read: Vec<_> = Attributes::after(&buffer, 4).collect();
        assert_eq!(read, [(1, &b"bpf\0"[..]), (2, b"abcde"), (3, &7u32.to_ne_bytes())]);
        assert_eq!(Attributes::find(&buffer, 4, 1).map(text), Some("bpf".to_owned()));
    }

    #[test]
    fn torn_attributes_end_the_walk() {
        for torn in [&[3u8, 0][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 5], &[0, 0, 0, 0]] {
            assert_eq!(Attributes::after(torn, 0).count(), 0, "{torn:?}");
        }
    }

    #[test]
    fn a_dump_that_a_change_interrupted_is_known_as_such() {
        let mut collector = Collector::new(5);
        let part = Request::new(libc::RTM_NEWROUTE, libc::NLM_F_DUMP_INTR, &[1, 2, 3, 4]);
        collector.take(&part.bytes(5, 0)).unwrap();
        let done = Request::new(u16::try_from(libc::NLMSG_DONE).unwrap(), 0, &0u32.to_ne_bytes());
        collector.take(&done.bytes(5, 0)).unwrap();
        assert!(collector.done && collector.interrupted);
        assert_eq!(collector.messages.len(), 1);
    }

    #[test]
    fn an_answer_to_another_request_is_skipped_and_an_error_is_told() {
        let mut collector = Collector::new(5);
        let error = Request::new(u16::try_from(libc::NLMSG_ERROR).unwrap(), 0, &(-19i32).to_ne_bytes());
        collector.take(&error.bytes(4, 0)).unwrap();
        assert!(!collector.done);
        let told = collector.take(&error.bytes(5, 0)).unwrap_err();
        assert_eq!(told.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn no_bytes_make_the_reader_panic() {
        for length in 0..40u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            let _ = Collector::new(0).take(&bytes);
            let _ = Attributes::after(&bytes, 0).count();
        }
    }
}
