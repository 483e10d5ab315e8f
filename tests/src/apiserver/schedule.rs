//! Random histories of objects, told by an API server at which everything goes wrong, all from one seed. Whatever
//! happened on the way, what the source says in the end is what the manifest reader makes of the final objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write as _};
use std::time::Duration;

use portcullis_agent::source::kube::{Config, HostPolicies, Kind, KubeSource, Tuning};
use portcullis_oracle::generate;
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::manifest::{self, ManifestObject, Options, ParsedFile};
use portcullis_policy::model::{AddressesFrom, Cluster, ObjectKey};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{ApiServer, Fault, Name, Streaming, name_of};

/// How long the end may take, once nothing goes wrong any more, before the schedule counts as failed.
const HANGS: Duration = Duration::from_mins(2);
/// How long an open connection may be silent here.
const SILENCE: Duration = Duration::from_secs(2);

/// Plays the schedule of a seed.
///
/// # Errors
///
/// What differs from what the objects say.
pub async fn play(seed: u64) -> Result<(), String> {
    let mut rng = SplitMix64::new(seed);
    let server = ApiServer::start().await;
    let pool = pool(&mut rng);
    // These are there from the beginning and never touched: no list, however broken, may lose them.
    let stable: BTreeSet<(Kind, Name)> =
        pool.iter().filter(|_| rng.chance(300)).map(|(kind, object)| (*kind, name_of(object))).collect();
    for (kind, object) in &pool {
        if stable.contains(&(*kind, name_of(object))) || rng.chance(400) {
            server.put(*kind, object.clone());
        }
    }
    server.streaming(match rng.below(10) {
        0 => Streaming::Refused,
        1 => Streaming::Unheard,
        _ => Streaming::Known,
    });
    let mut config = Config::new(server.url().parse().map_err(|error| format!("{error}"))?);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let (tuning, node) = (tuning(&mut rng), "n1".to_owned());
    let mut source = KubeSource::start(config, tuning, BTreeSet::new(), node, HostPolicies::Watched)
        .map_err(|error| error.to_string())?;
    for _ in 0..rng.between(5, 60) {
        step(&mut rng, &server, &pool, &stable);
        let pause = *rng.pick(&[0, 0, 0, 200, 1_000, 5_000]);
        let until = Instant::now() + Duration::from_micros(u64::try_from(pause).unwrap_or(0));
        while timeout_at(until, source.changed()).await.is_ok() {
            keeps(&source, &stable)?;
        }
    }
    server.heal();
    let expected = expected(&server);
    let give_up = Instant::now() + HANGS;
    loop {
        let said = source.read();
        keeps(&source, &stable)?;
        if said.as_ref().is_some_and(|said| *said.cluster == expected) {
            return Ok(());
        }
        if timeout_at(give_up, source.changed()).await.is_err() {
            let said = said.map(|said| (*said.cluster).clone());
            return Err(format!("{}\nwatches: {:?}", difference(said.as_ref(), &expected), source.watches()));
        }
    }
}

fn tuning(rng: &mut SplitMix64) -> Tuning {
    Tuning {
        grace: Duration::from_millis(5),
        list_silence: Duration::from_millis(500),
        page: *rng.pick(&[1, 2, 3, 500]),
        backoff_first: Duration::from_millis(1),
        backoff_most: Duration::from_millis(20),
        ..Tuning::default()
    }
}

/// Objects as an API server has them: each with a name, once.
fn pool(rng: &mut SplitMix64) -> Vec<(Kind, Value)> {
    let mut pool = BTreeMap::new();
    let [one, another] = [rng.next_u64(), rng.next_u64()].map(|seed| generate::cluster(seed).manifests);
    for manifests in [one, another, generate::host_cluster(rng.next_u64()).manifests] {
        for mut object in generate::flat(&manifests) {
            let found = object["kind"].as_str().map(str::to_owned);
            let Some(kind) = Kind::ALL.into_iter().find(|kind| found.as_deref() == Some(kind.name())) else {
                continue;
            };
            if !object["metadata"]["name"].is_string() {
                continue;
            }
            if matches!(kind, Kind::Pod | Kind::NetworkPolicy | Kind::Service | Kind::EndpointSlice)
                && !object["metadata"]["namespace"].is_string()
            {
                object["metadata"]["namespace"] = json!("default");
            }
            // A namespace that terminates keeps policies longer than their objects: the store's own tests are about
            // that, and here only the objects count.
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("deletionTimestamp");
            }
            if object["metadata"]["uid"].is_null() {
                object["metadata"]["uid"] = json!(format!("{:016x}", rng.next_u64()));
            }
            pool.insert((kind, name_of(&object)), object);
        }
    }
    pool.into_iter().map(|((kind, _), object)| (kind, object)).collect()
}

