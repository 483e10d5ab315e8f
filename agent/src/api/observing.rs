//! One observer: what fell before it came, then what falls, folded, named and filtered for it. One that reads too
//! slowly loses verdicts and is told how many.

use std::io;
use std::time::Duration;

use portcullis_policy::desired::ip_addr;
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::{MissedTickBehavior, interval};

use super::observed::Context;
use super::server::{line_of, send, write};
use super::{Backend, ObserveRequest, Observed, ObservedVerdict, Observing, Told};
use crate::clock::{monotonic, wall_time};
use crate::observe::filter::Full;
use crate::observe::fold::{Folded, Folder, Line};
use crate::observe::{Numbered, Recorder, Watch};

/// How often it is looked what fell, and which lines have waited long enough. An observer that waited for each verdict
/// would be woken by each, and a flood would be all waking.
const LOOK: Duration = Duration::from_millis(20);

/// Verdicts that are taken at a time.
const BATCH: usize = 1_024;

/// Serves an observer until there is no more or it goes.
pub(super) async fn observe(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    backend: &(dyn Backend + Send + Sync),
    request: &ObserveRequest,
) -> io::Result<()> {
    let recorder = backend.recorder();
    let node = backend.node();
    let Watch { history, next, mut receiver } = recorder.watch();
    send(&mut writer, &Observing { observing: node.clone() }).await?;
    let shows = Shows { recorder, node: node.as_deref(), request };
    let kept = tokio::task::block_in_place(|| shows.kept(&history));
    shows.send(&mut writer, kept).await?;
    drop(history);
    if !request.follow {
        return send(&mut writer, &Told::End { end: true }).await;
    }
    let mut folder = Folder::new(request.folding, next);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            read = reader.read(&mut ignored) => if read? == 0 { return Ok(()) },
            _ = look.tick() => {}
        }
        let mut left = Left::More;
        while left == Left::More {
            left = take(&mut receiver, &mut folder);
            let due = folder.due(monotonic());
            shows.send(&mut writer, due.iter().filter_map(|folded| shows.shown(folded)).collect()).await?;
        }
        if left == Left::Closed {
            return Ok(());
        }
    }
}

/// What is left to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    More,
    Nothing,
    Closed,
}

/// Takes what is there, up to a bound.
fn take(receiver: &mut Receiver<Numbered>, folder: &mut Folder) -> Left {
    let now = monotonic();
    for _ in 0..BATCH {
        match receiver.try_recv() {
            Ok(numbered) => folder.take(&numbered, now),
            // The numbers tell how many.
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty) => return Left::Nothing,
            Err(TryRecvError::Closed) => return Left::Closed,
        }
    }
    Left::More
}

/// How an observer is shown verdicts.
struct Shows<'a> {
    recorder: &'a Recorder,
    node: Option<&'a str>,
    request: &'a ObserveRequest,
}

impl Shows<'_> {
    /// The last lines of what was kept, with the losses among them. Where fewer are left than were asked for, also
    /// how many verdicts are too long ago.
    fn kept(&self, history: &[Numbered]) -> Vec<Observed> {
        if self.request.last == 0 {
            return Vec::new();
        }
        // From 0 on: what is not kept any more is a gap before the oldest.
        let mut folder = Folder::new(self.request.folding, 0);
        let mut shown = Vec::new();
        for numbered in history {
            // Events are in order, so a line that is past its window has no more repeats.
            folder.take(numbered, numbered.time().unwrap_or(0));
            let due = numbered.time().map(|now| folder.due(now)).unwrap_or_default();
            shown.extend(due.iter().filter_map(|folded| self.shown(folded)));
        }
        shown.extend(folder.rest().iter().filter_map(|folded| self.shown(folded)));
        let lines = |observed: &Observed| match observed {
            Observed::Verdict(_) => 1,
            Observed::Lost { .. } => 0,
        };
        let mut wanted = self.request.last;
        let mut start = shown.len();
        while start > 0 && wanted > 0 {
            start -= 1;
            wanted -= shown.get(start).map_or(0, lines);
        }
        shown.split_off(start)
    }

    /// As it is shown, if it is wanted.
    fn shown(&self, folded: &Folded) -> Option<Observed> {
        let line = match folded {
            Folded::Lost(lost) => return Some(Observed::Lost { lost: *lost }),
            Folded::Line(line) => line,
        };
        self.verdict(line)
    }

    fn verdict(&self, line: &Line) -> Option<Observed> {
        let event = &line.first;
        let names = &self.recorder.names;
        let pod = names.slot(event.slot, event.time);
        let peer = names.address(ip_addr(&event.remote), event.time);
        let decided_by = names.counter(event.counter, event.time);
        let service = names.service((ip_addr(&event.via), event.protocol, event.via_port), event.time);
        let time = wall_time(event.time);
        let context = Context {
            time,
            last_time: time + Duration::from_nanos(line.last_time.saturating_sub(event.time)),
            pod: pod.as_deref().map(|pod| &pod.key),
            peer: peer.as_deref().map(|peer| &peer.key),
            decided_by: decided_by.as_deref(),
            node: self.node,
            service: service.as_deref(),
        };
        // A reason that this version does not know cannot be shown, and is not hidden either.
        let Some(verdict) = ObservedVerdict::new(line, context) else {
            return Some(Observed::Lost { lost: line.count });
        };
        let full = Full { verdict: &verdict, pod: pod.as_deref(), peer: peer.as_deref() };
        if self.request.filter.wants(&full) { Some(Observed::Verdict(Box::new(verdict))) } else { None }
    }

    /// In one write: a flood is not a call for each line.
    async fn send(&self, writer: &mut OwnedWriteHalf, lines: Vec<Observed>) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for observed in lines {
            text.extend(line_of(&Told::Observed(observed))?);
        }
        write(writer, &text).await
    }
}
