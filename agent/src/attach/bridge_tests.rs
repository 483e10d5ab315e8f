//! Who gets which port, whatever neighbours and forwarding tables are made to say.

use nix::libc;

use super::super::neighbours::Entry;
use super::*;

const BRIDGE: u32 = 5;
const OTHER_BRIDGE: u32 = 6;
const UPLINK: u32 = 7;
/// Ports of the bridge.
const A: u32 = 11;
const B: u32 = 12;
const C: u32 = 13;
const MAC_A: Mac = [2, 0, 0, 0, 0, 0xa];
const MAC_B: Mac = [2, 0, 0, 0, 0, 0xb];

fn link(index: u32, kind: &str, master: Option<u32>) -> Interface {
    let (name, kind) = (format!("if{index}"), Some(kind.to_owned()));
    let (lead, station) = (Lead::Route, None);
    Interface { index, name, mac: None, arphrd: 1, kind, master, peer: None, lead, station }
}

fn network_without(gone: &[u32]) -> Network {
    let links = [
        link(BRIDGE, "bridge", None),
        link(OTHER_BRIDGE, "bridge", None),
        link(UPLINK, "vxlan", Some(BRIDGE)),
        link(A, "veth", Some(BRIDGE)),
        link(B, "veth", Some(BRIDGE)),
        link(C, "veth", Some(BRIDGE)),
        link(14, "veth", Some(OTHER_BRIDGE)),
        link(15, "veth", None),
    ];
    let routes = [
        ("10.1.0.0/24", BRIDGE),
        ("fd01::/64", BRIDGE),
        ("172.17.0.0/16", OTHER_BRIDGE),
        ("10.1.0.99/32", 15),
    ];
    Network::of(links.into_iter().filter(|link| !gone.contains(&link.index)), &routes)
}

