//! Pods behind a bridge, where frames say who is where: what is forgotten, forged or moved changes no verdict, and
//! what is no pod's is left alone.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, PerCpuArray};
use nix::sys::signal::Signal;
use portcullis_agent::bpf::Pins;
use portcullis_common::event::{Direction, Outcome, Reason, verdict_cell};
use portcullis_lab::netns::Netns;
use portcullis_lab::{Ask, Client, Cni, Family, Hook, Probe, ProbeOptions, Target};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::lifecycle::{Life, PORT, to_server};
use portcullis_tests::live::{Live, Rig, State};
use portcullis_tests::privilege::is_root;
use serde_json::json;

/// How long the agent may take to see what netlink tells, on a loaded machine.
const SOON: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);
/// The server's address, and the whole subnet.
const SERVER: &str = "10.77.0.1";
const FRIEND: &str = "10.77.0.2";
const SUBNET: &str = "10.77.0.0/24";

fn pod(name: &str) -> ObjectKey {
    ObjectKey::new("life", name)
}

/// Three pods behind a bridge, whose server only the friend may reach, and no agent yet.
fn bridged() -> Life {
    let life = Life::new(Rig { hook: Hook::Auto, cni: Cni::Bridge });
    life.write_policy();
    life
}

/// Runs a command in a namespace; what it printed.
fn run(netns: &Netns, command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap();
    let output = netns.run(|| Command::new(program).args(words).output()).unwrap().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn mac(life: &Life, name: &str) -> String {
    let text = run(life.lab.pod(&pod(name)).unwrap(), "ip -o link show eth0");
    let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).unwrap().to_owned()
}

fn device(life: &Life, name: &str) -> String {
    life.lab.pod_state(&pod(name)).unwrap().device.clone()
}

/// The ports at which the bridge hears a MAC address.
fn heard_at(life: &Life, mac: &str) -> BTreeSet<String> {
    let table = run(life.lab.node(), "bridge fdb show br cni0");
    let of = table.lines().filter(|line| line.starts_with(mac) && !line.contains("permanent"));
    of.map(|line| line.split_whitespace().nth(2).unwrap().to_owned()).collect()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) -> Duration {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < SOON, "{what}: not after {SOON:?}");
        sleep(PAUSE);
    }
    begin.elapsed()
}

/// Who reaches the server: the friend, the stranger, the node, the outside; then whom the stranger reaches.
fn cells(life: &Life) -> String {
    let tcp = Ask::Port(Protocol::Tcp, PORT);
    let to = |name: &str| Target::Pod(pod(name), Family::Ipv4);
    let mut probes = vec![to_server("friend", Protocol::Tcp), to_server("stranger", Protocol::Tcp)];
    probes.extend([Client::Node, Client::Outside].map(|from| Probe { from, to: to("server"), ask: tcp }));
    probes.push(Probe { from: Client::Pod(pod("stranger")), to: to("friend"), ask: tcp });
    let outcomes = life.lab.probe(&probes, &ProbeOptions::default()).unwrap();
    outcomes.iter().map(portcullis_lab::Outcome::cell).collect()
}

/// What [`cells`] says where the policy is in force.
const ENFORCED: &str = ".X.X.";

#[test]
fn pods_that_never_spoke_are_found_before_the_agent_is_ready() {
    if !is_root("a lab") {
        return;
    }
    let mut life = bridged();
    // Nobody has heard of anybody.
    run(life.lab.node(), "ip neigh flush dev cni0");
    for name in ["server", "friend", "stranger"] {
        for port in heard_at(&life, &mac(&life, name)) {
            run(life.lab.node(), &format!("bridge fdb del {} dev {port} master", mac(&life, name)));
        }
    }
    life.start_and_wait();
    assert_eq!(cells(&life), ENFORCED);
}

/// The shape as the bridge plugin makes it: the bridge has an address of the subnet, and the route comes with it.
#[test]
fn a_route_that_comes_with_the_gateways_address_leads_too() {
    if !is_root("a lab") {
        return;
    }
    let mut life = bridged();
    run(life.lab.node(), &format!("ip route del {SUBNET} dev cni0"));
    run(life.lab.node(), "ip addr add 10.77.0.254/24 dev cni0");
    for name in ["server", "friend", "stranger"] {
        run(life.lab.pod(&pod(name)).unwrap(), "ip route replace default via 10.77.0.254");
    }
    life.start_and_wait();
    assert_eq!(cells(&life), ENFORCED);
}

