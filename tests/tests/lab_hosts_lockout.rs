//! Nobody is locked out by the host firewall (T20): what always passes, what is rolled back by itself, the verb that turns it off,
//! and pods of which nothing is known yet.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use portcullis_lab::{Family, Hook};
use portcullis_policy::model::Protocol;
use portcullis_tests::field::run;
use portcullis_tests::hosts::{At, PORT, Party, Place, Stage};
use portcullis_tests::lifecycle::PATIENCE;
use portcullis_tests::privilege::is_root;
use portcullis_tests::services::QUIET;
use serde_json::{Value, json};

fn host_policy(name: &str, subject: &Value, types: &[&str]) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy", "metadata": {"name": name},
        "spec": {"subject": subject, "policyTypes": types}})
}

/// Both ways, the node and all pods in its network.
fn nothing_passes() -> [Value; 2] {
    let both = ["Ingress", "Egress"];
    [
        host_policy("deny-nodes", &json!({"nodes": {}}), &both),
        host_policy("deny-pods", &json!({"pods": {}}), &both),
    ]
}

fn at(of: Party, port: u16) -> At {
    At { of, place: Place::Address, protocol: Protocol::Tcp, family: Family::Ipv4, port }
}

fn connects(stage: &Stage, to: SocketAddr) -> bool {
    stage.lab().outside().run(|| TcpStream::connect_timeout(&to, QUIET)).unwrap().is_ok()
}

#[test]
fn t20_a_policy_that_denies_everything_loses_nobody() {
    if !is_root("t20_a_policy_that_denies_everything_loses_nobody") {
        return;
    }
    // The other end of what the agent calls its API server is the outside, which serves this port.
    let mut stage = Stage::up(Hook::Tcx, &["--api-server=192.0.2.1:5000", "--rollback-after=0"]);
    let node = stage.address(Party::Host, Place::Address, Family::Ipv4);
    let p = stage.address(Party::Pod, Place::Address, Family::Ipv4);
    // Its ports lead to a pod, by nobody's socket.
    let rules = format!(
        "table ip np {{\n chain pre {{\n type nat hook prerouting priority -100; ip daddr {node} tcp dport 30080 dnat to {p}:{PORT}\n }}\n}}"
    );
    let _ = run(stage.lab().node(), &["nft", &rules]);
    let listeners: Vec<TcpListener> =
        [(Party::Host, 22), (Party::Host, 10250), (Party::X, 6443), (Party::Y, 2379)]
            .into_iter()
            .map(|(party, port)| {
                stage.enter(party);
                stage.lab().node().run(|| TcpListener::bind((node, port))).unwrap().unwrap()
            })
            .collect();
    // Held while the policies come.
    let held: Vec<TcpStream> = [22, 10250]
        .map(|port| stage.lab().outside().run(|| TcpStream::connect((node, port))).unwrap().unwrap())
        .into();
    stage.apply(&nothing_passes());
    for listener in &listeners {
        assert!(connects(&stage, listener.local_addr().unwrap()), "{listener:?}");
    }
    assert!(connects(&stage, SocketAddr::new(node, 30080)), "a node port is not the node's traffic");
    for (from, reaches) in [(Party::Host, true), (Party::X, true)] {
        assert_eq!(stage.reaches(from, at(Party::Outside, PORT)), reaches, "{from:?}: the API server");
        assert!(!stage.reaches(from, at(Party::Outside, PORT + 1)), "{from:?}");
        assert!(!stage.reaches(Party::Outside, at(from, from.ports().start)), "{from:?}");
    }
    // The kubelet's probes.
    assert!(stage.reaches(Party::Host, at(Party::Pod, PORT)));
    assert!(stage.reaches(Party::Host, at(Party::X, 7000)));
    for (stream, listener) in held.iter().zip(&listeners) {
        let (accepted, _) = listener.accept().unwrap();
        (&accepted).write_all(b"x").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = stream;
        assert_eq!(stream.read(&mut [0; 4]).unwrap(), 1, "a held connection goes on");
    }
    // The last resort; an agent that starts anew keeps to it.
    let (code, text) = stage.verb(&["host-firewall", "off"]);
    assert_eq!(code, 0, "{text}");
    assert!(stage.reaches(Party::Outside, at(Party::X, 7000)));
    std::thread::sleep(Duration::from_secs(3));
    assert!(stage.reaches(Party::Outside, at(Party::X, 7001)), "the agent keeps to it");
    assert!(stage.verb(&["host-firewall", "status"]).1.contains("turned off"));
    let (code, text) = stage.verb(&["host-firewall", "on"]);
    assert_eq!(code, 0, "{text}");
    until(|| !stage.reaches(Party::Outside, at(Party::X, 7000)), "it is on again");
    stage.down();
}

