//! One kind's watch: from the watcher's events to [`Change`]s, with its faults survived. Knows nothing of other
//! kinds; order between kinds is the store's.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event, InitialListStrategy, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::Tuning;
use super::events::Notice;
use super::object::{Kind, Raw};
use super::store::Change;
use crate::clock::monotonic;

/// Errors that the server itself answered, one after another, until everything is listed anew: it may not have, and
/// never get, the state that the watch wants to go on from.
const PATIENCE: u32 = 5;
/// HTTP 400 and 422: what a server says that knows no streaming lists.
const REFUSED: [u16; 2] = [400, 422];
/// What it says that does not know the kind.
const NOT_FOUND: u16 = 404;
/// What it says that gives no right to the kind.
const FORBIDDEN: u16 = 403;
/// How often in a row it says so before that is believed: one that has just started may not know the rights yet.
const BELIEVED: u32 = 3;

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Told {
    /// News of its kind.
    Change(Change),
    /// It failed at this moment of the monotonic clock, and tries again.
    Trouble(u64, String),
    /// The same, for it gives no right to the kind.
    Forbidden(u64, String),
    /// The server did not know the kind at this moment of the monotonic clock, and is asked again.
    Absent(u64),
}

/// Where it tells.
#[derive(Debug)]
pub(super) struct Outlets {
    /// Everything.
    pub(super) told: mpsc::Sender<(Kind, Told)>,
    /// Policies that cannot be read.
    pub(super) notices: mpsc::Sender<Notice>,
}

impl Outlets {
    /// `None` when nobody listens any more.
    async fn tell(&self, kind: Kind, told: Told) -> Option<()> {
        if let Told::Change(Change::Put(seen) | Change::Listed(seen)) = &told
            && matches!(kind, Kind::NetworkPolicy | Kind::HostPolicy)
            && let Some(notice) = Notice::not_understood(kind, seen)
        {
            // Without a place nobody is told by an Event; `status` tells in any case.
            let _ = self.notices.try_send(notice);
        }
        self.told.send((kind, told)).await.ok()
    }
}

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// The watcher goes on.
    GoOn,
    /// The same, and nothing is wrong.
    Reopen,
    /// The server knows no streaming lists.
    ListPages,
    /// Something was lost.
    ListAnew,
    /// Only if it comes again and again.
    ListAnewInTime,
}

/// How long to wait after errors.
#[derive(Debug)]
struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    const fn reset(&mut self) {
        self.next = self.first;
    }

    /// Between half and all of the time that is due, so that the agents of a cluster do not come at once.
    async fn wait(&mut self) {
        let due = self.next;
        self.next = due.saturating_mul(2).min(self.most);
        let share = u32::try_from(RandomState::new().hash_one(()) % 1_000).unwrap_or(0);
        sleep(due / 2 + due / 2 * share / 1_000).await;
    }
}

/// What is kept from one list to the next.
#[derive(Debug)]
struct Course {
    strategy: InitialListStrategy,
    backoff: Backoff,
    /// True since the server listed the kind.
    is_known: bool,
    /// Times in a row that it did not know it.
    not_found: u32,
    /// Times in a row that it gave no right to it.
    forbidden: u32,
}

impl Course {
    /// The server does not know the kind. True if that can be believed: one that has just started may not know yet what it
    /// was told of before.
    const fn not_found(&mut self) -> bool {
        self.not_found += 1;
        if self.is_known && self.not_found < PATIENCE {
            return false;
        }
        self.is_known = false;
        true
    }

    /// True if the server gives no right to the kind, and has said so often enough.
    fn forbidden(&mut self, error: &watcher::Error) -> bool {
        self.forbidden = if answered(error, FORBIDDEN) { self.forbidden + 1 } else { 0 };
        self.forbidden >= BELIEVED
    }
}

/// Watches a kind until nobody listens any more.
pub(super) async fn watch(
    kind: Kind,
    client: Client,
    tuning: Tuning,
    unbound: Arc<BTreeSet<String>>,
    out: Outlets,
) {
    let api: Api<Raw> = Api::all_with(client, &kind.resource());
    let mut course = Course {
        strategy: InitialListStrategy::StreamingList,
        backoff: Backoff::new(tuning.backoff_first, tuning.backoff_most),
        is_known: false,
        not_found: 0,
        forbidden: 0,
    };
    while follow(kind, &api, &tuning, &unbound, &out, &mut course).await.is_some() {}
}

