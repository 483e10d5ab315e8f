//! Requests and their answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;

use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Collected, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Request, Response};
use portcullis_agent::source::kube::Kind;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Fault, Shared, State, Streaming, line};

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Lines = mpsc::Sender<io::Result<Frame<Bytes>>>;

/// Lines that wait for a client.
const WAITING: usize = 64;

/// What has to be asked of EndpointSlices, as a query spells it.
const OTHERS_SLICES: &str = "endpointslice.kubernetes.io%2Fmanaged-by%21%3Dendpointslice-controller.k8s.io";

pub(super) async fn answer(shared: Shared, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if path.ends_with("/events") && request.method() == Method::POST {
        let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
        let event: Value = serde_json::from_slice(&body).unwrap_or_default();
        shared.lock().events.push(event.clone());
        return Ok(whole(201, &event));
    }
    let query = query(request.uri().query().unwrap_or_default());
    if request.method() == Method::PATCH {
        let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
        return Ok(apply(&shared, &path, &query, &serde_json::from_slice(&body).unwrap_or_default()));
    }
    let mut parts = path.rsplit('/');
    let last = parts.next().unwrap_or_default();
    let of = |plural: &str| Kind::ALL.into_iter().find(|kind| kind.plural() == plural);
    let Some(kind) = of(last) else {
        return Ok(one(&shared, parts.next().and_then(of), &path));
    };
    // Everything else would be the slices of every Service of the cluster, to every agent.
    let narrows = |query: &BTreeMap<String, String>| {
        query.get("labelSelector").is_some_and(|text| text == OTHERS_SLICES)
    };
    if kind == Kind::EndpointSlice && !narrows(&query) {
        return Ok(status(400, "BadRequest", "asked for all EndpointSlices"));
    }
    let refusal = shared.lock().refusals.get_mut(&kind).and_then(std::collections::VecDeque::pop_front);
    if let Some(code) = refusal {
        return Ok(status(code, "Refused", "told to refuse"));
    }
    let has = |name: &str, value: &str| query.get(name).is_some_and(|found| found == value);
    if !has("watch", "true") {
        return Ok(list(&shared, kind, &query));
    }
    let streaming = shared.lock().streaming;
    let wants_stream = has("sendInitialEvents", "true");
    let mut from = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut first = None;
    {
        let mut state = shared.lock();
        match (wants_stream, streaming) {
            (true, Streaming::Refused) => {
                return Ok(status(422, "Invalid", "sendInitialEvents is forbidden"));
            }
            (true, Streaming::Known) => {
                assert!(
                    from == 0 && !query.contains_key("resourceVersion"),
                    "a list of any state: {query:?}"
                );
                *state.asked.entry("stream").or_default() += 1;
                from = visible(&state, kind);
                first = Some(Initial { objects: state.at(kind, from), says_end: true, torn: None });
            }
            (true, Streaming::Unheard) => {
                from = visible(&state, kind);
                first = Some(Initial { objects: state.at(kind, from), says_end: false, torn: None });
            }
            (false, _) => *state.asked.entry("watch").or_default() += 1,
        }
    }
    let (send, receive) = mpsc::channel(WAITING);
    if let Some(first) = &mut first {
        first.torn = torn(&shared, kind);
    }
    tokio::spawn(follow(shared, kind, from, first, send));
    let lines =
        stream::unfold(receive, |mut receive| async { receive.recv().await.map(|line| (line, receive)) });
    Ok(Response::new(StreamBody::new(lines).boxed_unsync()))
}

/// An object by its path.
fn one(shared: &Shared, kind: Option<Kind>, path: &str) -> Response<Body> {
    let mut parts = path.rsplit('/');
    let name = parts.next().unwrap_or_default().to_owned();
    let namespace = match kind {
        Some(kind) if !kind.is_namespaced() => String::new(),
        Some(_) | None => parts.nth(1).unwrap_or_default().to_owned(),
    };
    let state = shared.lock();
    let found = kind.and_then(|kind| state.at(kind, state.version).remove(&(namespace, name)));
    match found {
        Some(object) => whole(200, &object),
        None => status(404, "NotFound", path),
    }
}

/// A server-side apply to the status of an object: what stands below `status.nodes` takes the place of what stood there under
/// the same name.
fn apply(shared: &Shared, path: &str, query: &BTreeMap<String, String>, body: &Value) -> Response<Body> {
    let mut parts = path.rsplit('/');
    let (Some("status"), Some(name), Some(plural)) = (parts.next(), parts.next(), parts.next()) else {
        return status(405, "MethodNotAllowed", path);
    };
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.plural() == plural) else {
        return status(404, "NotFound", path);
    };
    let name = (String::new(), name.to_owned());
    let mut state = shared.lock();
    if let Some(code) = state.status_refusals.pop_front() {
        return status(code, "Refused", "told to refuse");
    }
    let version = state.version;
    let Some(mut object) = state.at(kind, version).remove(&name) else {
        return status(404, "NotFound", path);
    };
    if body["metadata"]["uid"].as_str().is_some_and(|uid| object["metadata"]["uid"] != uid) {
        return status(409, "Conflict", "another uid");
    }
    let manager = query.get("fieldManager").cloned().unwrap_or_default();
    state.applied.push((manager, body.clone()));
    for (node, entry) in body["status"]["nodes"].as_object().into_iter().flatten() {
        object["status"]["nodes"][node] = entry.clone();
    }
    state.put(kind, object.clone());
    drop(state);
    shared.bell.send_modify(|count| *count += 1);
    whole(200, &object)
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The newest state that watches of a kind may show.
fn visible(state: &State, kind: Kind) -> u64 {
    state.held.get(&kind).copied().unwrap_or(state.version)
}

