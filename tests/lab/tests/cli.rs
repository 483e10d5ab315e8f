//! The binary: up, probe and down are three processes, and a dead owner's lab is swept.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use common::{assert_gone, is_root};

const PODS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: x}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
status: {podIPs: [{ip: 10.244.0.10}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: x}
spec: {containers: [{name: c, ports: [{containerPort: 53, protocol: UDP}]}]}
status: {podIPs: [{ip: 10.244.0.11}]}
";

fn lab(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portcullis-lab")).args(args).output().unwrap()
}

#[test]
fn up_probe_down() {
    if !is_root("up_probe_down") {
        return;
    }
    let id = format!("cli{}", std::process::id());
    let dir = std::env::temp_dir().join(format!("portcullis-lab-{id}"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("pods.yaml"), PODS).unwrap();
    let source = dir.to_str().unwrap();

    let nowhere = lab(&["probe", "--source", source, "--id", &id]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("there is no lab"), "{nowhere:?}");

    let up = lab(&["up", "--source", source, "--id", &id, "--no-agent"]);
    assert!(up.status.success(), "{up:?}");
    let probe = lab(&["probe", "--source", source, "--id", &id, "-o", "json"]);
    let table = lab(&["probe", "--source", source, "--id", &id, "TCP/81"]);
    let down = lab(&["down", "--id", &id]);
    let again = lab(&["down", "--id", &id]);
    fs::remove_dir_all(&dir).unwrap();

    assert_eq!(
        String::from_utf8_lossy(&probe.stdout),
        r#"[{"protocol":"TCP","port":80,"family":"ipv4","order":["x/a","x/b"],"rows":["-.",".-"]},{"protocol":"UDP","port":53,"family":"ipv4","order":["x/a","x/b"],"rows":["-.",".-"]}]"#
            .to_owned() + "\n"
    );
    assert_eq!(
        String::from_utf8_lossy(&table.stdout),
        "TCP/81 ipv4\n  from \\ to 1 2\n1 x/a       - .\n2 x/b       . -\n"
    );
    assert!(down.status.success(), "{down:?}");
    assert!(String::from_utf8_lossy(&down.stdout).contains("(servers)"), "{down:?}");
    assert_eq!(String::from_utf8_lossy(&again.stdout), format!("there is no lab `{id}`\n"));
    assert_gone(&id);
}

#[test]
fn a_missing_agent_leaves_nothing() {
    if !is_root("a_missing_agent_leaves_nothing") {
        return;
    }
    let id = format!("clim{}", std::process::id());
    let dir = std::env::temp_dir().join(format!("portcullis-lab-{id}"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("pods.yaml"), PODS).unwrap();
    let up =
        lab(&["up", "--source", dir.to_str().unwrap(), "--id", &id, "--agent", "/nonexistent/portcullis"]);
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(up.status.code(), Some(3), "{up:?}");
    assert_gone(&id);
}

#[test]
fn a_dead_owners_lab_is_swept() {
    if !is_root("a_dead_owners_lab_is_swept") {
        return;
    }
    let id = format!("clis{}", std::process::id());
    let dir = std::env::temp_dir().join(format!("portcullis-lab-{id}"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("pods.yaml"), PODS).unwrap();
    // An agent that never gets ready, and does not listen.
    let agent = dir.join("agent");
    fs::write(&agent, "#!/bin/sh\ntrap '' TERM\necho $$ > \"$5/pid\"; while :; do sleep 0.1; done\n")
        .unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let mut up = Command::new(env!("CARGO_BIN_EXE_portcullis-lab"))
        .args(["up", "--source", dir.to_str().unwrap(), "--id", &id, "--agent", agent.to_str().unwrap()])
        .spawn()
        .unwrap();
    let state = portcullis_lab::state::dir(&id);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !state.join("run/pid").exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    portcullis_lab::state::sweep().unwrap();
    let still_there = state.exists();
    let known = portcullis_lab::state::State::read(&id).unwrap().unwrap();
    up.kill().unwrap();
    up.wait().unwrap();

    portcullis_lab::state::sweep().unwrap();
    fs::remove_dir_all(&dir).unwrap();
    assert!(still_there, "a lab whose owner runs was swept");
    assert_gone(&id);
    assert!(!known.agent.unwrap().is_running());
    assert!(!known.servers.unwrap().is_running());
}

#[test]
fn no_pods_is_a_usage_error() {
    let dir = std::env::temp_dir().join(format!("portcullis-lab-empty-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let up = lab(&["up", "--source", dir.to_str().unwrap(), "--no-agent"]);
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(up.status.code(), Some(2), "{up:?}");
}
