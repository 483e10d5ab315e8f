//! The API server as a source: a watch for each kind, and what they said as one [`Cluster`]. Nothing is told before each kind
//! that it needs was listed once; after that an API server that is gone changes nothing.
//!
//! [`Cluster`]: portcullis_policy::model::Cluster

mod client;
mod events;
mod object;
pub mod status;
mod store;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ::kube::{Api, Client};
use portcullis_policy::convert::printable;
use portcullis_policy::model::ObjectKey;
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

pub use ::kube::config::Config;
pub use client::{CONNECT, ClientError, Heard, SILENCE, client, config};
pub use object::{Decides, Kind, Version};
pub use status::HostPolicyState;
pub use store::{HostVersions, Said, Versions};
pub(crate) use watch::with_causes;

use events::Notice;
use object::Raw;
use status::Telling;
use store::Store;
use watch::{Outlets, Told, watch};

/// How long the watches must be quiet before what they said is told: what one command changes comes together.
const COALESCE: Duration = Duration::from_millis(5);
/// How long one change may wait for others.
const COALESCE_MOST: Duration = Duration::from_millis(50);
/// How long a policy stays in force after its object went, for its namespace may be terminating (S33).
const GRACE: Duration = Duration::from_millis(250);
/// How long the API server lets a watch last.
const WATCH_SECONDS: u32 = 290;
/// How long a streaming list may be silent before it is listed page by page.
const LIST_SILENCE: Duration = Duration::from_secs(20);
/// Objects of a page.
const PAGE: u32 = 500;
/// The first time to wait after an error.
const BACKOFF_FIRST: Duration = Duration::from_millis(400);
/// The longest.
const BACKOFF_MOST: Duration = Duration::from_secs(30);
/// Changes that wait to be taken in. Beyond them the watches stop reading.
const WAITING: usize = 4_096;
/// Changes that are taken in before anybody else's turn.
const TURN: usize = 4_096;

/// Times and sizes of the watches.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// How long a policy stays in force after its object went.
    pub grace: Duration,
    /// How long the API server lets a watch last.
    pub watch_seconds: u32,
    /// How long a streaming list may be silent.
    pub list_silence: Duration,
    /// Objects of a page.
    pub page: u32,
    /// The first time to wait after an error.
    pub backoff_first: Duration,
    /// The longest.
    pub backoff_most: Duration,
    /// How long an agent waits at most before it writes an Event.
    pub event_spread: Duration,
    /// Time between two writes of a policy's status.
    pub status_pause: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            grace: GRACE,
            watch_seconds: WATCH_SECONDS,
            list_silence: LIST_SILENCE,
            page: PAGE,
            backoff_first: BACKOFF_FIRST,
            backoff_most: BACKOFF_MOST,
            event_spread: events::SPREAD,
            status_pause: status::PAUSE,
        }
    }
}

/// Whether HostPolicies are watched: where the host firewall is off nobody needs to know them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostPolicies {
    /// Nobody asks for them.
    #[default]
    Ignored,
    /// They are, and what came of them here is written to their status.
    Watched,
}

impl HostPolicies {
    fn kinds(self) -> Vec<Kind> {
        let wanted = |kind: &Kind| match self {
            Self::Ignored => *kind != Kind::HostPolicy,
            Self::Watched => true,
        };
        Kind::ALL.into_iter().filter(wanted).collect()
    }
}

/// What the API server shows, asked at the moment.
#[derive(Clone)]
pub struct ServerView(Client);

impl std::fmt::Debug for ServerView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerView")
    }
}

impl ServerView {
    /// Which state of a policy there is; `None` if there is none.
    pub async fn policy(&self, key: &ObjectKey) -> Result<Option<Version>, ::kube::Error> {
        let api: Api<Raw> =
            Api::namespaced_with(self.0.clone(), &key.namespace, &Kind::NetworkPolicy.resource());
        Ok(api.get_opt(&key.name).await?.map(|raw| raw.version()))
    }
}