fn torn(shared: &Shared, kind: Kind) -> Option<usize> {
    shared.lock().torn_lists.get_mut(&kind).and_then(std::collections::VecDeque::pop_front)
}

/// A page. Its `continue` is the version of the first page and how many objects were shown.
fn list(shared: &Shared, kind: Kind, query: &BTreeMap<String, String>) -> Response<Body> {
    let torn = torn(shared, kind);
    let mut state = shared.lock();
    let place = query.get("continue").and_then(|text| text.split_once('-'));
    let place = place.and_then(|(version, shown)| Some((version.parse().ok()?, shown.parse().ok()?)));
    let (version, shown): (u64, usize) = place.unwrap_or((visible(&state, kind), 0));
    *state.asked.entry(if shown == 0 { "list" } else { "page" }).or_default() += 1;
    if shown > 0 && version < state.compacted {
        return status(410, "Expired", "the list has expired");
    }
    let limit = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    let all = state.at(kind, version);
    let items: Vec<&Value> = all.values().skip(shown).take(limit).collect();
    let more = if shown + items.len() < all.len() {
        json!(format!("{version}-{}", shown + items.len()))
    } else {
        json!("")
    };
    let answer = json!({
        "kind": format!("{}List", kind.name()), "apiVersion": "v1",
        "metadata": {"resourceVersion": version.to_string(), "continue": more},
        "items": items,
    });
    if torn.is_some() {
        let text = answer.to_string();
        let half = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
        let pieces = [Ok(Frame::data(half)), Err(io::ErrorKind::ConnectionReset.into())];
        return Response::new(StreamBody::new(stream::iter(pieces)).boxed_unsync());
    }
    whole(200, &answer)
}

/// What a watch begins with.
struct Initial {
    objects: BTreeMap<super::Name, Value>,
    /// True if it says where the list ends.
    says_end: bool,
    /// After how many objects it breaks off.
    torn: Option<usize>,
}

/// A watch, after a streaming list where there is one.
async fn follow(shared: Shared, kind: Kind, from: u64, first: Option<Initial>, lines: Lines) {
    let mut bell = shared.bell.subscribe();
    let mut told = shared.lock().faults.len();
    let mut sent = from;
    let mut last = None;
    if let Some(Initial { objects, says_end, torn }) = first {
        for (number, object) in objects.values().enumerate() {
            if torn == Some(number) {
                return tear(&lines, &line("ADDED", object)).await;
            }
            let text = line("ADDED", object);
            if send(&lines, &text).await.is_none() {
                return;
            }
            last = Some(text);
        }
        if torn.is_some() {
            return;
        }
        let end = bookmark(kind, from, &json!({"k8s.io/initial-events-end": "true"}));
        if says_end && send(&lines, &end).await.is_none() {
            return;
        }
    } else if from < shared.lock().compacted {
        let _ = send(&lines, &expired()).await;
        return;
    }
    loop {
        bell.borrow_and_update();
        let (new, faults) = {
            let state = shared.lock();
            let newest = visible(&state, kind);
            let new: Vec<(u64, String)> = state
                .log
                .iter()
                .filter(|logged| logged.kind == kind && logged.version > sent && logged.version <= newest)
                .map(|logged| (logged.version, logged.line.clone()))
                .collect();
            let faults: Vec<Fault> = state
                .faults
                .iter()
                .skip(told)
                .filter(|(of, _)| *of == kind)
                .map(|(_, fault)| *fault)
                .collect();
            told = state.faults.len();
            (new, faults)
        };
        for (version, text) in new {
            if send(&lines, &text).await.is_none() {
                return;
            }
            sent = version;
            last = Some(text);
        }
        for fault in faults {
            let spoken = match fault {
                Fault::End => return,
                Fault::Tear => {
                    return tear(&lines, last.as_deref().unwrap_or("{\"type\":\"ADDED\"}\n")).await;
                }
                Fault::Repeat => last.clone(),
                Fault::Gone => {
                    let _ = send(&lines, &expired()).await;
                    return;
                }
                Fault::Garble => Some("{\"type\": nonsense}\n".to_owned()),
                Fault::Deaf => return lines.closed().await,
                Fault::Bookmark => Some(bookmark(kind, sent.max(1), &json!({}))),
            };
            if let Some(text) = spoken
                && send(&lines, &text).await.is_none()
            {
                return;
            }
        }
        tokio::select! {
            changed = bell.changed() => if changed.is_err() { return },
            () = lines.closed() => return,
        }
    }
}

async fn send(lines: &Lines, text: &str) -> Option<()> {
    lines.send(Ok(Frame::data(Bytes::copy_from_slice(text.as_bytes())))).await.ok()
}

async fn tear(lines: &Lines, text: &str) {
    let _ = send(lines, &text[..text.len() / 2]).await;
    let _ = lines.send(Err(io::ErrorKind::ConnectionReset.into())).await;
}

fn bookmark(kind: Kind, version: u64, annotations: &Value) -> String {
    let object = json!({
        "kind": kind.name(), "apiVersion": "v1",
        "metadata": {"resourceVersion": version.to_string(), "annotations": annotations},
    });
    line("BOOKMARK", &object)
}

fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

fn expired() -> String {
    line("ERROR", &failure(410, "Expired", "too old resource version"))
}

fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    whole(code, &failure(code, reason, message))
}

fn whole(code: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = hyper::StatusCode::from_u16(code).expect("a status");
    response
}