#[test]
fn other_bridges_and_other_veths_are_left_alone() {
    if !is_root("a lab") {
        return;
    }
    let mut life = bridged();
    for command in [
        "ip link add docker0 type bridge",
        "ip addr add 172.17.0.1/16 dev docker0",
        "ip link add other type veth peer name other-peer",
        "ip link set other master docker0",
        "ip link add stray type veth peer name stray-peer",
        "ip link set stray master cni0",
        "ip link add lone type veth peer name lone-peer",
        "ip link set docker0 up",
        "ip link set other up",
        "ip link set stray up",
    ] {
        run(life.lab.node(), command);
    }
    life.start_and_wait();
    let links = fs::read_dir(Pins::new(life.lab.bpffs()).links()).unwrap();
    let pinned: BTreeSet<String> =
        links.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(pinned.len(), 6, "two for each pod: {pinned:?}");
    assert_eq!(cells(&life), ENFORCED);
}

/// While the bridge does not know where a pod is it floods, and what the node sends loses its socket on the way.
#[test]
fn what_the_bridge_forgets_it_hears_again() {
    if !is_root("a lab") {
        return;
    }
    let mut life = bridged();
    life.start_and_wait();
    let (server, port) = (mac(&life, "server"), device(&life, "server"));
    for round in 0..5 {
        // The agent has seen the last round's end.
        sleep(Duration::from_millis(200));
        run(life.lab.node(), &format!("bridge fdb del {server} dev {port} master"));
        let took = wait_until("the server is heard again", || !heard_at(&life, &server).is_empty());
        println!("round {round}: heard again after {took:?}");
        assert_eq!(heard_at(&life, &server), [port.clone()].into());
    }
    assert_eq!(cells(&life), ENFORCED);
}

/// Packets that were dropped because the bridge had copied them to a port that they were not for.
fn strays(life: &Life) -> u64 {
    let pin = Pins::new(life.lab.bpffs()).maps().join("verdicts");
    let map = Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap();
    let verdicts = PerCpuArray::<_, [u64; 2]>::try_from(map).unwrap();
    let cell = verdict_cell(Direction::Ingress, Outcome::Deny, Reason::OtherStation);
    verdicts.get(&cell, 0).unwrap().iter().map(|[packets, _]| packets).sum()
}

#[test]
fn what_a_bridge_floods_reaches_nobody_else() {
    if !is_root("a lab") {
        return;
    }
    let mut life = bridged();
    life.start_and_wait();
    let arrives = |life: &Life| {
        let probe = [to_server("friend", Protocol::Udp)];
        life.lab.probe(&probe, &ProbeOptions::default()).unwrap()[0].cell()
    };
    assert_eq!(arrives(&life), '.', "from here on the friend knows the server's MAC address");
    // Nobody makes the bridge hear the server again before the packet; enforcement goes on without the agent.
    life.lab.kill(Signal::SIGKILL).unwrap();
    let (server, port) = (mac(&life, "server"), device(&life, "server"));
    let before = strays(&life);
    run(life.lab.node(), &format!("bridge fdb del {server} dev {port} master"));
    assert_eq!(arrives(&life), '.');
    assert_eq!(strays(&life) - before, 2, "one at the stranger's port, one back at the friend's");
}

/// T6: a pod that sends with another's MAC address draws none of its traffic away.
#[test]
fn a_forged_mac_address_moves_nothing() {
    if !is_root("a lab") {
        return;
    }
    let mut life = bridged();
    life.start_and_wait();
    let (server, port) = (mac(&life, "server"), device(&life, "server"));
    let stream = life.lab.stream(&to_server("friend", Protocol::Udp), Duration::from_millis(1)).unwrap();
    run(life.lab.pod(&pod("stranger")).unwrap(), &format!("ip link set eth0 address {server}"));
    for _ in 0..3 {
        let probes = [Probe {
            from: Client::Pod(pod("stranger")),
            to: Target::Pod(pod("friend"), Family::Ipv4),
            ask: Ask::Port(Protocol::Udp, PORT),
        }];
        let options = ProbeOptions { timeout: Duration::from_millis(200), ..ProbeOptions::default() };
        let outcomes = life.lab.probe(&probes, &options).unwrap();
        assert_eq!(outcomes[0].cell(), 'X', "a frame with a forged address passed");
        assert_eq!(heard_at(&life, &server), [port.clone()].into());
    }
    let stream = stream.finish().unwrap();
    assert_eq!(stream.missing, Vec::<u64>::new(), "the server missed what was meant for it");
    assert!(stream.sent > 300, "{stream:?}");
}

