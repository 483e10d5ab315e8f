//! `preflight`, and what a starting agent refuses, in network namespaces with programs of somebody else.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Output};
use std::thread;

use portcullis_tests::device::{Veth, own_namespace};
use portcullis_tests::foreign::{At, Body, attach, make_chain};
use portcullis_tests::lifecycle::agent;
use portcullis_tests::privilege::is_root;
use serde_json::Value;

/// Runs something on a thread in a network namespace of its own, with a veth pair.
fn in_namespace(work: impl FnOnce(&Veth) + Send) {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            own_namespace().unwrap();
            work(&Veth::create("pod0").unwrap());
        });
        worker.join().unwrap();
    });
}

fn portcullis(words: &[&str]) -> Output {
    Command::new(agent()).args(words).env_remove("PORTCULLIS_FORCE").output().unwrap()
}

/// State, finding and remedy of the checks of a name.
fn checks(hook: &str, name: &str) -> Vec<(String, String)> {
    let output = portcullis(&["preflight", "--hook", hook, "-o", "json"]);
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let fit = all["fit"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if fit { 0 } else { 3 }));
    let found = all["checks"].as_array().unwrap().iter().filter(|check| check["name"] == name);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    found
        .map(|check| (text(&check["state"]), text(&check["finding"]) + "; " + &text(&check["remedy"])))
        .collect()
}

#[test]
fn an_empty_namespace_has_no_neighbours_and_both_hooks() {
    if !is_root("programs in network namespaces") {
        return;
    }
    in_namespace(|_| {
        assert_eq!(checks("auto", "foreign")[0].0, "ok");
        for hook in ["tcx", "clsact"] {
            let [(state, finding)] = &checks(hook, "hook")[..] else { panic!("one line a hook") };
            assert!(state == "ok" && finding.starts_with(hook), "{hook}: {state} {finding}");
        }
        for name in ["kernel", "capabilities", "seccomp", "programs"] {
            assert_eq!(checks("auto", name)[0].0, "ok", "{name}");
        }
    });
}

#[test]
fn a_node_with_a_bpffs_is_fit() {
    if !is_root("mounting a bpffs") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("portcullis-preflight-bpffs-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let look = |prepare: &str| {
        let words = format!("{prepare} \"$1\" && exec \"$0\" preflight --bpffs \"$1\"");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "private", "sh", "-c", &words]);
        let output = command.arg(agent()).arg(&dir).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, said) = look("mount -t bpf bpf");
    assert!(status == Some(0) && said.contains("✓ bpffs") && said.ends_with("\nfit\n"), "{said}");
    let (status, said) = look("mount -t bpf -o ro bpf");
    assert!(status == Some(3) && said.contains("✗ bpffs") && said.ends_with("\nnot fit\n"), "{said}");
    let (status, said) = look("mount -t tmpfs tmpfs");
    assert!(status == Some(3) && said.contains("mount -t bpf bpf"), "{said}");
    std::fs::remove_dir(&dir).unwrap();
}

#[test]
fn programs_of_others_are_told_by_name_place_and_what_they_call() {
    if !is_root("programs in network namespaces") {
        return;
    }
    in_namespace(|veth| {
        let _harmless = attach("somebodys", Body::Nothing, At::TcxIngress, veth.index).unwrap();
        let _xdp = attach("an_xdp", Body::Nothing, At::Xdp, veth.index).unwrap();
        let found = checks("tcx", "foreign");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|(state, _)| state == "note"), "{found:?}");
        assert!(
            found[0].1.starts_with("program an_xdp (id ") && found[0].1.contains("at XDP of pod0"),
            "{found:?}"
        );
        assert!(
            found[1].1.contains("program somebodys") && found[1].1.contains("TCX ingress of pod0"),
            "{found:?}"
        );
        assert_eq!(checks("clsact", "foreign")[1].0, "warning", "it runs before clsact");

        let _redirects = attach("redirects", Body::REDIRECT, At::TcxIngress, veth.index).unwrap();
        let found = checks("tcx", "foreign");
        assert!(
            found.iter().any(|(state, text)| state == "warning" && text.contains("calls bpf_redirect:")),
            "{found:?}"
        );
    });
}

#[test]
fn a_containers_capabilities_are_enough() {
    if !is_root("dropping capabilities") {
        return;
    }
    in_namespace(|veth| {
        let _other = attach("somebodys", Body::Nothing, At::TcxIngress, veth.index).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-all,+bpf,+net_admin,+perfmon"]).arg(agent());
        let output = command.args(["preflight", "-o", "json"]).output().unwrap();
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let check = |name: &str| {
            let found = all["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap();
            (found["state"].as_str().unwrap(), found["finding"].as_str().unwrap())
        };
        for name in ["capabilities", "seccomp", "programs"] {
            assert_eq!(check(name).0, "ok", "{name}: {}", check(name).1);
        }
        assert!(
            check("hook").0 == "note" && check("hook").1.contains("CAP_SYS_ADMIN"),
            "{:?}",
            check("hook")
        );
        // Who it is and what it does only SYS_ADMIN may ask; that it is there is told.
        assert!(
            check("foreign").0 == "warning" && check("foreign").1.contains("pod0"),
            "{:?}",
            check("foreign")
        );
    });
}

#[test]
fn what_redirects_around_us_is_refused_unless_forced() {
    if !is_root("programs in network namespaces") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("portcullis-preflight-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.to_str().unwrap();
    let run_dir = dir.join("run");
    // No bpffs: an agent that is not refused ends there, having attached nothing.
    let start = ["agent", "--source", path, "--run-dir", run_dir.to_str().unwrap(), "--bpffs", path];
    in_namespace(|veth| {
        let peer = attach("short_cut", Body::REDIRECT_PEER, At::TcxIngress, veth.index).unwrap();
        let found = checks("auto", "foreign");
        let [(state, text)] = &found[..] else { panic!("{found:?}") };
        assert!(
            state == "failed" && text.contains("short_cut") && text.contains("bpf_redirect_peer"),
            "{text}"
        );

        let refused = portcullis(&start);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(3), "{said}");
        assert!(said.contains("short_cut") && said.contains("--force") && !said.contains("bpffs"), "{said}");

        let forced = portcullis(&[&start[..], &["--force"]].concat());
        let said = String::from_utf8(forced.stderr).unwrap();
        assert!(said.contains("short_cut") && said.contains("not a bpffs"), "{said}");

        drop(peer);
        let alone = portcullis(&start);
        let said = String::from_utf8(alone.stderr).unwrap();
        assert!(!said.contains("short_cut") && said.contains("not a bpffs"), "{said}");
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_dns_cache_and_an_engines_interface_are_found() {
    if !is_root("programs in network namespaces") {
        return;
    }
    in_namespace(|_| {
        assert!(checks("auto", "dns").is_empty() && checks("auto", "engines").is_empty());
        for words in ["addr add 169.254.20.10/32 dev lo", "link set pod0 name cali12345"] {
            let done = Command::new("ip").args(words.split(' ')).status().unwrap();
            assert!(done.success(), "ip {words}");
        }
        assert_eq!(checks("auto", "dns")[0].0, "warning");
        let engines = checks("auto", "engines");
        assert!(engines[0].0 == "warning" && engines[0].1.contains("Calico"), "{engines:?}");
        make_chain("filter", "KUBE-ROUTER-FORWARD").unwrap();
        let engines = checks("auto", "engines");
        assert_eq!(engines.len(), 2, "{engines:?}");
        assert!(
            engines[1].1.contains("kube-router") && engines[1].1.contains("filter/KUBE-ROUTER-FORWARD"),
            "{engines:?}"
        );
    });
}
