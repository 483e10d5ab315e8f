//! The API server as a source, against one at which everything goes wrong.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use portcullis_agent::source::kube::status::{Selects, Standing};
use portcullis_agent::source::kube::{
    Config, HostPolicies, HostPolicyState, Kind, KubeSource, Said, Tuning, Version,
};
use portcullis_policy::model::ObjectKey;
use portcullis_tests::apiserver::{ApiServer, Fault, Streaming, schedule};
use portcullis_tests::privilege::number;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// Schedules of a run.
const SCHEDULES: u64 = 100;
/// How many are played at a time.
const SIDE_BY_SIDE: usize = 16;
/// How many kinds have to be listed.
fn kinds() -> usize {
    Kind::ALL.len()
}

/// How long anything may take that takes milliseconds.
const HANGS: Duration = Duration::from_mins(1);

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// `PORTCULLIS_SCHEDULES=N` plays so many, `PORTCULLIS_SCHEDULE_SEED=N` begins with that seed.
#[test]
fn whatever_happens_on_the_way_the_end_is_what_the_objects_say() {
    let count = number("PORTCULLIS_SCHEDULES", SCHEDULES);
    let first = number("PORTCULLIS_SCHEDULE_SEED", 1);
    let failed = runtime().block_on(schedule::play_all(first, count, SIDE_BY_SIDE));
    for (seed, why) in &failed {
        println!("PORTCULLIS_SCHEDULE_SEED={seed} PORTCULLIS_SCHEDULES=1:\n{why}");
    }
    let seeds: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
    assert!(failed.is_empty(), "{} of {count} schedules failed: {seeds:?}", failed.len());
}

fn source(server: &ApiServer) -> KubeSource {
    source_by(Config::new(server.url().parse().unwrap()))
}

fn source_by(config: Config) -> KubeSource {
    let tuning = Tuning {
        grace: Duration::from_millis(50),
        list_silence: Duration::from_secs(1),
        page: 2,
        backoff_first: Duration::from_millis(1),
        backoff_most: Duration::from_millis(20),
        event_spread: Duration::ZERO,
        status_pause: Duration::from_millis(1),
        ..Tuning::default()
    };
    KubeSource::start(config, tuning, BTreeSet::new(), "n1".to_owned(), HostPolicies::Watched).unwrap()
}

/// Waits until the source says so.
async fn until(source: &mut KubeSource, what: &str, says: impl Fn(&Said) -> bool) {
    let wait = async {
        while !source.read().is_some_and(|said| says(&said)) {
            source.changed().await;
        }
    };
    assert!(timeout(HANGS, wait).await.is_ok(), "{what}: {:?}", source.watches());
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "uid": name}})
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"nodeName": "n1"}, "status": {"podIPs": [{"ip": "10.0.0.1"}], "phase": "Running"},
    })
}

fn policy(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop", "uid": name}, "spec": {"podSelector": {}},
    })
}

fn has_policy(said: &Said, name: &str) -> bool {
    said.cluster.policies.contains_key(&ObjectKey::new("shop", name))
}

#[test]
fn nothing_is_said_before_every_kind_was_listed() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::Pod, pod("a"));
        for _ in 0..20 {
            server.refuse(Kind::NetworkPolicy, 403);
        }
        let mut source = source(&server);
        let troubled = async {
            loop {
                source.changed().await;
                assert!(
                    source.read().is_none() || server.asked().get("stream").copied().unwrap_or(0) >= kinds()
                );
                let watches = source.watches();
                if watches.iter().any(|watch| watch.kind == Kind::NetworkPolicy && watch.trouble.is_some()) {
                    return watches;
                }
            }
        };
        let watches = timeout(HANGS, troubled).await.unwrap();
        assert!(watches.iter().any(|watch| watch.kind == Kind::NetworkPolicy && !watch.listed));
        until(&mut source, "listed at last", |said| said.cluster.pods.len() == 1).await;
        let watches = source.watches();
        let mut deciding = watches.iter().filter(|watch| watch.needed);
        assert!(deciding.all(|watch| watch.trouble.is_none() && watch.heard.is_some()), "{watches:?}");
    });
}