/// Two pods that seem to be at one port: neither gets it on hearsay, and the truth is found.
#[test]
fn a_forged_neighbour_delays_and_opens_nothing() {
    if !is_root("a lab") {
        return;
    }
    let mut life = bridged();
    let server = mac(&life, "server");
    for address in [SERVER, FRIEND] {
        run(life.lab.node(), &format!("ip neigh replace {address} lladdr {server} dev cni0 nud reachable"));
    }
    life.start_and_wait();
    assert_eq!(cells(&life).chars().nth(1), Some('X'), "the stranger reached the server");
    let took = wait_until("the policy is in force", || cells(&life) == ENFORCED);
    println!("in force after {took:?}");
}

/// While it is not clear who is at which port nothing passes but what can make it clear, over a restart too.
#[test]
fn what_stays_unclear_stays_closed() {
    if !is_root("a lab") {
        return;
    }
    let mut life = bridged();
    // Set by an administrator: the agent leaves it as it is.
    let forged = format!("{FRIEND} lladdr {} dev cni0 nud permanent", mac(&life, "server"));
    run(life.lab.node(), &format!("ip neigh replace {forged}"));
    life.start_and_wait();
    assert_eq!(cells(&life), "XXXXX");
    let log = fs::read_to_string(life.lab.agent_log()).unwrap();
    assert!(log.contains("Pod life/friend status.podIPs: answers at pcl"), "{log}");
    life.lab.kill(Signal::SIGKILL).unwrap();
    // What was closed by the first agent can tell the second whose it is.
    run(life.lab.node(), &format!("ip neigh del {FRIEND} dev cni0"));
    for name in ["server", "friend"] {
        run(
            life.lab.node(),
            &format!("bridge fdb del {} dev {} master", mac(&life, name), device(&life, name)),
        );
    }
    life.start_and_wait();
    wait_until("the policy is in force", || cells(&life) == ENFORCED);
}

/// The kernel resets what comes to a closed port by a packet without a socket, in IPv6: it passes as an answer.
#[test]
fn a_reset_that_the_kernel_makes_is_an_answer() {
    if !is_root("a lab") {
        return;
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "life", "name": "caller"},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"podIPs": [{"ip": "10.77.0.9"}, {"ip": "fd77::9"}]},
    });
    let closed = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "life", "name": "caller"},
        "spec": {
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "egress": [{"ports": [{"port": 9}]}],
        },
    });
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "life"}});
    let state = State::of_objects(&[namespace, pod, closed]);
    let live = Live::up(&state, Vec::new(), Rig { hook: Hook::Auto, cni: Cni::Bridge });
    let probe = |family, port| Probe {
        from: Client::Pod(ObjectKey::new("life", "caller")),
        to: Target::Node(family),
        ask: Ask::Port(Protocol::Tcp, port),
    };
    let probes: Vec<Probe> =
        [Family::Ipv4, Family::Ipv6].into_iter().flat_map(|f| [probe(f, 9), probe(f, 10)]).collect();
    let outcomes = live.lab().probe(&probes, &ProbeOptions::default()).unwrap();
    assert_eq!(
        outcomes.iter().map(portcullis_lab::Outcome::cell).collect::<String>(),
        ".X.X",
        "{outcomes:?}"
    );
}

/// Another veth pair, another MAC address, the same pod and address.
#[test]
fn a_pod_that_comes_back_at_another_port_is_enforced_there() {
    if !is_root("a lab") {
        return;
    }
    let mut life = bridged();
    life.start_and_wait();
    assert_eq!(cells(&life), ENFORCED);
    let before = device(&life, "server");
    let stream = life.lab.stream(&to_server("stranger", Protocol::Udp), Duration::from_millis(1)).unwrap();
    life.lab.remove_pod(&pod("server")).unwrap();
    life.lab.add_pod(&pod("server"), &[SERVER.parse().unwrap()]).unwrap();
    assert_ne!(device(&life, "server"), before);
    sleep(Duration::from_secs(1));
    let stream = stream.finish().unwrap();
    println!("{} of {} denied datagrams arrived while the pod was new", stream.arrived, stream.sent);
    let took = wait_until("the policy is in force", || cells(&life) == ENFORCED);
    println!("in force {took:?} after a second");
}
