//! `preflight`, and what a starting agent refuses, in network namespaces with programs of somebody else.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::device::{Veth, own_namespace};
use portcullis_tests::foreign::{At, Body, attach, make_chain};
use portcullis_tests::lifecycle::agent;
use portcullis_tests::privilege::is_root;
use serde_json::Value;

/// How long an agent may take to say something on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

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

/// Whether there are rights and programs to make rules; as [`is_root`] if not.
fn can_make_rules() -> bool {
    let has_iptables = Command::new("iptables-nft").arg("--version").output().is_ok();
    assert!(has_iptables || std::env::var("CI").as_deref() != Ok("true"), "rules need iptables");
    if !has_iptables {
        println!("skipped: rules need iptables");
    }
    has_iptables && is_root("rules in network namespaces")
}

/// Types rules into the namespace of the calling thread, each a command line.
fn make_rules(lines: &[&str]) {
    for line in lines {
        let done = Command::new("sh").args(["-c", line]).output().unwrap();
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// State of the checks of the mark, and the rules that are named: place, bits and by what.
fn marks(words: &[&str]) -> (Vec<String>, Vec<String>) {
    let output = portcullis(&[&["preflight", "-o", "json"], words].concat());
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks: Vec<&Value> =
        all["checks"].as_array().unwrap().iter().filter(|check| check["name"] == "mark").collect();
    let rules = checks.iter().flat_map(|check| check["rules"].as_array().cloned().unwrap_or_default());
    let named = rules.map(|rule| {
        let part = |key: &str| rule[key].as_str().unwrap().to_owned();
        let place = [part("family"), part("table"), part("chain")].join(" ");
        let which = rule["handle"].as_u64().or(rule["number"].as_u64());
        assert!(which.is_some_and(|which| which > 0), "{rule}");
        format!("{place}: {} {}", part("bits"), part("by"))
    });
    let states = checks.iter().map(|check| {
        format!(
            "{}: {} {}",
            check["state"].as_str().unwrap(),
            check["finding"].as_str().unwrap(),
            check["remedy"]
        )
    });
    (states.collect(), named.collect())
}

#[test]
fn rules_that_write_our_bits_of_the_mark_are_named_and_no_others() {
    if !can_make_rules() {
        return;
    }
    in_namespace(|_| {
        let (states, named) = marks(&[]);
        assert!(named.is_empty() && states.len() == 1 && states[0].starts_with("ok: no rule"), "{states:?}");

        // None of them touches a bit of the default mask.
        make_rules(&[
            "nft 'add table inet t'",
            "nft 'add chain inet t c { type filter hook forward priority 0; }'",
            "nft 'add rule inet t c meta mark set meta mark or 0x4000'",
            "nft 'add rule inet t c ct mark set meta mark'",
            "nft 'add rule inet t c meta mark 0x1 counter accept'",
            "iptables-nft -t mangle -A PREROUTING -j MARK --set-xmark 0x4000/0x4000",
            "iptables-nft -t mangle -A PREROUTING -j CONNMARK --save-mark",
            "iptables-nft -t mangle -A PREROUTING -j CONNMARK --restore-mark --nfmask 0x8000 --ctmask 0x8000",
            "iptables-nft -t nat -A POSTROUTING -j MASQUERADE",
        ]);
        let (states, named) = marks(&[]);
        assert!(named.is_empty() && states.len() == 1, "{states:?} {named:?}");
        assert_eq!(states[0], "ok: no rule of the node writes 0x0fff0000: 7 rules read null");
        // Of another mask some do.
        let (states, named) = marks(&["--mark-mask", "0xfff0"]);
        assert!(states[0].starts_with("warning: 3 of 7 rules can write bits of 0x0000fff0"), "{states:?}");
        assert!(states[0].contains("--mark-mask 0x0fff0000"), "{states:?}");
        assert_eq!(
            named,
            [
                "inet t c: 0x00004000 meta mark set",
                "ip mangle PREROUTING: 0x00004000 MARK",
                "ip mangle PREROUTING: 0x00008000 CONNMARK",
            ]
        );

        make_rules(&[
            "nft 'add rule inet t c ip saddr 10.0.0.0/8 meta mark set mark and 0xff00ffff or 0x40000'",
            "ip6tables-nft -t mangle -A POSTROUTING -j MARK --set-xmark 0x10000/0x10000",
        ]);
        let (states, named) = marks(&[]);
        assert!(
            states[0].starts_with("warning: 2 of 9 rules") && states[0].contains("--mark-mask 0x00003ffc"),
            "{states:?}"
        );
        assert_eq!(named, ["inet t c: 0x00ff0000 meta mark set", "ip6 mangle POSTROUTING: 0x00010000 MARK"]);

        make_rules(&[
            "nft 'add rule inet t c meta mark set 0x1'",
            "nft 'add rule inet t c meta mark set ct mark'",
            "nft 'add rule inet t c meta mark set tcp dport map { 80 : 0x1 }'",
            "iptables-nft -t mangle -A PREROUTING -j CONNMARK --restore-mark",
        ]);
        let (states, named) = marks(&[]);
        assert!(
            states[0].contains("6 of 13 rules") && states[0].contains("no 12 bits in a row are free"),
            "{states:?}"
        );
        let all: Vec<&String> = named.iter().filter(|rule| rule.contains("0xffffffff")).collect();
        assert_eq!(
            all,
            [
                "inet t c: 0xffffffff meta mark set",
                "inet t c: 0xffffffff meta mark set ct mark",
                "inet t c: 0xffffffff meta mark set to what the rule does not show",
                "ip mangle PREROUTING: 0xffffffff CONNMARK",
            ]
        );

        let table = String::from_utf8(portcullis(&["preflight"]).stdout).unwrap();
        assert!(table.contains("! mark ") && table.contains("ip mangle PREROUTING handle "), "{table}");
    });
}

#[test]
fn rules_of_iptables_legacy_are_named_by_their_numbers() {
    if !can_make_rules() {
        return;
    }
    in_namespace(|_| {
        make_rules(&[
            "iptables-legacy -t mangle -A PREROUTING -j MARK --set-xmark 0x4000/0x4000",
            "iptables-legacy -t mangle -N mine",
            "iptables-legacy -t mangle -A PREROUTING -j mine",
            "iptables-legacy -t mangle -A mine -j CONNMARK --save-mark",
            "iptables-legacy -t mangle -A mine -p tcp --dport 80 -j CONNMARK --restore-mark",
            "ip6tables-legacy -t raw -A PREROUTING -j MARK --set-xmark 0x10000/0x10000",
        ]);
        let (states, named) = marks(&[]);
        assert!(states.len() == 1 && states[0].starts_with("warning: 2 of "), "{states:?}");
        assert_eq!(named, ["ip mangle mine: 0xffffffff CONNMARK", "ip6 raw PREROUTING: 0x00010000 MARK"]);
        let table = String::from_utf8(portcullis(&["preflight"]).stdout).unwrap();
        assert!(table.contains("ip mangle mine rule 2 (iptables-legacy) writes 0xffffffff"), "{table}");
    });
}

#[test]
fn a_containers_capabilities_are_enough_to_read_rules() {
    if !can_make_rules() {
        return;
    }
    in_namespace(|_| {
        make_rules(&[
            "iptables-nft -t mangle -A PREROUTING -j MARK --set-xmark 0x10000/0x10000",
            "iptables-legacy -t mangle -A PREROUTING -j MARK --set-xmark 0x20000/0x20000",
        ]);
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-all,+bpf,+net_admin,+perfmon"]).arg(agent());
        let said = String::from_utf8(command.arg("preflight").output().unwrap().stdout).unwrap();
        let both = ["handle", "(iptables-legacy)"].iter().all(|which| said.contains(which));
        assert!(both && said.contains("0x00010000 (MARK)") && said.contains("0x00020000 (MARK)"), "{said}");
    });
}

/// Ends a process.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_running_agent_says_which_rules_write_our_bits() {
    if !can_make_rules() {
        return;
    }
    let dir = std::env::temp_dir().join(format!("portcullis-preflight-marks-{}", std::process::id()));
    for part in ["bpf", "source", "run"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
    }
    in_namespace(|_| {
        make_rules(&["iptables-nft -t mangle -A PREROUTING -j CONNMARK --restore-mark"]);
        let words = "mount -t bpf bpf bpf && exec \"$0\" agent --source source --run-dir run --bpffs bpf";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", words]).arg(agent());
        let running = Running(command.current_dir(&dir).stderr(Stdio::null()).spawn().unwrap());
        let run_dir = dir.join("run");
        let began = Instant::now();
        loop {
            let status = portcullis(&["status", "--run-dir", run_dir.to_str().unwrap()]);
            let said = String::from_utf8(status.stdout).unwrap();
            if said.contains("Node: mark: 1 of 1 rule can write bits of 0x0fff0000")
                && said.contains("ip mangle PREROUTING handle 2 writes 0xffffffff (CONNMARK)")
            {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{said}{}", String::from_utf8_lossy(&status.stderr));
            thread::sleep(Duration::from_millis(200));
        }
        drop(running);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_mask_of_the_mark_is_twelve_bits() {
    for (mask, why) in [("0xffff0000", "not 12 bits in one piece"), ("high", "no number of 32 bits")] {
        let refused = portcullis(&["preflight", "--mark-mask", mask]);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(
            refused.status.code() == Some(2) && said.contains(why) && said.contains("--mark-mask"),
            "{said}"
        );
    }
}