#[test]
fn a_server_that_forbids_endpointslices_holds_nothing_back() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::Pod, pod("a"));
        for _ in 0..1_000 {
            server.refuse(Kind::EndpointSlice, 403);
        }
        let mut source = source(&server);
        until(&mut source, "a pod", |said| said.cluster.pods.len() == 1).await;
        let forbidden = |source: &KubeSource| {
            let watches = source.watches();
            watches.iter().any(|watch| {
                let is_told = !watch.listed && !watch.needed && watch.trouble.is_some();
                watch.kind == Kind::EndpointSlice && is_told
            })
        };
        let told = async {
            while !forbidden(&source) {
                source.changed().await;
            }
        };
        timeout(HANGS, told).await.unwrap();
        assert_eq!(source.read().unwrap().cluster.slices.len(), 0);
    });
}

#[test]
fn endpointslices_of_others_are_followed() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        let slice = |address: &str| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "own", "namespace": "shop", "uid": "own",
                    "labels": {"kubernetes.io/service-name": "web"}},
                "endpoints": [{"addresses": [address]}], "ports": [{"port": 80}],
            })
        };
        let leads_to = |said: &Said, address: &str| {
            let slice = said.cluster.slices.get(&ObjectKey::new("shop", "own"));
            slice.is_some_and(|slice| slice.endpoints[0].address.to_string() == address)
        };
        server.put(Kind::EndpointSlice, slice("192.0.2.1"));
        let mut source = source(&server);
        until(&mut source, "a slice", |said| leads_to(said, "192.0.2.1")).await;
        server.put(Kind::EndpointSlice, slice("192.0.2.2"));
        until(&mut source, "another address", |said| leads_to(said, "192.0.2.2")).await;
        server.delete(Kind::EndpointSlice, &("shop".to_owned(), "own".to_owned()));
        until(&mut source, "none", |said| said.cluster.slices.is_empty()).await;
    });
}

#[test]
fn a_server_without_streaming_lists_is_asked_page_by_page() {
    for streaming in [Streaming::Refused, Streaming::Unheard] {
        runtime().block_on(async {
            let server = ApiServer::start().await;
            server.streaming(streaming);
            (0..5).for_each(|number| {
                server.put(Kind::Pod, pod(&format!("p{number}")));
            });
            let mut source = source(&server);
            until(&mut source, "five pods", |said| said.cluster.pods.len() == 5).await;
            assert!(server.asked()["page"] >= 2, "{:?}", server.asked());
            server.put(Kind::Pod, pod("p5"));
            until(&mut source, "and one more", |said| said.cluster.pods.len() == 6).await;
        });
    }
}

#[test]
fn a_streaming_list_is_used_where_there_is_one() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::Pod, pod("a"));
        let mut source = source(&server);
        until(&mut source, "a pod", |said| said.cluster.pods.len() == 1).await;
        assert_eq!(server.asked().get("list"), None);
        assert!(server.asked()["stream"] >= kinds());
    });
}

#[test]
fn a_terminating_namespace_keeps_its_policies_until_its_pods_are_gone() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::Namespace, namespace("shop"));
        server.put(Kind::Pod, pod("a"));
        server.put(Kind::NetworkPolicy, policy("deny"));
        let mut source = source(&server);
        until(&mut source, "the policy", |said| has_policy(said, "deny")).await;
        let mut terminating = namespace("shop");
        terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        server.put(Kind::Namespace, terminating);
        server.delete(Kind::NetworkPolicy, &("shop".to_owned(), "deny".to_owned()));
        // A list anew does not know the policy either.
        server.fault(Kind::NetworkPolicy, Fault::Gone);
        server.put(Kind::NetworkPolicy, policy("marker"));
        until(&mut source, "the marker, with the policy still there", |said| {
            assert!(has_policy(said, "deny"), "{:?}", said.problems);
            has_policy(said, "marker")
        })
        .await;
        until(&mut source, "it is told", |said| {
            said.problems
                .iter()
                .any(|problem| problem.message.contains("until the namespace's pods are gone"))
        })
        .await;
        server.delete(Kind::Pod, &("shop".to_owned(), "a".to_owned()));
        until(&mut source, "gone with the pod", |said| !has_policy(said, "deny")).await;
    });
}

