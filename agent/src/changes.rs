//! Word of changes below a directory, by inotify. Misses some: who follows a directory looks by itself from time to time, too.

use std::path::Path;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecursiveMode, Watcher as _};

/// Calls for each change from now on, for as long as the process lives. Where it cannot, the log says that changes are seen
/// `otherwise`, and what would have been called is dropped.
pub(crate) fn follow(dir: &Path, mode: RecursiveMode, otherwise: &str, changed: impl Fn() + Send + 'static) {
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // An error (the queue ran over) may hide a change.
        if !event.is_ok_and(|event| is_reading(event.kind)) {
            changed();
        }
    });
    match watcher.and_then(|mut w| w.watch(dir, mode).map(|()| w)) {
        Ok(watcher) => std::mem::forget(watcher),
        Err(error) => tracing::warn!("{}: {error}: changes are seen {otherwise}", dir.display()),
    }
}

/// Reading is an event too, and we read.
fn is_reading(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => false,
    }
}
