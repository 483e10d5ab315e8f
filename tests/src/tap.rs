//! Packet sockets: frames as they are, out of an interface and off it. Knows nothing of what is in them.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use portcullis_lab::netns::Netns;

/// What waits to be read while a test looks elsewhere.
const BUFFER: usize = 64 << 20;
/// The longest frame: what segmentation offload hands over whole.
const LONGEST: usize = 1 << 17;

/// An interface, on which frames are sent and heard. What this host sends by other ways is not heard.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Tap {
    /// Of an interface in a namespace.
    ///
    /// # Panics
    ///
    /// Where it cannot be had, as all here does.
    #[must_use]
    pub fn open(netns: &Netns, interface: &str) -> Self {
        let fd = netns
            .run(|| open(interface))
            .expect("the namespace is there")
            .unwrap_or_else(|e| panic!("a packet socket on {interface} of {}: {e}", netns.name()));
        Self { fd, buffer: vec![0; LONGEST] }
    }

    /// Of an interface in the calling thread's namespace.
    pub fn here(interface: &str) -> io::Result<Self> {
        Ok(Self { fd: open(interface)?, buffer: vec![0; LONGEST] })
    }

    /// Sends a frame.
    ///
    /// # Panics
    ///
    /// If the interface does not take it.
    pub fn send(&self, frame: &[u8]) {
        loop {
            match send(self.fd.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(sent) => return assert_eq!(sent, frame.len(), "a frame was cut"),
                // The device's queue is full.
                Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => std::thread::yield_now(),
                Err(error) => panic!("sending a frame of {} bytes: {error}", frame.len()),
            }
        }
    }

    /// Sends a frame once; false if the kernel says that it was dropped on the way out, as by a program there.
    ///
    /// # Panics
    ///
    /// If the interface does not take it for another reason.
    #[must_use]
    pub fn offer(&self, frame: &[u8]) -> bool {
        match send(self.fd.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) => true,
            Err(Errno::ENOBUFS) => false,
            Err(error) => panic!("sending a frame of {} bytes: {error}", frame.len()),
        }
    }

    /// The next frame that waits.
    ///
    /// # Panics
    ///
    /// If the interface is gone.
    pub fn hear(&mut self) -> Option<&[u8]> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => return self.buffer.get(..length),
                Err(Errno::EAGAIN) => return None,
                Err(Errno::EINTR) => {}
                Err(error) => panic!("hearing frames: {error}"),
            }
        }
    }

    /// Waits until a frame is there; false if none is by then.
    ///
    /// # Panics
    ///
    /// If it cannot be waited for.
    #[must_use]
    pub fn wait(&self, deadline: Instant) -> bool {
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            let rest = rest.min(Duration::from_mins(1)).as_millis().max(1);
            let timeout = PollTimeout::try_from(rest).expect("a minute fits");
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return true,
                Err(error) => panic!("waiting for frames: {error}"),
            }
        }
    }
}

/// Bytes of a slot of a ring, two of which are a page.
const SLOT: usize = 2048;
const SLOTS: usize = 2;
/// Where a frame stands in its slot: behind the header, where a receiver would have an address.
const FRAME: usize = libc::TPACKET_HDRLEN - size_of::<libc::sockaddr_ll>();

/// A ring of frames that the kernel sends from where they are: it reads the link's header into a buffer of its own, and
/// leaves all else in the sender's page.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    page: NonNull<u8>,
    next: Cell<usize>,
}

impl Ring {
    /// Of an interface in a namespace.
    ///
    /// # Panics
    ///
    /// Where it cannot be had, as all here does.
    #[must_use]
    pub fn open(netns: &Netns, interface: &str) -> Self {
        let fd = netns
            .run(|| open(interface))
            .expect("the namespace is there")
            .unwrap_or_else(|e| panic!("a packet socket on {interface} of {}: {e}", netns.name()));
        let request =
            libc::tpacket_req { tp_block_size: 4096, tp_block_nr: 1, tp_frame_size: 2048, tp_frame_nr: 2 };
        // SAFETY: the option takes such a request, and `request` is one.
        let set = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_TX_RING,
                (&raw const request).cast(),
                length::<libc::tpacket_req>(),
            )
        };
        Errno::result(set).expect("the kernel has rings");
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SLOT * SLOTS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED, "mapping a ring: {}", Errno::last());
        Self { fd, page: NonNull::new(page.cast()).expect("a mapping is somewhere"), next: Cell::new(0) }
    }

    /// Sends a frame, and returns once the slot is free again.
    ///
    /// # Panics
    ///
    /// If the interface does not take it.
    pub fn send(&self, frame: &[u8]) {
        assert!(frame.len() <= SLOT - FRAME, "a slot has no room for {} bytes", frame.len());
        let slot = self.next.get();
        self.next.set((slot + 1) % SLOTS);
        // SAFETY: there are `SLOTS` slots of so many bytes.
        let slot = unsafe { self.page.as_ptr().add(slot * SLOT) };
        // SAFETY: the frame's place is inside of the slot, for as many bytes, as was asserted.
        let place = unsafe { slot.add(FRAME) };
        // SAFETY: as above; the two are not the same memory.
        unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), place, frame.len()) };
        #[allow(clippy::cast_ptr_alignment, reason = "a slot begins at a multiple of its length in a page")]
        let header = slot.cast::<libc::tpacket_hdr>();
        // SAFETY: a slot begins with its header, aligned as the page is.
        let said = unsafe { &raw mut (*header).tp_len };
        // SAFETY: a field of the header.
        unsafe { said.write_volatile(u32::try_from(frame.len()).expect("a slot's length")) };
        // SAFETY: as above.
        let status = unsafe { &raw mut (*header).tp_status };
        // SAFETY: a field of the header; the kernel reads it in the call below.
        unsafe { status.write_volatile(libc::TP_STATUS_SEND_REQUEST.into()) };
        // SAFETY: no memory is passed.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), std::ptr::null(), 0, 0) };
        Errno::result(sent).expect("the ring is sent");
        // SAFETY: a field of the header, which the kernel writes.
        while unsafe { status.read_volatile() } != u64::from(libc::TP_STATUS_AVAILABLE) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, of which nothing else is left.
        let done = unsafe { libc::munmap(self.page.as_ptr().cast(), SLOT * SLOTS) };
        debug_assert_eq!(done, 0, "a mapping goes");
    }
}

/// Keeps the calling thread on one CPU. What it sends through veth devices then arrives in the order sent: each CPU
/// has a queue of its own.
///
/// # Panics
///
/// If the system refuses.
pub fn stay_on_one_cpu() {
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0)).expect("a thread has CPUs");
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.expect("a thread has a CPU")).expect("the CPU exists");
    sched_setaffinity(Pid::from_raw(0), &one).expect("a thread may choose its CPU");
}

/// The length of a value for the system.
#[allow(clippy::cast_possible_truncation, reason = "no value here has four gigabytes")]
const fn length<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the system's constants fit their fields"
)]
fn open(interface: &str) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        // Nothing is heard before it is bound: then only from its interface.
        None::<SockProtocol>,
    )?;
    setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, and `on` is one.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            length::<libc::c_int>(),
        )
    };
    Errno::result(set)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: if_nametoindex(interface)?.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is of the family of the socket and has the length given.
    let bound =
        unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length::<libc::sockaddr_ll>()) };
    Errno::result(bound)?;
    Ok(fd)
}
