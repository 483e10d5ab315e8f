//! The reconciler against the kernel, in a network namespace and on a bpffs of its own: bpf(2) fails in the middle of
//! a change (T17).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used)]

use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use portcullis_policy::manifest::{ManifestObject, Options, ParsedFile, load};
use portcullis_policy::model::Mode;
use serde_json::{Value, json};

use portcullis_common::wire::FLOW_OPENED_INGRESS;

use super::*;
use crate::attach::HookChoice;
use crate::attach::conntrack::tests::track;
use crate::bpf::kernel::Fault;
use crate::bpf::load::kernel_release;
use crate::scratch::Scratch;

/// In CI these tests have to run.
fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "a reconciler on a kernel needs root");
    println!("skipped: a reconciler on a kernel needs root");
    false
}

/// A thread's own network namespace and bpffs, with a veth device and a route for each of three pods.
struct Node {
    reconciler: Reconciler,
    bpffs: Scratch,
}

impl Node {
    fn run(test: impl FnOnce(&mut Node) + Send) {
        Self::with_flows(64, test);
    }

    /// With flow tables of this size.
    fn with_flows(flows: u32, test: impl FnOnce(&mut Node) + Send) {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                let without: Option<&str> = None;
                mount(without, "/", without, MsFlags::MS_REC | MsFlags::MS_PRIVATE, without).unwrap();
                let bpffs = Scratch::new();
                mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), without).unwrap();
                ip("link set lo up");
                for n in 1..=3 {
                    ip(&format!("link add pod{n} type veth peer name eth{n}"));
                    ip(&format!("link set pod{n} up"));
                    ip(&format!("link set eth{n} up"));
                    ip(&format!("route add 10.0.0.{n}/32 dev pod{n}"));
                }
                let pins = Pins::new(bpffs.path());
                pins.prepare(bpffs.path()).unwrap();
                let hook = HookChoice::Auto.resolve(kernel_release().unwrap()).unwrap();
                let reconciler =
                    Reconciler::open(&pins, hook, flows, Mode::Enforce, &Sizes::default()).unwrap();
                let mut node = Node { reconciler, bpffs };
                test(&mut node);
                umount2(node.bpffs.path(), MntFlags::MNT_DETACH).unwrap();
            });
            worker.join().unwrap();
        });
    }

    fn word(&self, pod: &str) -> EndpointWord {
        self.reconciler.endpoints[&ObjectKey::new("shop", pod)].word
    }

    /// The word as the kernel has it.
    fn in_kernel(&self, pod: &str) -> EndpointWord {
        let slot = self.reconciler.endpoints[&ObjectKey::new("shop", pod)].slot;
        self.reconciler.tables.kernel.found_endpoints().unwrap()[&slot].word
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn cluster(manifests: &[Value]) -> Arc<Cluster> {
    let objects = manifests.iter().map(|value| ManifestObject { line: 1, value: value.clone() }).collect();
    let file = ParsedFile { path: "case.json".to_owned(), objects };
    Arc::new(load(&[file], &Options { pod_cidrs: Vec::new() }).cluster)
}

fn pods(names: &[&str]) -> Vec<Value> {
    let pods = (1..).zip(names).map(|(n, name)| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
            "status": {"podIPs": [{"ip": format!("10.0.0.{n}")}]},
        })
    });
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    [namespace].into_iter().chain(pods).collect()
}

/// A policy whose number of rules differs with the port too, so that every table does.
fn policy(port: u16, block: &str) -> Value {
    let rule = |port| {
        let pods = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["b", "c"]}]});
        json!({
            "from": [{"ipBlock": {"cidr": block}}, {"podSelector": pods}],
            "ports": [{"port": port}],
        })
    };
    let rules: Vec<Value> = (80..=port).map(rule).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"},
        "spec": {"podSelector": {}, "ingress": rules},
    })
}