/// Lists and watches until everything has to be listed anew; `None` when nobody listens any more.
async fn follow(
    kind: Kind,
    api: &Api<Raw>,
    tuning: &Tuning,
    unbound: &BTreeSet<String>,
    out: &Outlets,
    course: &mut Course,
) -> Option<()> {
    let config = watcher::Config {
        initial_list_strategy: course.strategy.clone(),
        timeout: Some(tuning.watch_seconds),
        page_size: Some(tuning.page),
        label_selector: kind.label_selector(),
        ..watcher::Config::default()
    };
    let mut events = pin!(watcher(api.clone(), config));
    let mut listed = false;
    let mut errors = 0;
    loop {
        let event = if listed || course.strategy == InitialListStrategy::ListWatch {
            events.next().await
        } else if let Ok(event) = timeout(tuning.list_silence, events.next()).await {
            event
        } else {
            // Servers older than streaming lists take the question for an ordinary watch, and never say where the list
            // ends.
            let silent = tuning.list_silence.as_secs();
            let text = format!("the streaming list was silent for {silent} s: it is listed page by page");
            course.strategy = InitialListStrategy::ListWatch;
            out.tell(kind, Told::Trouble(monotonic(), text)).await?;
            return Some(());
        };
        match event? {
            Ok(event) => {
                // That a list begins is said before it is asked for.
                if !matches!(event, Event::Init) {
                    (errors, course.not_found, course.forbidden, course.is_known) = (0, 0, 0, true);
                    course.backoff.reset();
                }
                listed = match &event {
                    Event::Init | Event::InitApply(_) => false,
                    Event::InitDone | Event::Apply(_) | Event::Delete(_) => true,
                };
                out.tell(kind, Told::Change(change(kind, event, unbound))).await?;
            }
            Err(error) => {
                let remedy = remedy(&error, &course.strategy);
                if remedy == Remedy::Reopen {
                    continue;
                }
                if kind.is_custom() && answered(&error, NOT_FOUND) && course.not_found() {
                    out.tell(kind, Told::Absent(monotonic())).await?;
                    course.backoff.wait().await;
                    return Some(());
                }
                errors += 1;
                let (at, text) = (monotonic(), with_causes(&error));
                let told = if course.forbidden(&error) {
                    Told::Forbidden(at, text)
                } else {
                    Told::Trouble(at, text)
                };
                out.tell(kind, told).await?;
                if remedy == Remedy::ListPages {
                    course.strategy = InitialListStrategy::ListWatch;
                    return Some(());
                }
                course.backoff.wait().await;
                match remedy {
                    Remedy::ListPages | Remedy::ListAnew => return Some(()),
                    Remedy::ListAnewInTime if errors >= PATIENCE => return Some(()),
                    Remedy::ListAnewInTime | Remedy::GoOn | Remedy::Reopen => {}
                }
            }
        }
    }
}

fn change(kind: Kind, event: Event<Raw>, unbound: &BTreeSet<String>) -> Change {
    match event {
        Event::Init => Change::Begin,
        Event::InitApply(raw) => Change::Listed(Box::new(raw.read(kind, unbound))),
        Event::InitDone => Change::Complete,
        Event::Apply(raw) => Change::Put(Box::new(raw.read(kind, unbound))),
        Event::Delete(raw) => Change::Gone(raw.key(kind), raw.version()),
    }
}

fn remedy(error: &watcher::Error, strategy: &InitialListStrategy) -> Remedy {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            if REFUSED.contains(&status.code) && *strategy == InitialListStrategy::StreamingList {
                Remedy::ListPages
            } else {
                Remedy::ListAnewInTime
            }
        }
        // Where nothing changes nothing comes: a server sends bookmarks only to a watch that is behind the kind's version
        // (`cacheWatcher.process` in k8s.io/apiserver v0.36). If it is gone, opening the next watch tells.
        watcher::Error::WatchFailed(error) if is_silence(error) => Remedy::Reopen,
        // An event that could not be read is lost, and may have been a policy.
        watcher::Error::WatchFailed(kube::Error::SerdeError(_)) => Remedy::ListAnew,
        // The watcher lists anew by itself after 410, and opens another connection after the others.
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::NoResourceVersion => Remedy::GoOn,
    }
}

/// True where the server answered so when it was asked for the kind.
fn answered(error: &watcher::Error, code: u16) -> bool {
    let (watcher::Error::WatchStartFailed(cause) | watcher::Error::InitialListFailed(cause)) = error else {
        return false;
    };
    matches!(cause, kube::Error::Api(status) if status.code == code)
}

/// True where a connection was silent for longer than it may be.
fn is_silence(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(next) = cause {
        cause = match next.downcast_ref::<io::Error>() {
            Some(error) if error.kind() == io::ErrorKind::TimedOut => return true,
            // Its source is that of the error which it holds.
            Some(error) => error.get_ref().map(|held| held as &(dyn StdError + 'static)),
            None => next.source(),
        };
    }
    false
}

/// An error and what caused it, on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}