/// Something happens: mostly to objects, often to connections.
fn step(rng: &mut SplitMix64, server: &ApiServer, pool: &[(Kind, Value)], stable: &BTreeSet<(Kind, Name)>) {
    let kind = *rng.pick(&Kind::ALL);
    match rng.below(100) {
        0..=59 => {
            for _ in 0..rng.between(1, 4) {
                change(rng, server, pool, stable);
            }
        }
        60..=64 => server.hold(kind),
        65..=71 => server.release(kind),
        72..=75 => server.fault(kind, Fault::End),
        76..=79 => server.fault(kind, Fault::Tear),
        80..=82 => server.fault(kind, Fault::Repeat),
        83..=85 => server.fault(kind, Fault::Gone),
        86 => server.fault(kind, Fault::Garble),
        87..=88 => server.fault(kind, Fault::Bookmark),
        89 if rng.chance(300) => server.fault(kind, Fault::Deaf),
        90..=92 => {
            let status = *rng.pick(&[401, 403, 404, 410, 429, 500, 503, 504]);
            server.refuse(kind, u16::try_from(status).unwrap_or(500));
        }
        93..=95 => {
            server.tear_list(kind, rng.below(4));
            server.fault(kind, Fault::Gone);
        }
        96..=97 => {
            server.compact();
            server.fault(kind, Fault::End);
        }
        98 => server.streaming(*rng.pick(&[Streaming::Known, Streaming::Refused])),
        _ => {}
    }
}

/// An object comes, changes, goes, or is replaced by another of its name.
fn change(rng: &mut SplitMix64, server: &ApiServer, pool: &[(Kind, Value)], stable: &BTreeSet<(Kind, Name)>) {
    let (kind, object) = rng.pick(pool).clone();
    let name = name_of(&object);
    if stable.contains(&(kind, name.clone())) {
        return;
    }
    match rng.below(10) {
        0..=3 => {
            server.put(kind, object);
        }
        4 | 5 => server.delete(kind, &name),
        6 => {
            server.delete(kind, &name);
            let mut object = object;
            object["metadata"]["uid"] = json!(format!("{:016x}", rng.next_u64()));
            server.put(kind, object);
        }
        _ => {
            let mut object = object;
            object["metadata"]["labels"] =
                json!({"app": rng.pick(&["web", "db"]), "n": rng.below(3).to_string()});
            server.put(kind, object);
        }
    }
}

/// Whenever the source says anything, it says what was never touched.
fn keeps(source: &KubeSource, stable: &BTreeSet<(Kind, Name)>) -> Result<(), String> {
    let Some(said) = source.read() else { return Ok(()) };
    for (kind, name) in stable {
        let key = ObjectKey::new(name.0.as_str(), name.1.as_str());
        let there = match kind {
            // One whose labels cannot be read counts as undeclared, and nothing waits for slices.
            Kind::Namespace | Kind::EndpointSlice => true,
            Kind::Service => said.cluster.services.contains_key(&key),
            Kind::Node => said.cluster.nodes.contains_key(&name.1),
            Kind::Pod => said.cluster.pods.contains_key(&key),
            Kind::NetworkPolicy => said.cluster.policies.contains_key(&key),
            Kind::HostPolicy => said.cluster.host_policies.contains_key(&name.1),
        };
        if !there {
            return Err(format!("{} {key} was never touched and is lost", kind.name()));
        }
    }
    Ok(())
}

/// What the manifest reader makes of the objects that the server has now.
fn expected(server: &ApiServer) -> Cluster {
    let mut objects = Vec::new();
    for kind in Kind::ALL {
        objects.extend(server.objects(kind).into_values().map(|value| ManifestObject { line: 1, value }));
    }
    let file = ParsedFile { path: "all.json".to_owned(), objects };
    let mut cluster = manifest::load(&[file], &Options { pod_cidrs: Vec::new() }).cluster;
    // Files stand for pods that nobody has given an address; here their addresses come with their status.
    for pod in cluster.pods.values_mut() {
        pod.addresses_from = AddressesFrom::Status;
    }
    cluster
}

fn difference(said: Option<&Cluster>, expected: &Cluster) -> String {
    let Some(said) = said else { return "nothing was said".to_owned() };
    [
        differing("namespace", &said.namespaces, &expected.namespaces),
        differing("node", &said.nodes, &expected.nodes),
        differing("pod", &said.pods, &expected.pods),
        differing("policy", &said.policies, &expected.policies),
        differing("service", &said.services, &expected.services),
        differing("slice", &said.slices, &expected.slices),
    ]
    .concat()
}

fn differing<K: Ord + Debug, V: PartialEq + Debug>(
    what: &str,
    said: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
) -> String {
    let keys: BTreeSet<&K> = said.keys().chain(expected.keys()).collect();
    let mut text = String::new();
    for key in keys.into_iter().filter(|key| said.get(key) != expected.get(key)) {
        let (said, expected) = (said.get(key), expected.get(key));
        let _ = writeln!(text, "{what} {key:?}\n  said     {said:?}\n  expected {expected:?}");
    }
    text
}

/// Plays schedules side by side and returns those that failed, with why.
pub async fn play_all(first: u64, count: u64, side_by_side: usize) -> Vec<(u64, String)> {
    let mut failed = Vec::new();
    let mut playing = tokio::task::JoinSet::new();
    let mut next = first;
    loop {
        while playing.len() < side_by_side && next < first + count {
            let seed = next;
            playing.spawn(async move { (seed, play(seed).await) });
            next += 1;
        }
        match playing.join_next().await {
            None => return failed,
            Some(Ok((_, Ok(())))) => {}
            Some(Ok((seed, Err(why)))) => failed.push((seed, why)),
            Some(Err(error)) => failed.push((u64::MAX, error.to_string())),
        }
        sleep(Duration::ZERO).await;
    }
}