#[test]
fn t17_a_write_that_fails_leaves_what_is_in_force_and_closes_new_pods_until_it_succeeds() {
    if !is_root() {
        return;
    }
    Node::run(|node| {
        let state = |names: &[&str], port, block: &str| {
            let mut manifests = pods(names);
            manifests.push(policy(port, block));
            cluster(&manifests)
        };
        node.reconciler.reconcile(&state(&["a", "b"], 80, "10.1.0.0/16")).unwrap();
        let mut port = 80;
        for map in [
            "rows",
            "rules",
            "port_ranges",
            "rulesets",
            "peer_rows",
            "peers",
            "prefixes",
            "epochs",
            "node_state",
        ] {
            for errno in [libc::ENOMEM, libc::E2BIG] {
                let before = (node.word("a"), node.reconciler.tables.written().clone());
                port += 1;
                // Another pod too, and everything about the policy differs.
                let next = state(&["a", "b", "c"], port, &format!("10.{port}.0.0/16"));
                for after in 0..2 {
                    node.reconciler.tables.kernel.fault = Some(Fault { map, errno, after });
                    let failed = node.reconciler.reconcile(&next);
                    if after > 0 && failed.is_ok() {
                        // There is only one write to this map.
                        break;
                    }
                    let error = format!("{:#}", failed.unwrap_err());
                    assert!(
                        error.contains(map) && error.contains("the last complete policies stay in force"),
                        "{error}"
                    );
                    assert_eq!(node.in_kernel("a"), before.0, "{map} {errno}");
                    let c = node.in_kernel("c");
                    assert_eq!(
                        (c.ingress, c.egress),
                        (EndpointRulesets::CLOSED.ingress, EndpointRulesets::CLOSED.egress)
                    );
                    let ruleset = u32::from(before.0.ingress);
                    let held = node.reconciler.tables.written().rulesets.get(&ruleset);
                    assert_eq!(held, before.1.rulesets.get(&ruleset), "{map}: what is in force stays whole");
                }
                node.reconciler.tables.kernel.fault = None;
                let outcome = node.reconciler.reconcile(&next).unwrap();
                assert!(outcome.complete && outcome.held.is_empty());
                node.reconciler.settle().unwrap();
                assert_ne!(node.in_kernel("a"), before.0, "{map}: the new policy is in force");
                assert_eq!(node.in_kernel("a").ingress, node.word("a").ingress);
                assert!(node.in_kernel("c").ingress > EndpointRulesets::CLOSED.ingress);
                node.reconciler.reconcile(&state(&["a", "b"], port, "10.1.0.0/16")).unwrap();
                node.reconciler.settle().unwrap();
            }
        }
    });
}

#[test]
fn t17_a_pod_whose_endpoint_cannot_be_made_is_attached_to_and_closed() {
    if !is_root() {
        return;
    }
    for map in ["flows", "endpoint_cfg", "ifaces"] {
        Node::run(|node| {
            node.reconciler.reconcile(&cluster(&pods(&["a"]))).unwrap();
            let attached = node.reconciler.attacher.observed().unwrap().len();
            let both = cluster(&pods(&["a", "b"]));
            node.reconciler.tables.kernel.fault = Some(Fault { map, errno: libc::ENOMEM, after: 0 });
            let outcome = node.reconciler.reconcile(&both).unwrap();
            assert!(!outcome.complete);
            let text = outcome.problems[0].to_string();
            assert!(text.starts_with("Pod shop/b: ") && text.contains("its interface is closed"), "{text}");
            assert_eq!(node.reconciler.attacher.observed().unwrap().len(), attached + 2, "{map}");
            let leads = node.reconciler.tables.kernel.found_ifaces();
            assert_eq!(leads.len(), 1, "{map}: pod b's interface leads to no endpoint, which drops");

            node.reconciler.tables.kernel.fault = None;
            let outcome = node.reconciler.reconcile(&both).unwrap();
            assert!(outcome.complete, "{map}: {:?}", outcome.problems);
            assert_eq!(node.reconciler.tables.kernel.found_ifaces().len(), 2, "{map}");
        });
    }
}

