//! A small API server for tests, over plain HTTP on loopback: lists in pages, watches, bookmarks and streaming lists of
//! the kinds that the agent watches, and on command what goes wrong with them. It keeps its whole history, so that a
//! list can go on where its first page was. Judges nothing and validates nothing.

mod answer;
pub mod schedule;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portcullis_agent::source::kube::Kind;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Namespace and name; cluster-scoped objects have no namespace.
pub type Name = (String, String);

/// What a watch connection of a kind is made to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ends in good order.
    End,
    /// Breaks off in the middle of a line.
    Tear,
    /// Sends its last line again.
    Repeat,
    /// Says that the state that it goes on from is gone.
    Gone,
    /// Sends a line that is no JSON.
    Garble,
    /// Never says anything again, and stays open.
    Deaf,
    /// Sends a bookmark.
    Bookmark,
}

/// How streaming lists are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streaming {
    /// As since 1.32.
    #[default]
    Known,
    /// With 422, as where the feature is off.
    Refused,
    /// As an ordinary watch, as before 1.27.
    Unheard,
}

/// A change, as the log keeps it.
#[derive(Clone, Debug)]
struct Logged {
    version: u64,
    kind: Kind,
    name: Name,
    /// `None`: deleted.
    object: Option<Value>,
    /// What a watch says of it.
    line: String,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    log: Vec<Logged>,
    /// Versions up to this one cannot be gone on from.
    compacted: u64,
    /// Kinds whose watches wait, and for which version.
    held: BTreeMap<Kind, u64>,
    faults: Vec<(Kind, Fault)>,
    /// Answers to the next requests of a kind, in place of the true ones.
    refusals: BTreeMap<Kind, VecDeque<u16>>,
    /// How many objects the next lists of a kind show before they break off.
    torn_lists: BTreeMap<Kind, VecDeque<usize>>,
    streaming: Streaming,
    /// Requests that were answered, by what they asked.
    asked: BTreeMap<&'static str, usize>,
    events: Vec<Value>,
    /// Under which manager's name what was applied to status.
    applied: Vec<(String, Value)>,
    /// Answers to the next of these requests, in place of the true ones.
    status_refusals: VecDeque<u16>,
}

impl State {
    /// The objects of a kind as they were.
    fn at(&self, kind: Kind, version: u64) -> BTreeMap<Name, Value> {
        let mut objects = BTreeMap::new();
        for logged in self.log.iter().filter(|logged| logged.kind == kind && logged.version <= version) {
            match &logged.object {
                Some(object) => objects.insert(logged.name.clone(), object.clone()),
                None => objects.remove(&logged.name),
            };
        }
        objects
    }

    fn put(&mut self, kind: Kind, mut object: Value) {
        let name = name_of(&object);
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let known = self.at(kind, self.version).contains_key(&name);
        let line = line(if known { "MODIFIED" } else { "ADDED" }, &object);
        self.log.push(Logged { version: self.version, kind, name, object: Some(object), line });
    }
}

/// The server. It ends when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    bell: watch::Sender<u64>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// What connections share with it.
#[derive(Clone, Debug)]
struct Shared {
    state: Arc<Mutex<State>>,
    bell: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiServer {
    /// Starts one on a free port of loopback.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let (bell, _) = watch::channel(0);
        let state = Arc::new(Mutex::new(State { version: 100, ..State::default() }));
        let shared = Shared { state: Arc::clone(&state), bell: bell.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer::answer(shared.clone(), request));
                    // A client that goes in the middle is none of our business.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { state, bell, address, _tasks: tasks }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates or changes an object.
    pub fn put(&self, kind: Kind, object: Value) {
        self.change(|state| state.put(kind, object));
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, kind: Kind, name: &Name) {
        self.change(|state| {
            let Some(mut object) = state.at(kind, state.version).remove(name) else { return };
            state.version += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let line = line("DELETED", &object);
            state.log.push(Logged { version: state.version, kind, name: name.clone(), object: None, line });
        });
    }

    /// All objects of a kind.
    #[must_use]
    pub fn objects(&self, kind: Kind) -> BTreeMap<Name, Value> {
        let state = self.lock();
        state.at(kind, state.version)
    }

    /// The watches of a kind say nothing new from here on.
    pub fn hold(&self, kind: Kind) {
        self.change(|state| {
            let version = state.version;
            state.held.entry(kind).or_insert(version);
        });
    }

    /// They go on.
    pub fn release(&self, kind: Kind) {
        self.change(|state| state.held.remove(&kind));
    }

    /// What was before now can no longer be gone on from, nor listed.
    pub fn compact(&self) {
        self.change(|state| state.compacted = state.version);
    }

    /// The connections that watch a kind now do this.
    pub fn fault(&self, kind: Kind, fault: Fault) {
        self.change(|state| state.faults.push((kind, fault)));
    }

    /// The next request of a kind is answered with this status.
    pub fn refuse(&self, kind: Kind, status: u16) {
        self.change(|state| state.refusals.entry(kind).or_default().push_back(status));
    }

    /// The next write of a status is answered with this status.
    pub fn refuse_status(&self, status: u16) {
        self.change(|state| state.status_refusals.push_back(status));
    }

    /// The next list of a kind breaks off after so many objects.
    pub fn tear_list(&self, kind: Kind, after: usize) {
        self.change(|state| state.torn_lists.entry(kind).or_default().push_back(after));
    }

    /// How streaming lists are answered from here on.
    pub fn streaming(&self, streaming: Streaming) {
        self.change(|state| state.streaming = streaming);
    }

    /// Nothing goes wrong from here on.
    pub fn heal(&self) {
        self.change(|state| {
            state.held.clear();
            state.refusals.clear();
            state.status_refusals.clear();
            state.torn_lists.clear();
        });
    }

    /// How often each kind of request came: `list`, `page`, `watch`, `stream`.
    #[must_use]
    pub fn asked(&self) -> BTreeMap<&'static str, usize> {
        self.lock().asked.clone()
    }

    /// The Events that were written.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.lock().events.clone()
    }

    /// What was applied to the status of objects, each with its field manager.
    #[must_use]
    pub fn applied(&self) -> Vec<(String, Value)> {
        self.lock().applied.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.bell.send_modify(|count| *count += 1);
        result
    }
}

/// Namespace and name of an object.
#[must_use]
pub fn name_of(object: &Value) -> Name {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn line(what: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": what, "object": object}))
}