#[test]
fn a_policy_that_cannot_be_read_has_one_event() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        let mut broken = policy("broken");
        broken["spec"]["ingress"] = json!([{"form": []}]);
        server.put(Kind::NetworkPolicy, policy("fine"));
        server.put(Kind::NetworkPolicy, broken.clone());
        let mut source = source(&server);
        until(&mut source, "both", |said| has_policy(said, "broken") && has_policy(said, "fine")).await;
        // The same state is told once, however often it is heard.
        server.put(Kind::NetworkPolicy, broken.clone());
        server.fault(Kind::NetworkPolicy, Fault::Gone);
        broken["metadata"]["generation"] = json!(2);
        server.put(Kind::NetworkPolicy, broken);
        let wait = async {
            while server.events().len() < 2 {
                let _ = timeout(Duration::from_millis(5), source.changed()).await;
            }
        };
        assert!(timeout(HANGS, wait).await.is_ok(), "{:?}", server.events());
        let events = server.events();
        assert_eq!(events.len(), 2, "{events:?}");
        assert!(events.iter().all(|event| event["involvedObject"]["name"] == "broken"), "{events:?}");
        assert!(events[0]["message"].as_str().unwrap().starts_with("spec.ingress[0]"), "{events:?}");
    });
}

#[test]
fn a_silent_connection_is_heard_of_by_its_bookmarks() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        let mut source = source(&server);
        until(&mut source, "listed", |_| true).await;
        let heard = |source: &KubeSource| {
            source.watches().into_iter().find(|watch| watch.kind == Kind::Node).and_then(|watch| watch.heard)
        };
        let before = heard(&source);
        server.fault(Kind::Node, Fault::Bookmark);
        let wait = async {
            while heard(&source) == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(HANGS, wait).await.unwrap();
        assert!(heard(&source) > before);
    });
}

#[test]
fn where_nothing_changes_a_silent_watch_is_opened_anew_and_is_no_trouble() {
    runtime().block_on(async {
        // given a server that has nothing to say, as one has that knows of no change: not even bookmarks
        let server = ApiServer::start().await;
        let mut config = Config::new(server.url().parse().unwrap());
        config.read_timeout = Some(Duration::from_millis(200));
        config.reset_reader_on_write = true;
        let mut source = source_by(config);
        until(&mut source, "listed", |_| true).await;
        // when each watch was opened anew several times
        let opened = || server.asked().values().sum::<usize>();
        let before = opened();
        let mut told = 0;
        let wait = async {
            while opened() < before + 12 {
                told += usize::from(timeout(Duration::from_millis(5), source.changed()).await.is_ok());
            }
        };
        assert!(timeout(HANGS, wait).await.is_ok(), "{:?}", server.asked());
        // then nothing was told but what may have waited since the lists
        assert!(told <= 1, "{told} times: {:?}", source.watches());
        // and a change is still heard
        server.put(Kind::NetworkPolicy, policy("later"));
        until(&mut source, "a policy", |said| has_policy(said, "later")).await;
    });
}

fn host_policy(name: &str, generation: u64) -> Value {
    json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy",
        "metadata": {"name": name, "uid": name, "generation": generation},
        "spec": {"subject": {"nodes": {}}, "ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]},
    })
}

fn has_host_policy(said: &Said, name: &str) -> bool {
    said.cluster.host_policies.contains_key(name)
}