#[test]
fn t25_peers_that_change_while_writes_fail_are_judged_again() {
    if !is_root() {
        return;
    }
    // Two peers that live elsewhere.
    let state = |label: &str| {
        let mut manifests = pods(&["a"]);
        for n in [1, 2] {
            manifests.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "shop", "name": format!("peer{n}"), "labels": {"app": label}},
                "status": {"podIPs": [{"ip": format!("10.9.0.{n}")}]},
            }));
        }
        manifests.push(policy(80, "10.1.0.0/16"));
        cluster(&manifests)
    };
    for (from, to) in [("b", "x"), ("x", "b")] {
        Node::run(|node| {
            node.reconciler.reconcile(&state(from)).unwrap();
            node.reconciler.settle().unwrap();
            let before = node.reconciler.tables.kernel.prefix_epoch().unwrap();
            let after = state(to);
            node.reconciler.tables.kernel.fault = Some(Fault { map: "peers", errno: libc::ENOMEM, after: 1 });
            node.reconciler.reconcile(&after).unwrap_err();
            node.reconciler.tables.kernel.fault = None;
            node.reconciler.reconcile(&after).unwrap();
            // The first peer's class is written and is no news to the second try; its flows must age all the same.
            assert_ne!(node.reconciler.tables.kernel.prefix_epoch().unwrap(), before, "{from} to {to}");
        });
    }
}

#[test]
fn pins_of_another_shape_are_refused_and_stay_as_they_are() {
    if !is_root() {
        return;
    }
    Node::run(|node| {
        let pins = Pins::new(node.bpffs.path());
        let hook = node.reconciler.attacher.hook();
        let open = |size: &str| {
            let sizes: Sizes = [size.parse().unwrap()].into_iter().collect();
            Reconciler::open(&pins, hook, 64, Mode::Enforce, &sizes).map(drop)
        };
        let error = open("rows=300").unwrap_err().to_string();
        assert!(error.starts_with("map rows at "), "{error}");
        assert!(
            error.contains(
                "its entries is 98304, this agent's is 300: start the agent with --map-size rows=98304"
            ),
            "{error}"
        );
        // What each bank makes anew may differ from start to start.
        open("peers=9").unwrap();
        open("prefixes=9").unwrap();

        // A map of another type behind the name of one of ours.
        let (rows, rules) = (pins.maps().join("rows"), pins.maps().join("rules"));
        std::fs::remove_file(&rows).unwrap();
        aya::maps::MapData::from_pin(&rules).unwrap().pin(&rows).unwrap();
        let error = Reconciler::open(&pins, hook, 64, Mode::Enforce, &Sizes::default())
            .map(drop)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("its bytes of value is 8, this agent's is 64: start the agent that made it"),
            "{error}"
        );
    });
}

/// Clients of the first pod; `PORTCULLIS_TRACKED` sets another number of them, each with this many connections.
const CLIENTS: u64 = 1;
const CONNECTIONS: u16 = 10_000;

#[test]
fn tracked_connections_become_flows_as_many_as_fit_and_never_over_one_that_is_there() {
    if !is_root() {
        return;
    }
    let clients = std::env::var("PORTCULLIS_TRACKED").ok().and_then(|n| n.parse().ok()).unwrap_or(CLIENTS);
    let tracked = clients * u64::from(CONNECTIONS);
    Node::with_flows(u32::try_from(tracked).unwrap(), |node| {
        let unknown = node.reconciler.reconcile(&cluster(&pods(&["a"]))).unwrap().older;
        assert_eq!((unknown.adopted, unknown.unknown), (0, 1), "nothing is tracked: {unknown:?}");
        for client in 1..=clients {
            let [.., a, b] = client.to_be_bytes();
            track([10, 9, a, b], [10, 0, 0, 1], CONNECTIONS);
        }
        // One more than fits, and some of a pod that is enforced already.
        track([10, 8, 0, 1], [10, 0, 0, 1], 1);
        track([10, 8, 0, 1], [10, 0, 0, 3], 7);
        let begun = std::time::Instant::now();
        // Of another identity, the first pod gets an endpoint again.
        let renamed = pods(&["b"]);
        let older = node.reconciler.reconcile(&cluster(&renamed)).unwrap().older;
        println!("{tracked} flows of {} connections taken in {:?}", tracked + 8, begun.elapsed());
        assert_eq!((older.adopted, older.no_room, older.unknown), (tracked, 1, 0), "{older:?}");
        let slot = node.reconciler.endpoints[&ObjectKey::new("shop", "b")].slot;
        let tables = &node.reconciler.tables.kernel.flow_tables;
        let flows = tables.table(slot).unwrap().all().unwrap();
        assert_eq!((flows.len() as u64, tables.fill(slot).unwrap().0), (tracked, tracked));
        for (key, entry) in flows {
            assert_eq!((key.local_port, entry.tag), (80, key.tag() | FLOW_OPENED_INGRESS));
        }
        let after = node.reconciler.reconcile(&cluster(&renamed)).unwrap().older;
        assert_eq!(after, older, "an endpoint takes flows once");
    });
}