/// The agent is a process of the node here; the other node's kubelet is what it reached before.
#[test]
fn t20_what_cuts_the_node_off_is_rolled_back_until_it_changes() {
    if !is_root("t20_what_cuts_the_node_off_is_rolled_back_until_it_changes") {
        return;
    }
    let mut stage = Stage::up(Hook::Tcx, &["--rollback-after=3"]);
    stage.apply(&nothing_passes());
    assert!(!stage.reaches(Party::Outside, at(Party::X, 7000)));
    until(|| stage.reaches(Party::Outside, at(Party::X, 7000)), "it is rolled back");
    let (_, text) = stage.verb(&["status"]);
    assert!(text.contains("HostPolicy deny-nodes") && text.contains("rolled back"), "{text}");
    // Not by a restart either.
    stage.kill(nix::sys::signal::Signal::SIGKILL);
    stage.restart();
    std::thread::sleep(Duration::from_secs(5));
    assert!(stage.reaches(Party::Outside, at(Party::X, 7000)));
    // It is tried again when it changes.
    let harmless = host_policy(
        "deny-pods",
        &json!({"pods": {"podSelector": {"matchLabels": {"app": "x"}}}}),
        &["Ingress"],
    );
    stage.apply(&[harmless]);
    until(|| !stage.reaches(Party::Outside, at(Party::X, 7000)), "the changed policy is in force");
    std::thread::sleep(Duration::from_secs(6));
    assert!(!stage.reaches(Party::Outside, at(Party::X, 7000)), "and stays");
    stage.down();
}

/// T15: from the first packet, in a cgroup as the driver cgroupfs names it; with `--unknown-pod=allow` nobody judges it.
#[test]
fn t15_a_pod_of_which_nothing_is_known_is_closed_but_for_failsafe_ports() {
    if !is_root("t15_a_pod_of_which_nothing_is_known_is_closed_but_for_failsafe_ports") {
        return;
    }
    for (arguments, opens) in [(&[][..], false), (&["--unknown-pod=allow"][..], true)] {
        let mut stage = Stage::up(Hook::Tcx, arguments);
        let uid = "0e000000-0000-4000-8000-00000000000e";
        let cgroup = stage.root().join(format!("kubepods/burstable/pod{uid}/c"));
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let to =
            |port: u16| SocketAddr::new(stage.address(Party::Outside, Place::Address, Family::Ipv4), port);
        let reaches = |port| stage.lab().node().run(|| TcpStream::connect_timeout(&to(port), QUIET)).unwrap();
        assert_eq!(reaches(PORT).is_ok(), opens);
        // A refusal comes back by a failsafe port.
        assert_eq!(reaches(6443).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        // It becomes known.
        let mut objects = stage.objects(&[]);
        let mut pod = objects.iter().find(|one| one["metadata"]["name"] == "x").unwrap().clone();
        pod["metadata"] = json!({"name": "late", "namespace": "apps", "uid": uid, "labels": {"app": "late"}});
        objects.push(pod);
        let before = reaches(PORT).is_ok();
        stage.apply_all(&objects);
        assert_eq!(before, opens);
        let outside = SocketAddr::new(stage.address(Party::Outside, Place::Address, Family::Ipv4), PORT);
        let now = stage.lab().node().run(|| TcpStream::connect_timeout(&outside, QUIET)).unwrap();
        assert!(now.is_ok(), "no policy selects it");
        // Gone with the pod.
        stage.enter(Party::Host);
        fs::remove_dir(&cgroup).unwrap();
        fs::remove_dir(cgroup.parent().unwrap()).unwrap();
        fs::remove_dir(cgroup.parent().unwrap().parent().unwrap()).unwrap();
        until(
            || stage.verb(&["endpoints"]).1.lines().all(|line| !line.contains("late")),
            "its endpoint goes",
        );
        stage.down();
    }
}

fn until(mut is: impl FnMut() -> bool, what: &str) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