/// What an agent says that has this policy in force.
fn in_force(said: &Said, name: &str) -> HostPolicyState {
    HostPolicyState {
        name: name.to_owned(),
        version: said.host_versions[name].clone(),
        problems: Vec::new(),
        selects: Selects { node: true, pods: 0 },
        standing: Standing::InForce,
        rolled_back: None,
    }
}

/// Waits until so many statuses were applied.
async fn applied(server: &ApiServer, count: usize) -> Vec<(String, Value)> {
    let wait = async {
        while server.applied().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(HANGS, wait).await.is_ok(), "{:?}", server.applied());
    server.applied()
}

/// The status of the condition of a type, of node n1.
fn condition(body: &Value, kind: &str) -> Option<String> {
    let all = body["status"]["nodes"]["n1"]["conditions"].as_array()?;
    all.iter().find(|one| one["type"] == kind)?["status"].as_str().map(str::to_owned)
}

#[test]
fn host_policies_are_followed_and_a_change_of_their_status_is_none() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::HostPolicy, host_policy("web", 1));
        let mut source = source(&server);
        until(&mut source, "the policy", |said| has_host_policy(said, "web")).await;
        let said = source.read().unwrap();
        assert_eq!(said.host_versions["web"].generation, 1);
        // Another agent writes; then something that counts comes.
        let mut written = host_policy("web", 1);
        written["status"]["nodes"]["n2"] = json!({"observedGeneration": 1});
        server.put(Kind::HostPolicy, written);
        server.put(Kind::HostPolicy, host_policy("db", 1));
        until(&mut source, "another", |said| has_host_policy(said, "db")).await;
        let first = source.read().unwrap().host_versions["web"].clone();
        assert_eq!(first, said.host_versions["web"], "the state that was read first");
        server.put(Kind::HostPolicy, host_policy("web", 2));
        until(&mut source, "its change", |said| said.host_versions["web"].generation == 2).await;
        server.delete(Kind::HostPolicy, &(String::new(), "web".to_owned()));
        until(&mut source, "its end", |said| !has_host_policy(said, "web")).await;
    });
}

#[test]
fn what_became_of_a_host_policy_is_applied_once_and_only_where_it_changes() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::HostPolicy, host_policy("web", 3));
        let mut source = source(&server);
        until(&mut source, "the policy", |said| has_host_policy(said, "web")).await;
        let state = in_force(&source.read().unwrap(), "web");
        // given a server that refuses twice
        server.refuse_status(500);
        server.refuse_status(403);
        source.tell_status(vec![state.clone()]);
        let all = applied(&server, 1).await;
        let (manager, body) = &all[0];
        assert_eq!(manager, "portcullis-n1");
        assert_eq!(body["metadata"], json!({"name": "web", "uid": "web"}));
        assert_eq!(body["status"]["nodes"]["n1"]["observedGeneration"], 3);
        assert_eq!(condition(body, "Accepted").as_deref(), Some("True"));
        assert_eq!(condition(body, "Realised").as_deref(), Some("True"));
        // when the same is told again, and by an agent that was started anew
        source.tell_status(vec![state.clone()]);
        let mut next = source_by(Config::new(server.url().parse().unwrap()));
        until(&mut next, "the policy", |said| has_host_policy(said, "web")).await;
        next.tell_status(vec![state.clone()]);
        // then nothing is written until it is another
        let pending = HostPolicyState { standing: Standing::Pending, ..state.clone() };
        next.tell_status(vec![state]);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(server.applied().len(), 1, "{:?}", server.applied());
        next.tell_status(vec![pending]);
        let (_, body) = applied(&server, 2).await.remove(1);
        assert_eq!(condition(&body, "Realised").as_deref(), Some("False"));
    });
}

