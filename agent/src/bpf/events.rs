//! The event ring: verdicts as the programs tell them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use portcullis_common::event::Event;
use portcullis_common::wire::EVENT_DELAY_MS;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;
use zerocopy::FromBytes as _;

use super::kernel::take;
use super::load::BpfError;

/// Reads events as they come.
pub struct Events {
    ring: AsyncFd<Ring>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Events {
    /// Of the attached load. To be called in a Tokio runtime.
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let ring = Ring(take(ebpf, "events")?);
        // SAFETY: the map is ours and open for as long as `ring`, which keeps its descriptor to itself.
        let ring = unsafe { AsyncFd::register(ring) }.map_err(|e| BpfError::map("watch", "events", e))?;
        Ok(Self { ring })
    }

    /// Waits for events and hands over all that are there. The programs wake us when many wait; few wait for
    /// [`EVENT_DELAY_MS`] at most. An event of an unknown size is passed over.
    pub async fn read(&mut self, mut each: impl FnMut(Event)) -> io::Result<()> {
        let woken = timeout(Duration::from_millis(EVENT_DELAY_MS), self.ring.readable_mut()).await;
        let mut hand_over = |ring: &mut RingBuf<MapData>| {
            while let Some(item) = ring.next() {
                if let Ok((event, _)) = Event::read_from_prefix(&item) {
                    each(event);
                }
            }
        };
        if let Ok(ready) = woken {
            let mut ready = ready?;
            // Before the ring is read: what comes meanwhile makes it ready again.
            ready.clear_ready();
            hand_over(&mut ready.get_inner_mut().0);
        } else {
            hand_over(&mut self.ring.get_mut().0);
        }
        Ok(())
    }
}
