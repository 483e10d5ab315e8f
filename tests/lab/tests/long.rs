//! Connections that are held, streams that are counted, and an agent that is started and killed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use common::{assert_gone, blackhole, is_root, key, three_pods};
use nix::sys::signal::Signal;
use portcullis_lab::traffic::Liveness;
use portcullis_lab::{AgentSpec, Ask, Client, Family, Hook, Lab, LabOptions, Probe, Target};
use portcullis_policy::model::Protocol;

fn probe(from: &str, to: &str, protocol: Protocol) -> Probe {
    Probe {
        from: Client::Pod(key(from)),
        to: Target::Pod(key(to), Family::Ipv4),
        ask: Ask::Port(protocol, 80),
    }
}

fn up() -> Lab {
    Lab::up(&three_pods(), LabOptions::default()).unwrap()
}

#[test]
fn held_connections_tell_alive_from_silent() {
    if !is_root("held_connections_tell_alive_from_silent") {
        return;
    }
    let lab = up();
    let probes: Vec<Probe> =
        (0..100).map(|n| probe("a", if n % 2 == 0 { "b" } else { "c" }, Protocol::Tcp)).collect();
    let mut held = lab.hold(&probes).unwrap();
    assert_eq!(held.len(), 100);
    assert_eq!(held.ping(Duration::from_secs(1)).unwrap(), [Liveness::Alive; 100]);

    blackhole(lab.node(), "add", "10.244.0.10", "10.244.0.11");
    let states = held.ping(Duration::from_millis(500)).unwrap();
    assert!(states.chunks(2).all(|pair| pair == [Liveness::Silent, Liveness::Alive]), "{states:?}");

    // TCP sends again what was lost.
    blackhole(lab.node(), "del", "10.244.0.10", "10.244.0.11");
    assert_eq!(held.ping(Duration::from_secs(5)).unwrap(), [Liveness::Alive; 100]);
}

#[test]
fn streams_are_counted_where_they_arrive() {
    if !is_root("streams_are_counted_where_they_arrive") {
        return;
    }
    let lab = up();
    let millisecond = Duration::from_millis(1);
    blackhole(lab.node(), "add", "10.244.0.10", "192.168.1.3");
    let allowed = lab.stream(&probe("b", "c", Protocol::Udp), millisecond).unwrap();
    let denied = lab.stream(&probe("a", "c", Protocol::Udp), millisecond).unwrap();
    thread::sleep(Duration::from_millis(400));
    let (allowed, denied) = (allowed.finish().unwrap(), denied.finish().unwrap());
    assert!(allowed.sent > 300, "{allowed:?}");
    assert_eq!((allowed.arrived, allowed.answered, allowed.duplicated), (allowed.sent, allowed.sent, 0));
    assert!(allowed.missing.is_empty());
    assert!(denied.sent > 300, "{denied:?}");
    assert_eq!((denied.arrived, denied.answered), (0, 0));
    assert_eq!(denied.missing.len() as u64, denied.sent);
}

/// A script in place of the agent.
fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn an_agent_lives_in_the_nodes_namespace() {
    if !is_root("an_agent_lives_in_the_nodes_namespace") {
        return;
    }
    let mut lab = up();
    let (id, dir) = (lab.id().to_owned(), lab.run_dir().to_owned());
    // Its own arguments, bpffs and namespace, then a change after a while.
    let text = r#"echo "$@" > "$5/args"; stat -f -c %T "$7" > "$5/fs"; ls /sys/class/net > "$5/sys"
ip -br link > "$5/links"; echo '{"applied": 1}' > "$5/ready"; sleep 0.3; echo '{"applied": 2}' > "$5/ready"
exec sleep 60"#;
    let binary = script(&dir, "agent", text);
    let spec =
        AgentSpec { binary, source: dir.clone(), hook: Hook::Clsact, arguments: vec!["--extra".into()] };
    lab.start_agent(&spec).unwrap();
    assert_eq!(lab.wait_applied(1, Duration::from_secs(5)).unwrap(), 1);
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let dir_name = dir.display();
    let bpffs = lab.bpffs().display();
    assert_eq!(
        read("args").trim(),
        format!(
            "agent --source {dir_name} --run-dir {dir_name} --bpffs {bpffs} --node-name node --hook clsact --extra \
             --services deny"
        )
    );
    assert_eq!(read("fs").trim(), "bpf_fs");
    assert!(read("links").contains("pcl2"), "{}", read("links"));
    assert_eq!(lab.wait_applied(2, Duration::from_secs(5)).unwrap(), 2);

    let pid = lab.agent_pid().unwrap();
    assert!(lab.start_agent(&spec).is_err(), "one agent at a time");
    let status = lab.kill(Signal::SIGKILL).unwrap().unwrap();
    assert!(!status.success());
    assert_eq!(lab.agent_pid(), None);
    lab.start_agent(&spec).unwrap();
    // What the first one said is not taken for the second one's word.
    assert_eq!(lab.wait_applied(1, Duration::from_secs(5)).unwrap(), 1);
    let second = lab.agent_pid().unwrap();
    assert_ne!(second, pid);
    drop(lab);
    assert!(!Path::new(&format!("/proc/{second}")).exists());
    assert_gone(&id);
}

#[test]
fn an_agent_that_ends_is_an_error_with_its_last_words() {
    if !is_root("an_agent_that_ends_is_an_error_with_its_last_words") {
        return;
    }
    let mut lab = up();
    let dir = lab.run_dir().to_owned();
    let binary = script(&dir, "agent", "echo 'no bpffs today' >&2; exit 3");
    let spec = AgentSpec { binary, source: dir, hook: Hook::Auto, arguments: Vec::new() };
    lab.start_agent(&spec).unwrap();
    let error = lab.wait_applied(1, Duration::from_secs(5)).unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("no bpffs today"), "{error}");
}
