//! Inner maps that a later agent has to open again. An array of maps tells of each only its number, and from a number
//! the kernel makes a descriptor for `CAP_SYS_ADMIN` alone; so each is pinned under its number too. What holds it for
//! the programs is the array: a pin that no array names any more is taken away.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::sys;

/// Where inner maps are pinned, by their numbers.
#[derive(Debug, Default)]
pub(super) struct InnerPins {
    /// None for a load that no other follows.
    dir: Option<PathBuf>,
}

impl InnerPins {
    /// In a directory of a bpffs.
    pub(super) fn below(dir: &Path) -> Self {
        Self { dir: Some(dir.to_owned()) }
    }

    fn path(&self, id: u32) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(id.to_string()))
    }

    /// Pins one that was made.
    pub(super) fn keep(&self, map: BorrowedFd<'_>) -> io::Result<()> {
        match self.path(sys::map_info(map)?.id) {
            Some(path) => sys::pin(map, &path),
            None => Ok(()),
        }
    }

    /// The map in a slot. One without a pin is another load's, or of a version that made none: `CAP_SYS_ADMIN`.
    pub(super) fn open(&self, map: BorrowedFd<'_>, slot: u32) -> io::Result<Option<OwnedFd>> {
        let Some(id) = sys::inner_id(map, slot)? else { return Ok(None) };
        if let Some(path) = self.path(id) {
            match sys::pinned(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => return outcome.map(Some),
            }
        }
        sys::map_by_id(id).map(Some).map_err(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                io::Error::other(format!(
                    "map {id} has no pin, and to open it without one takes CAP_SYS_ADMIN: end the agent and run \
                     `portcullis cleanup`"
                ))
            } else {
                error
            }
        })
    }

    /// Empties a slot whose map is in no other.
    pub(super) fn empty(&self, map: BorrowedFd<'_>, slot: u32) -> io::Result<()> {
        let id = sys::inner_id(map, slot)?;
        sys::delete_slot(map, slot)?;
        id.map_or(Ok(()), |id| self.forget(id))
    }

    /// Puts a map into a slot, in the place of one that is in no other.
    pub(super) fn replace(&self, map: BorrowedFd<'_>, slot: u32, inner: &OwnedFd) -> io::Result<()> {
        let id = sys::inner_id(map, slot)?;
        sys::set_inner(map, slot, inner.as_fd())?;
        id.map_or(Ok(()), |id| self.forget(id))
    }

    fn forget(&self, id: u32) -> io::Result<()> {
        match self.path(id).map(fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            None | Some(_) => Ok(()),
        }
    }

    /// Takes away what an agent that was killed between two steps left: pins of maps that are in no slot.
    pub(super) fn sweep(&self, arrays: &[(BorrowedFd<'_>, u32)]) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let mut named = BTreeSet::new();
        for (array, slots) in arrays {
            for slot in 0..*slots {
                named.extend(sys::inner_id(*array, slot)?);
            }
        }
        for entry in fs::read_dir(dir)? {
            let id: Option<u32> = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(id) = id.filter(|id| !named.contains(id)) {
                self.forget(id)?;
            }
        }
        Ok(())
    }
}
