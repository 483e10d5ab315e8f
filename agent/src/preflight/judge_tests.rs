//! Given facts, when they are judged, then each check says how it is and what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::super::State;
use super::*;
use crate::bpf::programs::Program;

fn good() -> Facts {
    Facts {
        release: Ok(KernelRelease { major: 6, minor: 18 }),
        btf: Ok(()),
        bpffs: (PathBuf::from("/sys/fs/bpf"), Bpffs::Writable),
        cgroup2: Some(PathBuf::from("/sys/fs/cgroup")),
        capabilities: 1 << BPF | 1 << NET_ADMIN | 1 << PERFMON,
        seccomp: Seccomp::Off,
        callable: Ok(()),
        load: Ok(()),
        tcx: Trial::Works,
        clsact: Trial::Works,
    }
}

fn state_of(facts: &Facts, choice: HookChoice, name: &str) -> State {
    let checks = node(facts, choice);
    let check = checks.iter().find(|check| check.name == name).expect("every check has its line");
    let needs_remedy = matches!(check.state, State::Warning | State::Failed);
    assert_eq!(check.remedy.is_some(), needs_remedy, "{check:?}");
    check.state
}

#[test]
fn a_good_node_is_fine() {
    for check in node(&good(), HookChoice::Auto) {
        assert_eq!(check.state, State::Ok, "{check:?}");
    }
}

#[test]
fn each_lack_fails_its_own_line() {
    let old = KernelRelease { major: 5, minor: 9 };
    let why = || "Operation not permitted".to_owned();
    let bpffs = |found| (PathBuf::from("/b"), found);
    let cases: Vec<(&str, Facts, State)> = vec![
        ("kernel", Facts { release: Ok(old), ..good() }, State::Failed),
        ("kernel", Facts { release: Err(why()), ..good() }, State::Failed),
        ("btf", Facts { btf: Err(why()), ..good() }, State::Warning),
        ("bpffs", Facts { bpffs: bpffs(Bpffs::Other), ..good() }, State::Failed),
        ("bpffs", Facts { bpffs: bpffs(Bpffs::Unreadable(why())), ..good() }, State::Failed),
        ("bpffs", Facts { bpffs: bpffs(Bpffs::ReadOnly(why())), ..good() }, State::Failed),
        ("cgroup2", Facts { cgroup2: None, ..good() }, State::Note),
        ("capabilities", Facts { capabilities: 0, ..good() }, State::Failed),
        ("capabilities", Facts { capabilities: 1 << SYS_ADMIN, ..good() }, State::Failed),
        ("capabilities", Facts { capabilities: 1 << SYS_ADMIN | 1 << NET_ADMIN, ..good() }, State::Ok),
        ("seccomp", Facts { callable: Err(why()), ..good() }, State::Failed),
        ("seccomp", Facts { callable: Err(why()), seccomp: Seccomp::Filter, ..good() }, State::Failed),
        ("seccomp", Facts { seccomp: Seccomp::Filter, ..good() }, State::Ok),
        ("programs", Facts { load: Err(why()), ..good() }, State::Failed),
        ("hook", Facts { tcx: Trial::Fails(why()), ..good() }, State::Failed),
        ("hook", Facts { tcx: Trial::Untried(why()), ..good() }, State::Note),
        ("hook", Facts { clsact: Trial::Fails(why()), ..good() }, State::Ok),
    ];
    for (name, facts, state) in cases {
        assert_eq!(state_of(&facts, HookChoice::Auto, name), state, "{name} {facts:?}");
    }
}

#[test]
fn memory_counts_against_a_limit_before_5_11() {
    let facts = Facts { release: Ok(KernelRelease { major: 5, minor: 10 }), ..good() };
    assert_eq!(state_of(&facts, HookChoice::Auto, "capabilities"), State::Failed);
    let raised = Facts { capabilities: facts.capabilities | 1 << SYS_RESOURCE, ..facts };
    assert_eq!(state_of(&raised, HookChoice::Auto, "capabilities"), State::Ok);
}

#[test]
fn the_hook_that_is_asked_for_decides() {
    let before_tcx = Facts { release: Ok(KernelRelease { major: 6, minor: 1 }), ..good() };
    assert_eq!(state_of(&before_tcx, HookChoice::Tcx, "hook"), State::Failed);
    assert_eq!(state_of(&before_tcx, HookChoice::Auto, "hook"), State::Ok);
    let no_clsact = Facts { clsact: Trial::Fails("x".to_owned()), ..good() };
    assert_eq!(state_of(&no_clsact, HookChoice::Clsact, "hook"), State::Failed);
}