/// How a kind's watch does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchState {
    /// Of which kind.
    pub kind: Kind,
    /// True once a list of it was whole.
    pub listed: bool,
    /// When it last heard anything, in nanoseconds of the monotonic clock; `None`: never.
    pub heard: Option<u64>,
    /// What went wrong since.
    pub trouble: Option<String>,
    /// True while the server does not know the kind: there are no objects of it.
    pub absent: bool,
    /// What depends on it.
    pub decides: Decides,
    /// True if nothing is told before it was listed, and what is told is only as new as what was heard of it.
    pub needed: bool,
}

/// Follows the API server.
pub struct KubeSource {
    kinds: Vec<Kind>,
    store: Store,
    told: mpsc::Receiver<(Kind, Told)>,
    heard: Arc<Heard>,
    /// Of each kind the last error, and when it was.
    troubles: BTreeMap<Kind, (u64, String)>,
    /// Kinds that the server did not know when it was last asked, and when that was.
    absent: BTreeMap<Kind, u64>,
    /// When the first change that is not told yet was taken in, and when all of them are due.
    untold: Option<Untold>,
    /// When the first of what was told last was heard.
    noticed: Option<Instant>,
    /// When a policy that is leaving goes.
    next_leave: Option<Instant>,
    client: Client,
    node: String,
    /// What became of HostPolicies here, for who writes their status.
    states: latest::Sender<Telling>,
    notices: mpsc::Sender<Notice>,
    _watches: JoinSet<()>,
}

#[derive(Clone, Copy, Debug)]
struct Untold {
    first: Instant,
    due: Instant,
}

impl std::fmt::Debug for KubeSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeSource").field("watches", &self.watches()).finish_non_exhaustive()
    }
}

impl KubeSource {
    /// Starts to watch, within a runtime. The pods of unbound namespaces may send from any address, unless the
    /// Namespace says otherwise. Events on policies, and their status, are written in the name of `node`.
    pub fn start(
        config: Config,
        tuning: Tuning,
        unbound: BTreeSet<String>,
        node: String,
        host_policies: HostPolicies,
    ) -> Result<Self, ClientError> {
        let heard = Arc::new(Heard::default());
        Ok(Self::with(&client(config, &heard)?, heard, tuning, unbound, node, host_policies.kinds()))
    }

    fn with(
        client: &Client,
        heard: Arc<Heard>,
        tuning: Tuning,
        unbound: BTreeSet<String>,
        node: String,
        kinds: Vec<Kind>,
    ) -> Self {
        let (tell, told) = mpsc::channel(WAITING);
        let unbound = Arc::new(unbound);
        let store = Store::new(tuning.grace, kinds.clone());
        let mut watches = JoinSet::new();
        let (notices, noted) = mpsc::channel(events::WAITING);
        watches.spawn(events::tell(client.clone(), node.clone(), noted, tuning.event_spread));
        let (states, to_write) = latest::channel(Telling::default());
        if kinds.contains(&Kind::HostPolicy) {
            watches.spawn(status::write(client.clone(), node.clone(), to_write, tuning));
        }
        for kind in kinds.iter().copied() {
            let outlets = Outlets { told: tell.clone(), notices: notices.clone() };
            watches.spawn(watch(kind, client.clone(), tuning, Arc::clone(&unbound), outlets));
        }
        Self {
            kinds,
            store,
            told,
            heard,
            troubles: BTreeMap::new(),
            absent: BTreeMap::new(),
            untold: None,
            noticed: None,
            next_leave: None,
            client: client.clone(),
            node,
            states,
            notices,
            _watches: watches,
        }
    }

