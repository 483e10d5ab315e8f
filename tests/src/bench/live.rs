//! Real packets: from a packet socket through a veth pair to the programs at its other end, beside an empty
//! program at the same hook. The kernel itself tells what each program took (`BPF_ENABLE_STATS`, Linux 5.8): what
//! a test run cannot, for that puts one packet many times. Knows nothing of flows.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::sys::{Stats, enable_stats};
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrLike as _, bind, sendmmsg,
    socket,
};
use nix::unistd::Pid;
use portcullis_tests::attached::{Attached, Cost};

/// Frames that are handed over by one call.
pub(crate) const BATCH: usize = 64;
/// How long the last packets may be on their way.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends frames out of one device, as they are.
#[derive(Debug)]
pub(crate) struct Sender(OwnedFd);

impl Sender {
    /// Out of the device with this index, in the calling thread's namespace.
    pub(crate) fn new(ifindex: u32) -> Result<Self> {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .context("opening a packet socket")?;
        // SAFETY: all bytes zero is a value: these are plain numbers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_ifindex = i32::try_from(ifindex)?;
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
        // SAFETY: the address is whole and of the family that it names.
        let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
        bind(fd.as_raw_fd(), &address.context("an address of a device")?)
            .with_context(|| format!("binding a packet socket to device {ifindex}"))?;
        Ok(Self(fd))
    }

    /// Sends them all.
    pub(crate) fn send(&self, frames: &[Vec<u8>]) -> Result<()> {
        let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let nowhere: Vec<Option<LinkAddr>> = vec![None; slices.len()];
        let mut headers = MultiHeaders::preallocate(slices.len(), None);
        let sent = sendmmsg(self.0.as_raw_fd(), &mut headers, slices.iter(), nowhere, [], MsgFlags::empty())
            .context("sending frames")?
            .count();
        ensure!(sent == frames.len(), "{sent} of {} frames were taken", frames.len());
        Ok(())
    }
}

/// The kernel counts what programs take while this lives: all programs of the machine, each some 20 ns slower.
#[derive(Debug)]
pub(crate) struct Counting(#[allow(dead_code, reason = "the kernel counts while it is open")] OwnedFd);

impl Counting {
    pub(crate) fn begin() -> Result<Self> {
        Ok(Self(enable_stats(Stats::RunTime).context("asking the kernel to count what programs take")?))
    }
}

/// What a batch of packets took, each on average, in nanoseconds; and how many there were.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    pub(crate) ours: f64,
    pub(crate) empty: f64,
    pub(crate) packets: u64,
}

/// Sends by `send`, waits until both programs have seen `expected` packets, and says what each took.
pub(crate) fn took(load: &mut Attached, expected: u64, send: impl FnOnce() -> Result<()>) -> Result<Took> {
    let before = load.costs()?;
    send()?;
    let begin = Instant::now();
    let after = loop {
        let now = load.costs()?;
        if now.iter().zip(&before).all(|(now, before)| now.runs - before.runs >= expected) {
            break now;
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "of {expected} packets {} came to the programs",
            now.iter().zip(&before).map(|(now, before)| now.runs - before.runs).min().unwrap_or(0)
        );
        thread::sleep(Duration::from_millis(1));
    };
    let each = |now: Cost, before: Cost| {
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let runs = (now.runs - before.runs).max(1) as f64;
        now.time.saturating_sub(before.time).as_secs_f64() * 1e9 / runs
    };
    let ([ours, empty], [ours_before, empty_before]) = (after, before);
    Ok(Took {
        ours: each(ours, ours_before),
        empty: each(empty, empty_before),
        packets: ours.runs - ours_before.runs,
    })
}

/// Keeps the calling thread on the last CPU that it may use: caches and counters of programs are a CPU's.
pub(crate) fn stay() -> Result<()> {
    let may = sched_getaffinity(Pid::from_raw(0)).context("asking for the thread's CPUs")?;
    let last = (0..CpuSet::count()).rev().find(|cpu| may.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("a CPU to run on")?).context("naming a CPU")?;
    sched_setaffinity(Pid::from_raw(0), &one).context("staying on one CPU")
}

/// No IPv6 in the calling thread's namespace: the kernel's own neighbour discovery would be counted among the
/// packets.
pub(crate) fn silence() -> Result<()> {
    for place in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{place}/disable_ipv6");
        if fs::exists(&path).unwrap_or(false) {
            fs::write(&path, "1").with_context(|| format!("writing {path}"))?;
        }
    }
    Ok(())
}