fn on_eth0(place: Place, name: Option<&str>, calls: Calls) -> Neighbours {
    let foreign = Foreign { index: 2, interface: "eth0".to_owned(), place, program: Some(7), label: None };
    let program = Program { id: 7, name: name.map(str::to_owned), calls };
    Neighbours { foreign: vec![foreign], programs: BTreeMap::from([(7, program)]), ..Neighbours::default() }
}

fn calls(redirects: &[Redirect], tail_calls: TailCalls) -> Calls {
    Calls::Read { redirects: redirects.iter().copied().collect(), tail_calls }
}

fn only(found: &Neighbours, hook: Hook) -> Check {
    let [check] = <[Check; 1]>::try_from(neighbours(found, hook)).expect("one check");
    assert_eq!(check.remedy.is_some(), matches!(check.state, State::Warning | State::Failed), "{check:?}");
    check
}

#[test]
fn a_program_that_redirects_to_the_peer_is_refused_whatever_its_name() {
    for name in [Some("cil_from_netdev"), Some("mine"), None] {
        let found =
            on_eth0(Place::TcIngress, name, calls(&[Redirect::Plain, Redirect::Peer], TailCalls::None));
        let check = only(&found, Hook::Tcx);
        assert_eq!(check.state, State::Failed);
        assert!(check.finding.contains("bpf_redirect_peer") && check.finding.contains("eth0"), "{check:?}");
    }
}

#[test]
fn an_engines_program_that_cannot_be_read_is_refused_by_its_name() {
    let unreadable = || Calls::Unreadable("hidden".to_owned());
    for (name, state) in [
        ("cil_from_netdev", State::Failed),
        ("cali_tc_preamble", State::Failed),
        ("calico_from_wl", State::Failed),
        ("mine", State::Warning),
    ] {
        assert_eq!(
            only(&on_eth0(Place::TcxIngress, Some(name), unreadable()), Hook::Tcx).state,
            state,
            "{name}"
        );
        let tail = on_eth0(Place::TcxIngress, Some(name), calls(&[], TailCalls::Some));
        assert_eq!(only(&tail, Hook::Tcx).state, state, "{name}");
        let harmless = on_eth0(Place::TcxIngress, Some(name), calls(&[], TailCalls::None));
        assert_eq!(only(&harmless, Hook::Tcx).state, State::Note, "{name}");
    }
}

#[test]
fn a_program_without_a_name_is_taken_for_an_engines_that_is_here() {
    for (engine, state) in
        [("Cilium", State::Failed), ("Calico", State::Failed), ("kube-router", State::Warning)]
    {
        let mut found = on_eth0(Place::TcxIngress, None, Calls::Unreadable("no rights".to_owned()));
        found.engines = BTreeMap::from([(engine, BTreeSet::from(["interface x".to_owned()]))]);
        let checks = neighbours(&found, Hook::Tcx);
        assert_eq!((checks[0].state, &*checks[0].name), (state, "foreign"), "{engine}");
    }
}

#[test]
fn other_redirects_and_what_runs_before_us_are_warnings() {
    for redirect in [Redirect::Plain, Redirect::Neigh, Redirect::Clone] {
        let found = on_eth0(Place::TcEgress, Some("mine"), calls(&[redirect], TailCalls::None));
        assert_eq!(only(&found, Hook::Tcx).state, State::Warning, "{redirect:?}");
    }
    let xdp = on_eth0(Place::Xdp, Some("mine"), calls(&[Redirect::Xdp], TailCalls::None));
    assert_eq!(only(&xdp, Hook::Tcx).state, State::Warning);
    let tcx = on_eth0(Place::TcxIngress, Some("mine"), calls(&[], TailCalls::None));
    assert_eq!(only(&tcx, Hook::Clsact).state, State::Warning);
    assert_eq!(only(&tcx, Hook::Tcx).state, State::Note);
}

#[test]
fn other_engines_and_the_dns_cache_are_told_with_what_follows() {
    let found = Neighbours {
        engines: BTreeMap::from([("Calico", BTreeSet::from(["interface cali1".to_owned()]))]),
        node_local_dns: Some("interface nodelocaldns".to_owned()),
        ..Neighbours::default()
    };
    let checks = neighbours(&found, Hook::Tcx);
    let states: Vec<(&str, State)> = checks.iter().map(|check| (&*check.name, check.state)).collect();
    assert_eq!(states, [("foreign", State::Ok), ("engines", State::Warning), ("dns", State::Warning)]);
    assert!(checks[2].remedy.as_ref().expect("a remedy").contains("169.254.20.10/32"));
}