    /// Returns when there is something new to read: changes that belong together at once. Can be dropped and called
    /// again.
    pub async fn changed(&mut self) {
        loop {
            let now = Instant::now();
            if let Some(untold) = self.untold.filter(|untold| untold.due <= now) {
                self.untold = None;
                self.noticed = Some(untold.first);
                return;
            }
            let due = self.untold.map(|untold| untold.due);
            let next = due.into_iter().chain(self.next_leave).min();
            let sleep = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = self.told.recv() => {
                    // The watches never end while somebody listens.
                    let Some((kind, told)) = told else { return std::future::pending().await };
                    let mut new = self.take(kind, told);
                    for _ in 0..TURN {
                        let Ok((kind, told)) = self.told.try_recv() else { break };
                        new |= self.take(kind, told);
                    }
                    self.settle(new);
                }
                () = sleep => self.settle(false),
            }
        }
    }

    /// What the API server says; `None` before each kind was listed that is needed.
    #[must_use]
    pub fn read(&self) -> Option<Said> {
        self.store.said()
    }

    /// When the first of what [`KubeSource::changed`] returned for was heard.
    pub const fn noticed(&mut self) -> Option<Instant> {
        self.noticed.take()
    }

    /// Asks the API server by itself.
    #[must_use]
    pub fn view(&self) -> ServerView {
        ServerView(self.client.clone())
    }

    /// Says what became of each HostPolicy on this node: it is written to its status by and by, and one that was rolled back
    /// has an Event. Never waits. The same again costs nothing.
    pub fn tell_status(&mut self, states: Vec<HostPolicyState>) {
        let before = self.states.borrow().states.clone();
        for new in &states {
            let Some(lost) = &new.rolled_back else { continue };
            let same = |one: &HostPolicyState| one.name == new.name && one.version.uid == new.version.uid;
            if before.iter().any(|one| same(one) && one.rolled_back.is_some()) {
                continue;
            }
            let notice = Notice::rolled_back(&new.name, &new.version, &self.node, lost);
            // Without a place nobody is told by an Event; the status tells in any case.
            let _ = self.notices.try_send(notice);
        }
        let telling = Telling::new(states, self.store.nodes());
        self.states.send_if_modified(|held| {
            let changed = *held != telling;
            *held = telling;
            changed
        });
    }

    /// How the watches do.
    #[must_use]
    pub fn watches(&self) -> Vec<WatchState> {
        let missing = self.store.missing();
        let state = |kind| {
            let heard = self.heard.of(kind);
            let trouble = self.troubles.get(&kind).filter(|(at, _)| heard.is_none_or(|heard| heard < *at));
            let absent = self.absent.get(&kind).copied().filter(|at| heard.is_none_or(|heard| heard < *at));
            WatchState {
                kind,
                listed: !missing.contains(&kind),
                // That there is no such kind was heard, too.
                heard: absent.or(heard),
                trouble: trouble.filter(|_| absent.is_none()).map(|(_, text)| text.clone()),
                absent: absent.is_some(),
                decides: kind.decides(self.store.host_policies()),
                needed: self.store.needs(kind),
            }
        };
        self.kinds.iter().copied().map(state).collect()
    }

    /// Takes in what a watch told. Returns whether it is worth telling.
    fn take(&mut self, kind: Kind, told: Told) -> bool {
        match told {
            Told::Change(change) => self.store.apply(kind, change, Instant::now().into_std()),
            Told::Trouble(at, text) => {
                tracing::debug!("watching {}: {text}", kind.plural());
                self.troubles.insert(kind, (at, printable(&text)));
                true
            }
            Told::Forbidden(at, text) => {
                self.store.forbid(kind);
                self.take(kind, Told::Trouble(at, text))
            }
            Told::Absent(at) => {
                let is_new = self.absent.insert(kind, at).is_none();
                self.store.absent(kind, Instant::now().into_std()) || is_new
            }
        }
    }

    fn settle(&mut self, new: bool) {
        let now = Instant::now();
        let (next, went) = self.store.settle(now.into_std());
        self.next_leave = next.map(Instant::from_std);
        if new || went {
            let first = self.untold.map_or(now, |untold| untold.first);
            self.untold = Some(Untold { first, due: (now + COALESCE).min(first + COALESCE_MOST) });
        }
    }
}
