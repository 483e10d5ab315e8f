//! The event ring: verdicts as the programs tell them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use portcullis_common::event::Event;
use tokio::io::unix::AsyncFd;
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

    /// Waits for events and hands over all that are there. An event of an unknown size is passed over.
    pub async fn read(&mut self, mut each: impl FnMut(Event)) -> io::Result<()> {
        let mut ready = self.ring.readable_mut().await?;
        let ring = &mut ready.get_inner_mut().0;
        while let Some(item) = ring.next() {
            if let Ok((event, _)) = Event::read_from_prefix(&item) {
                each(event);
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