fn network() -> Network {
    network_without(&[])
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// Neighbours of the bridge (state and MAC address), and where those are heard.
fn tables(neighbours: &[(&str, u16, Mac)], stations: &[(Mac, u32)]) -> Tables {
    let mut tables = Tables::default();
    for (address, state, mac) in neighbours {
        let (address, state, mac) = (ip(address), *state, Some(*mac));
        tables.take(Some(Entry::Neighbour { device: BRIDGE, address, state, mac }));
    }
    for (mac, port) in stations {
        tables.take(Some(Entry::Station { bridge: Some(BRIDGE), port: *port, mac: *mac }));
    }
    tables
}

/// Both pods are heard, each at its port.
fn honest() -> Tables {
    let neighbours = [("10.1.0.2", libc::NUD_REACHABLE, MAC_A), ("10.1.0.3", libc::NUD_STALE, MAC_B)];
    tables(&neighbours, &[(MAC_A, A), (MAC_B, B)])
}

fn claim(address: &str) -> Claim {
    Claim { addresses: vec![ip(address)], held: None }
}

fn held(address: &str, port: u32, station: Mac) -> Claim {
    Claim { held: Some(HeldPort { port, station: Some(station) }), ..claim(address) }
}

fn ports(decision: &Decision) -> Vec<(String, u32, Option<Mac>)> {
    let of = |(address, port): (&IpAddr, &Interface)| {
        assert_eq!(port.lead, Lead::Bridge);
        (address.to_string(), port.index, port.station)
    };
    decision.placement.interfaces.iter().map(of).collect()
}

fn port(address: &str, port: u32, station: Mac) -> (String, u32, Option<Mac>) {
    (address.to_owned(), port, Some(station))
}

fn unanswered(decision: &Decision) -> Vec<(String, Urgency)> {
    decision.unanswered.iter().map(|((_, address), urgency)| (address.to_string(), *urgency)).collect()
}

fn place(tables: &Tables, claims: &[Claim]) -> Decision {
    decide(&network(), tables, claims, &Bridges::default())
}

#[test]
fn an_address_leads_to_the_port_where_its_station_is_heard() {
    let placed = place(&honest(), &[claim("10.1.0.2"), claim("10.1.0.3")]);
    assert_eq!(ports(&placed), [port("10.1.0.2", A, MAC_A), port("10.1.0.3", B, MAC_B)]);
    assert_eq!((unanswered(&placed), placed.placement.troubles.len()), (vec![], 0));
    assert!(placed.placement.quarantined.is_empty());
}

#[test]
fn one_address_that_answers_places_them_all() {
    let both = Claim { addresses: vec![ip("10.1.0.2"), ip("fd01::2")], held: None };
    let placed = place(&honest(), &[both]);
    assert_eq!(ports(&placed), [port("10.1.0.2", A, MAC_A), port("fd01::2", A, MAC_A)]);
    assert_eq!(unanswered(&placed), []);
}

#[test]
fn what_nobody_answers_for_is_asked_and_waited_for() {
    let failed =
        tables(&[("10.1.0.2", libc::NUD_FAILED, MAC_A), ("10.1.0.3", libc::NUD_STALE, MAC_B)], &[(MAC_A, A)]);
    let placed = place(&failed, &[claim("10.1.0.2"), claim("10.1.0.3"), claim("10.1.0.4")]);
    assert_eq!(ports(&placed), []);
    let asked = ["10.1.0.2", "10.1.0.3", "10.1.0.4"].map(|address| (address.to_owned(), Urgency::Waited));
    assert_eq!(unanswered(&placed), asked);
}

#[test]
fn addresses_that_are_not_behind_a_bridge_are_neither_placed_nor_asked() {
    let elsewhere = [claim("192.0.2.1"), claim("10.1.0.99"), Claim::default()];
    let placed = place(&honest(), &elsewhere);
    assert_eq!((ports(&placed), unanswered(&placed)), (vec![], vec![]));
}

#[test]
fn a_station_behind_a_port_that_is_no_veth_is_another_machines() {
    let remote = tables(&[("10.1.0.2", libc::NUD_REACHABLE, MAC_A)], &[(MAC_A, UPLINK)]);
    let placed = place(&remote, &[claim("10.1.0.2")]);
    assert_eq!((ports(&placed), unanswered(&placed)), (vec![], vec![]));
}

#[test]
fn another_bridges_ports_are_left_alone() {
    let mut tables = honest();
    tables.take(Some(Entry::Station { bridge: Some(OTHER_BRIDGE), port: 14, mac: MAC_A }));
    let placed = place(&tables, &[claim("10.1.0.2")]);
    assert_eq!(ports(&placed), [port("10.1.0.2", A, MAC_A)]);
}

#[test]
fn a_station_that_several_vlans_hear_at_several_ports_is_not_believed() {
    let mut tables = honest();
    tables.take(Some(Entry::Station { bridge: Some(BRIDGE), port: A, mac: MAC_A }));
    assert_eq!(ports(&place(&tables, &[claim("10.1.0.2")])), [port("10.1.0.2", A, MAC_A)]);
    tables.take(Some(Entry::Station { bridge: Some(BRIDGE), port: B, mac: MAC_A }));
    assert_eq!(ports(&place(&tables, &[claim("10.1.0.2")])), []);
}

/// T6: a station that is heard elsewhere moves no enforcement while its port is there.
#[test]
fn a_port_is_kept_while_it_is_there() {
    let poisoned = tables(&[("10.1.0.2", libc::NUD_REACHABLE, MAC_A)], &[(MAC_A, C)]);
    let placed = place(&poisoned, &[held("10.1.0.2", A, MAC_A)]);
    assert_eq!(ports(&placed), [port("10.1.0.2", A, MAC_A)]);
    let moved =
        Trouble::Moved { held: "if11 (interface 11)".to_owned(), answers: "if13 (interface 13)".to_owned() };
    assert_eq!(placed.placement.troubles, [(0, moved)].into());
    assert_eq!(unanswered(&placed), [("10.1.0.2".to_owned(), Urgency::Refresh)]);

    let placed =
        decide(&network_without(&[A]), &poisoned, &[held("10.1.0.2", A, MAC_A)], &Bridges::default());
    assert_eq!(ports(&placed), [port("10.1.0.2", C, MAC_A)], "the old port has gone");
}

#[test]
fn a_port_that_is_kept_is_refreshed_where_the_bridge_forgot() {
    let placed = place(&Tables::default(), &[held("10.1.0.2", A, MAC_A)]);
    assert_eq!(ports(&placed), [port("10.1.0.2", A, MAC_A)]);
    assert_eq!(unanswered(&placed), [("10.1.0.2".to_owned(), Urgency::Refresh)]);
}

/// A plugin that changes the MAC address after the port was found must not cut the pod off for good.
#[test]
fn a_station_that_stays_silent_may_have_another_address() {
    let mut bridges = Bridges::default();
    let mut silent = |times| {
        bridges.asked.insert((BRIDGE, ip("10.1.0.2")), (times, Instant::now()));
        ports(&decide(&network(), &Tables::default(), &[held("10.1.0.2", A, MAC_A)], &bridges))
    };
    assert_eq!(silent(FORGET_AFTER - 1), [port("10.1.0.2", A, MAC_A)]);
    assert_eq!(silent(FORGET_AFTER), [("10.1.0.2".to_owned(), A, None)]);
    let changed = tables(&[("10.1.0.2", libc::NUD_REACHABLE, MAC_B)], &[(MAC_B, A)]);
    let placed = decide(&network(), &changed, &[held("10.1.0.2", A, MAC_A)], &bridges);
    assert_eq!(ports(&placed), [port("10.1.0.2", A, MAC_B)]);
}

/// T6: who claims another's MAC address for its own address gets no port, and no port that nobody knows stays open.
#[test]
fn a_port_of_another_is_not_given_away_and_unknown_ports_are_quarantined() {
    let lie = tables(
        &[("10.1.0.2", libc::NUD_REACHABLE, MAC_A), ("10.1.0.3", libc::NUD_REACHABLE, MAC_A)],
        &[(MAC_A, A), (MAC_B, B)],
    );
    let placed = place(&lie, &[held("10.1.0.2", A, MAC_A), claim("10.1.0.3")]);
    assert_eq!(ports(&placed), [port("10.1.0.2", A, MAC_A)]);
    let taken = Trouble::Taken { port: "if11 (interface 11)".to_owned(), by: 0 };
    assert_eq!(placed.placement.troubles, [(1, taken)].into());
    assert_eq!(placed.placement.quarantined.keys().copied().collect::<Vec<_>>(), [B, C]);
    assert_eq!(unanswered(&placed), [("10.1.0.3".to_owned(), Urgency::Refresh)]);
}

#[test]
fn two_that_answer_at_one_port_get_none() {
    let shared = tables(
        &[("10.1.0.2", libc::NUD_REACHABLE, MAC_A), ("10.1.0.3", libc::NUD_REACHABLE, MAC_A)],
        &[(MAC_A, A)],
    );
    let placed = place(&shared, &[claim("10.1.0.2"), claim("10.1.0.3")]);
    assert_eq!(ports(&placed), []);
    assert_eq!(placed.placement.troubles.len(), 2);
    assert_eq!(placed.placement.quarantined.keys().copied().collect::<Vec<_>>(), [A, B, C]);
}

#[test]
fn quarantine_lasts_until_the_port_is_somebodys_or_gone() {
    let mut bridges = Bridges::default();
    bridges.restore([A, B, 99]);
    let placed = decide(&network(), &honest(), &[claim("10.1.0.2")], &bridges);
    assert_eq!(ports(&placed), [port("10.1.0.2", A, MAC_A)]);
    assert_eq!(placed.placement.quarantined.keys().copied().collect::<Vec<_>>(), [B]);
}

/// A pod that was away for longer than the bridge remembers: its port carries nothing, so it cannot answer.
#[test]
fn an_address_is_looked_for_where_it_was() {
    let mut bridges = Bridges::default();
    bridges.known.insert(ip("10.1.0.2"), HeldPort { port: A, station: Some(MAC_A) });
    let placed = decide(&network(), &Tables::default(), &[claim("10.1.0.2")], &bridges);
    assert_eq!(ports(&placed), [port("10.1.0.2", A, MAC_A)]);
    let placed = decide(&network_without(&[A]), &Tables::default(), &[claim("10.1.0.2")], &bridges);
    assert_eq!(ports(&placed), []);
}

#[test]
fn rests_grow_and_end() {
    assert_eq!([1, 2, 3, 6, 7, 99].map(|n| rest_after(n).as_secs()), [1, 2, 4, 32, 32, 32]);
}