fn index(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap()
}

/// The names of the pods that are enforced.
fn local(outcome: &Outcome) -> Vec<&str> {
    outcome.local.keys().map(|key| key.name.as_str()).collect()
}

/// Both programs hang on it, and it leads to no endpoint: it drops everything.
fn is_closed(node: &Node, interface: u32) -> bool {
    let observed = node.reconciler.attacher.observed().unwrap();
    let live = |one: &&crate::attach::Observed| {
        one.slot.interface == interface && matches!(one.state, State::Live { .. })
    };
    let led = node.reconciler.tables.kernel.found_ifaces();
    observed.iter().filter(live).count() == 2 && !led.contains_key(&interface)
}

/// T12, T15: the route to a pod that is gone leads to a new pod's interface, of which the CNI plugin told.
#[test]
fn an_interface_that_was_told_of_is_closed_until_its_pod_is_known_and_never_another_s() {
    if !is_root() {
        return;
    }
    Node::run(|node| {
        let interface = index("pod2");
        let new = ObjectKey::new("shop", "new");
        let before = cluster(&pods(&["a", "b"]));
        assert_eq!(local(&node.reconciler.reconcile(&before).unwrap()), ["a", "b"]);

        // Told of: b, to whose address the route still leads, has lost it before anything else is known.
        node.reconciler.close(interface, &new).unwrap();
        assert!(is_closed(node, interface));
        let closed = BTreeMap::from([(interface, "pod2".to_owned())]);
        node.reconciler.tell(Ports { of: BTreeMap::new(), closed });
        let outcome = node.reconciler.reconcile(&before).unwrap();
        assert_eq!(local(&outcome), ["a"]);
        assert!(is_closed(node, interface) && outcome.gone.is_empty());

        // Known: no route leads to its address, and none has to.
        let mut with_new = pods(&["a", "b"]);
        with_new.push(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "new"},
            "status": {"podIPs": [{"ip": "10.0.0.9"}]},
        }));
        let port = crate::told::Port { interface, name: "pod2".to_owned(), station: None };
        let of = BTreeMap::from([(new.clone(), port)]);
        node.reconciler.tell(Ports { of, closed: BTreeMap::new() });
        let outcome = node.reconciler.reconcile(&cluster(&with_new)).unwrap();
        assert_eq!(local(&outcome), ["a", "new"]);
        assert_eq!(outcome.endpoints[&new].config.ifindex, interface);

        // To be closed again does an endpoint of its own no harm.
        node.reconciler.close(interface, &new).unwrap();
        assert!(node.reconciler.tables.kernel.found_ifaces().contains_key(&interface));

        // Another device of that name: what was told means nothing any more, and it stays closed.
        ip("link set pod2 down");
        ip("link set pod2 name other");
        let outcome = node.reconciler.reconcile(&cluster(&with_new)).unwrap();
        assert_eq!(outcome.gone, BTreeSet::from([interface]));
        assert_eq!(local(&outcome), ["a"]);
        assert!(is_closed(node, interface));
    });
}

