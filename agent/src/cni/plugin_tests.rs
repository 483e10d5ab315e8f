//! What the plugin says without an agent; with one and with pods, `tests/tests/lab_cni.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use crate::scratch::Scratch;

fn environment(command: &str) -> Environment {
    Environment {
        command: command.to_owned(),
        container: "c1".to_owned(),
        netns: "/proc/self/ns/net".to_owned(),
        ifname: "lo".to_owned(),
        args: "K8S_POD_NAMESPACE=a;K8S_POD_NAME=x".to_owned(),
    }
}

fn input(run_dir: &Path, more: &str) -> String {
    let run_dir = run_dir.display();
    format!(r#"{{"cniVersion":"1.1.0","name":"n","runDir":"{run_dir}","timeoutSeconds":1{more}}}"#)
}

fn code(result: Result<String, CniError>) -> u32 {
    result.unwrap_err().code.number()
}

#[test]
fn versions_are_told_in_the_runtime_s_own() {
    let answer: Value =
        serde_json::from_str(&run(&environment("VERSION"), r#"{"cniVersion":"0.4.0"}"#).unwrap()).unwrap();
    assert_eq!(
        answer,
        json!({"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
    );
    // A runtime that says none.
    let answer: Value = serde_json::from_str(&run(&environment("VERSION"), "").unwrap()).unwrap();
    assert_eq!(answer["cniVersion"], json!("1.1.0"));
}

#[test]
fn an_error_has_the_form_of_the_specification() {
    let error = CniError::new(Code::TryAgainLater, "not \"now\"", "wait");
    assert_eq!(
        serde_json::from_str::<Value>(&error.json("1.0.0")).unwrap(),
        json!({"cniVersion": "1.0.0", "code": 11, "msg": "portcullis: not \"now\": wait", "details": "wait"})
    );
}

#[test]
fn what_is_missing_is_named() {
    let dir = Scratch::new();
    let text = input(dir.path(), r#","prevResult":{"ips":[{"address":"10.0.0.1/32"}]}"#);
    assert_eq!(code(run(&environment(""), &text)), 4);
    assert_eq!(code(run(&environment("UPDATE"), &text)), 4);
    for (field, set) in [
        ("CNI_CONTAINERID", Environment { container: String::new(), ..environment("ADD") }),
        ("CNI_NETNS", Environment { netns: String::new(), ..environment("ADD") }),
        ("CNI_IFNAME", Environment { ifname: String::new(), ..environment("ADD") }),
        ("K8S_POD_NAMESPACE", Environment { args: String::new(), ..environment("ADD") }),
    ] {
        let error = run(&set, &text).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.message.contains(field), "{field}: {error:?}");
    }
    assert_eq!(code(run(&environment("ADD"), &input(dir.path(), ""))), 7);
    assert_eq!(code(run(&environment("GC"), &input(dir.path(), ""))), 7);
    assert_eq!(code(run(&environment("ADD"), "")), 6);
    assert_eq!(code(run(&environment("ADD"), r#"{"cniVersion":"0.1.0"}"#)), 1);
}

#[test]
fn an_interface_that_is_no_veth_is_refused() {
    let dir = Scratch::new();
    let text = input(dir.path(), r#","prevResult":{"ips":[{"address":"10.0.0.1/32"}]}"#);
    // lo of this very namespace.
    if nix::unistd::geteuid().is_root() {
        assert_eq!(code(run(&environment("ADD"), &text)), 100);
    }
    let nowhere = Environment { netns: "/nowhere/at/all".to_owned(), ..environment("ADD") };
    assert_eq!(code(run(&nowhere, &text)), 5);
}

#[test]
fn without_an_agent_deleting_succeeds_and_status_says_so() {
    let dir = Scratch::new();
    let text = input(dir.path(), r#","cni.dev/valid-attachments":[],"prevResult":{}"#);
    assert_eq!(run(&environment("DEL"), &text).unwrap(), "");
    assert_eq!(run(&environment("GC"), &text).unwrap(), "");
    assert_eq!(code(run(&environment("STATUS"), &text)), 50);
    assert_eq!(code(run(&environment("CHECK"), &text)), 11);
    let open = input(dir.path(), r#","whenUnavailable":"allow","prevResult":{}"#);
    assert_eq!(run(&environment("STATUS"), &open).unwrap(), "");
    assert_eq!(run(&environment("CHECK"), &open).unwrap(), "");
}

#[test]
fn who_takes_the_call_and_answers_nothing_counts_as_there() {
    use std::os::unix::net::UnixListener;

    let dir = Scratch::new();
    let listener = UnixListener::bind(socket(dir.path())).unwrap();
    let made = Made {
        network: "n".to_owned(),
        attachment: Attachment { container: "c".to_owned(), ifname: "eth0".to_owned() },
        namespace: "a".to_owned(),
        pod: "x".to_owned(),
        uid: None,
        interface: 1,
        name: "veth".to_owned(),
        station: None,
        addresses: Vec::new(),
    };
    let path = socket(dir.path());
    let worker = thread::spawn(move || hold(&path, &made, Instant::now() + Duration::from_secs(1)));
    while !worker.is_finished() {
        listener.set_nonblocking(true).unwrap();
        // Hung up on at once, as by an agent that is killed.
        drop(listener.accept());
        thread::sleep(Duration::from_millis(5));
    }
    let Held::Waited(why) = worker.join().unwrap() else { panic!("somebody was there") };
    assert!(why.contains("the agent"), "{why}");
}
