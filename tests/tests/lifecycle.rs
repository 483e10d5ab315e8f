//! Kill, end, restart, first policy: under traffic, on TCX and on clsact.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use nix::sys::signal::Signal;
use portcullis_lab::{Cni, Hook, Lab};
use portcullis_policy::model::Protocol;
use portcullis_tests::lifecycle::{Life, to_server};
use portcullis_tests::live::Rig;
use portcullis_tests::privilege::{is_root, number};

/// Takeovers of each kind.
const ROUNDS: u64 = 5;
/// Starts that are killed half-way.
const CRASHES: u64 = 30;
/// Latest moment of a start at which it is killed, in milliseconds: the whole of it and a little more.
const START_MILLISECONDS: u64 = 1500;
/// Held connections of each of the two clients.
const HELD: usize = 50;
/// One datagram each.
const INTERVAL: Duration = Duration::from_millis(1);
/// How long streams run before and after.
const MARGIN: Duration = Duration::from_millis(300);
const PING: Duration = Duration::from_secs(5);

/// Runs `act` between two streams of datagrams, one allowed and one denied, beside a held connection and new
/// ones: none that is denied arrives, and all that are allowed.
fn under_traffic(what: &str, life: &mut Life, act: impl FnOnce(&mut Life)) {
    let mut held = life.lab.hold(&[to_server("friend", Protocol::Tcp)]).unwrap();
    let allowed = life.lab.stream(&to_server("friend", Protocol::Udp), INTERVAL).unwrap();
    let denied = life.lab.stream(&to_server("stranger", Protocol::Udp), INTERVAL).unwrap();
    let stop = AtomicBool::new(false);
    let watched = Lab::open(life.lab.id()).unwrap();
    let (tried, wrong) = scope(|scope| {
        let trying = scope.spawn(|| Life::try_until(&watched, &stop));
        sleep(MARGIN);
        act(life);
        sleep(MARGIN);
        stop.store(true, Ordering::Relaxed);
        trying.join().unwrap()
    });
    let (allowed, denied) = (allowed.finish().unwrap(), denied.finish().unwrap());
    let alive = held.ping(PING).unwrap();
    println!(
        "{what}: {} of {} allowed datagrams arrived, {} of {} denied; {tried} new connections; longest pause {:?}",
        allowed.arrived, allowed.sent, denied.arrived, denied.sent, allowed.longest_pause
    );
    assert_eq!(denied.arrived, 0, "{what}: denied datagrams arrived: {denied:?}");
    assert_eq!(allowed.missing, Vec::<u64>::new(), "{what}: allowed datagrams were lost");
    assert!(allowed.sent > 300 && denied.sent > 300, "{what}: too few datagrams: {allowed:?} {denied:?}");
    assert_eq!(format!("{alive:?}"), "[Alive]", "{what}: the held connection");
    assert!(tried > 0, "{what}: no new connection was tried");
    assert_eq!(wrong, Vec::<String>::new(), "{what}: new connections");
}

fn takeovers(rig: impl Into<Rig>, signal: Signal) {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let rig = rig.into();
    let mut life = Life::new(rig);
    life.write_policy();
    life.start_and_wait();
    for round in 1..=number("PORTCULLIS_ROUNDS", ROUNDS) {
        under_traffic(&format!("{} {signal} round {round}", rig.name()), &mut life, |life| {
            life.lab.kill(signal).unwrap();
            sleep(MARGIN);
            life.start_and_wait();
        });
    }
}

#[test]
fn kill_and_takeover_on_tcx() {
    takeovers(Hook::Tcx, Signal::SIGKILL);
}

#[test]
fn kill_and_takeover_on_clsact() {
    takeovers(Hook::Clsact, Signal::SIGKILL);
}

#[test]
fn kill_and_takeover_behind_a_bridge() {
    takeovers(Rig { hook: Hook::Tcx, cni: Cni::Bridge }, Signal::SIGKILL);
}

#[test]
fn end_and_takeover_on_tcx() {
    takeovers(Hook::Tcx, Signal::SIGTERM);
}

#[test]
fn end_and_takeover_on_clsact() {
    takeovers(Hook::Clsact, Signal::SIGTERM);
}

/// Starts that are killed at any moment, many in a row, open nothing and cut nothing.
fn crashes(hook: Hook) {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut life = Life::new(hook);
    life.write_policy();
    life.start_and_wait();
    let crashes = number("PORTCULLIS_CRASHES", CRASHES);
    under_traffic(&format!("{} {crashes} crashes", hook.name()), &mut life, |life| {
        life.lab.kill(Signal::SIGKILL).unwrap();
        for crash in 0..crashes {
            life.start();
            sleep(Duration::from_millis(START_MILLISECONDS * crash / crashes));
            life.lab.kill(Signal::SIGKILL).unwrap();
        }
        life.start_and_wait();
    });
}

#[test]
fn starts_that_are_killed_on_tcx() {
    crashes(Hook::Tcx);
}

#[test]
fn starts_that_are_killed_on_clsact() {
    crashes(Hook::Clsact);
}

/// The first policy cuts what it denies, and nothing that it allows.
fn first_policy(rig: impl Into<Rig>) {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut life = Life::new(rig);
    life.start_and_wait();
    let probes: Vec<_> = ["friend", "stranger"]
        .into_iter()
        .flat_map(|from| std::iter::repeat_n(to_server(from, Protocol::Tcp), HELD))
        .collect();
    let mut held = life.lab.hold(&probes).unwrap();
    let stream = life.lab.stream(&to_server("friend", Protocol::Udp), INTERVAL).unwrap();
    let before = held.ping(PING).unwrap();
    assert!(before.iter().all(|one| format!("{one:?}") == "Alive"), "{before:?}");

    life.apply_policy();

    let after: Vec<String> = held.ping(PING).unwrap().iter().map(|one| format!("{one:?}")).collect();
    let stream = stream.finish().unwrap();
    let (friends, strangers) = after.split_at(HELD);
    assert!(friends.iter().all(|one| one == "Alive"), "allowed ones were cut: {friends:?}");
    assert!(strangers.iter().all(|one| one == "Silent"), "denied ones live: {strangers:?}");
    assert_eq!(stream.missing, Vec::<u64>::new(), "allowed datagrams were lost");
}

#[test]
fn first_policy_on_held_connections_behind_a_bridge() {
    first_policy(Rig { hook: Hook::Clsact, cni: Cni::Bridge });
}

#[test]
fn first_policy_on_held_connections_on_tcx() {
    first_policy(Hook::Tcx);
}

#[test]
fn first_policy_on_held_connections_on_clsact() {
    first_policy(Hook::Clsact);
}