#[test]
fn an_interface_that_is_gone_cannot_be_closed() {
    if !is_root() {
        return;
    }
    Node::run(|node| {
        node.reconciler.reconcile(&cluster(&pods(&["a"]))).unwrap();
        let error = node.reconciler.close(9_999, &ObjectKey::new("shop", "new")).unwrap_err();
        assert!(error.to_string().contains("9999"), "{error:#}");
    });
}

/// `struct __user_cap_header_struct` and `__user_cap_data_struct` of linux/capability.h, version 3: the thread's sets,
/// low words first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

static CAPABILITIES_V3: [u32; 2] = [0x2008_0522, 0];

/// Runs it with these capabilities in force and no others, in this thread.
fn with_capabilities<T>(numbers: &[u32], run: impl FnOnce() -> T) -> T {
    let mut sets = [CapabilitySets::default(); 2];
    // SAFETY: both are of the layout that this version names, and live over the call.
    let got = unsafe { libc::syscall(libc::SYS_capget, CAPABILITIES_V3.as_ptr(), sets.as_mut_ptr()) };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    let set = |sets: [CapabilitySets; 2]| {
        // SAFETY: as above.
        let set = unsafe { libc::syscall(libc::SYS_capset, CAPABILITIES_V3.as_ptr(), sets.as_ptr()) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    };
    let mut few = sets.map(|set| CapabilitySets { effective: 0, ..set });
    for number in numbers {
        few[*number as usize / 32].effective |= 1 << (number % 32);
    }
    set(few);
    let result = run();
    set(sets);
    result
}

#[test]
fn three_capabilities_make_tables_grow_them_and_take_them_over() {
    use crate::preflight::facts::{BPF, NET_ADMIN, PERFMON};

    const LARGEST: u32 = 100_000;
    const FLOWS: u32 = 9_000;
    if !is_root() {
        return;
    }
    Node::with_flows(LARGEST, |node| {
        let pins = Pins::new(node.bpffs.path());
        let tables = || std::fs::read_dir(pins.tables()).unwrap().count();
        let (held, after, pinned) = with_capabilities(&[BPF, NET_ADMIN, PERFMON], || {
            let a = ObjectKey::new("shop", "a");
            // given a pod whose table had to grow
            node.reconciler.reconcile(&cluster(&pods(&["a"]))).unwrap();
            let slot = node.reconciler.endpoints[&a].slot;
            let flow_tables = &mut node.reconciler.tables.kernel.flow_tables;
            let (keys, entries): (Vec<_>, Vec<_>) = (0..FLOWS)
                .map(|n| {
                    let [.., b, c] = n.to_be_bytes();
                    let remote = portcullis_common::addr::Addr::v4([10, 9, b, c]);
                    let key = portcullis_common::wire::FlowKey { remote, ..Default::default() };
                    let tag = key.tag();
                    (key, portcullis_common::wire::FlowEntry { tag, ..Default::default() })
                })
                .unzip();
            flow_tables.table(slot).unwrap().write_new(&keys, &entries).unwrap();
            flow_tables.count(slot, 0, u64::from(FLOWS)).unwrap();
            assert_eq!(flow_tables.tend(slot, LARGEST).unwrap(), Some(crate::bpf::flows::Growth::Done));
            let held = flow_tables.table(slot).unwrap().all().unwrap().len();
            let pinned = tables();
            // when another agent takes over
            let hook = HookChoice::Auto.resolve(kernel_release().unwrap()).unwrap();
            let opened = Reconciler::open(&pins, hook, LARGEST, Mode::Enforce, &Sizes::default());
            node.reconciler = opened.unwrap();
            node.reconciler.reconcile(&cluster(&pods(&["a"]))).unwrap();
            let flow_tables = &mut node.reconciler.tables.kernel.flow_tables;
            let after = flow_tables.table(slot).unwrap().all().unwrap().len();
            (held, after, pinned)
        });
        // then the flows are there, and no table but the one in use is held
        assert_eq!((held, after), (FLOWS as usize, FLOWS as usize));
        assert_eq!((pinned, tables()), (1, 1));
    });
}