#[test]
fn a_host_policy_that_was_rolled_back_has_a_condition_and_one_event() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::HostPolicy, host_policy("web", 1));
        let mut source = source(&server);
        until(&mut source, "the policy", |said| has_host_policy(said, "web")).await;
        let fine = in_force(&source.read().unwrap(), "web");
        let back = HostPolicyState { rolled_back: Some("the API server".to_owned()), ..fine };
        source.tell_status(vec![back.clone()]);
        let (_, body) = applied(&server, 1).await.remove(0);
        assert_eq!(condition(&body, "RolledBack").as_deref(), Some("True"));
        // More pods come, and it is as rolled back as before.
        source.tell_status(vec![HostPolicyState { selects: Selects { node: true, pods: 1 }, ..back }]);
        let wait = async {
            while server.events().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(HANGS, wait).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let events = server.events();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0]["reason"], "RolledBack");
        assert_eq!(events[0]["involvedObject"]["kind"], "HostPolicy");
        assert_eq!(events[0]["metadata"]["namespace"], "default");
    });
}

#[test]
fn a_status_of_a_policy_that_is_gone_or_another_by_now_is_not_written() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::HostPolicy, host_policy("web", 1));
        server.put(Kind::HostPolicy, host_policy("db", 1));
        let mut source = source(&server);
        until(&mut source, "the policies", |said| {
            has_host_policy(said, "web") && has_host_policy(said, "db")
        })
        .await;
        let said = source.read().unwrap();
        let gone = HostPolicyState { name: "gone".to_owned(), ..in_force(&said, "db") };
        let other = Version { uid: "another".to_owned(), ..said.host_versions["web"].clone() };
        let another = HostPolicyState { version: other, ..in_force(&said, "web") };
        source.tell_status(vec![gone, another, in_force(&said, "db")]);
        let all = applied(&server, 1).await;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].1["metadata"]["name"], "db");
    });
}

#[test]
fn a_server_that_does_not_know_host_policies_is_asked_again_and_holds_nothing_back() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::Pod, pod("a"));
        for _ in 0..100_000 {
            server.refuse(Kind::HostPolicy, 404);
        }
        let mut source = source(&server);
        until(&mut source, "a pod", |said| said.cluster.pods.len() == 1).await;
        let watch = |source: &KubeSource| {
            source.watches().into_iter().find(|watch| watch.kind == Kind::HostPolicy).unwrap()
        };
        let state = watch(&source);
        assert!(state.absent && state.listed && state.trouble.is_none(), "{state:?}");
        // The definition is applied, and a policy.
        server.heal();
        server.put(Kind::HostPolicy, host_policy("web", 1));
        until(&mut source, "the policy", |said| has_host_policy(said, "web")).await;
        assert!(!watch(&source).absent);
        // One that is forgotten for a moment, as by a server that has just started, takes nothing away.
        server.refuse(Kind::HostPolicy, 404);
        server.refuse(Kind::HostPolicy, 404);
        server.fault(Kind::HostPolicy, Fault::Gone);
        server.put(Kind::HostPolicy, host_policy("db", 1));
        until(&mut source, "the next", |said| {
            assert!(has_host_policy(said, "web"));
            has_host_policy(said, "db")
        })
        .await;
        // The kind is taken away for good.
        for _ in 0..100_000 {
            server.refuse(Kind::HostPolicy, 404);
        }
        server.fault(Kind::HostPolicy, Fault::Gone);
        until(&mut source, "none", |said| said.cluster.host_policies.is_empty()).await;
    });
}

#[test]
fn host_policies_are_not_asked_for_where_nobody_needs_them() {
    runtime().block_on(async {
        let server = ApiServer::start().await;
        server.put(Kind::Pod, pod("a"));
        for _ in 0..100 {
            server.refuse(Kind::HostPolicy, 404);
        }
        let config = Config::new(server.url().parse().unwrap());
        let node = "n1".to_owned();
        let mut source =
            KubeSource::start(config, Tuning::default(), BTreeSet::new(), node, HostPolicies::Ignored)
                .unwrap();
        until(&mut source, "a pod", |said| said.cluster.pods.len() == 1).await;
        assert!(source.watches().iter().all(|watch| watch.kind != Kind::HostPolicy));
    });
}
