//! What is read of the kernel's messages, as the kernel lays them out.

use super::super::netlink::push_attribute;
use super::*;

const BRIDGE: u32 = 5;
const PORT: u32 = 11;
const MAC_A: Mac = [2, 0, 0, 0, 0, 0xa];
const MAC_B: Mac = [2, 0, 0, 0, 0, 0xb];

/// A neighbour's message as the kernel lays it out, with its header.
fn message(kind: u16, family: i32, device: u32, state: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![0; HEADER];
    body[4..6].copy_from_slice(&kind.to_ne_bytes());
    body.extend([u8::try_from(family).unwrap(), 0, 0, 0]);
    body.extend(device.to_ne_bytes());
    body.extend(state.to_ne_bytes());
    body.extend([0, 0]);
    for (kind, value) in attributes {
        push_attribute(&mut body, *kind, value);
    }
    body
}

#[test]
fn entries_are_read_as_the_kernel_writes_them() {
    let read = |message: Vec<u8>| Entry::parse(&message[HEADER..]);
    let arp = [(libc::NDA_DST, &[10, 1, 0, 2][..]), (libc::NDA_LLADDR, &MAC_A[..])];
    let neighbour = message(libc::RTM_NEWNEIGH, libc::AF_INET, BRIDGE, libc::NUD_STALE, &arp);
    let (address, state, mac) = (IpAddr::from([10, 1, 0, 2]), libc::NUD_STALE, Some(MAC_A));
    assert_eq!(read(neighbour), Some(Entry::Neighbour { device: BRIDGE, address, state, mac }));

    let master = BRIDGE.to_ne_bytes();
    let of = [(libc::NDA_LLADDR, &MAC_A[..]), (MASTER, &master[..]), (libc::NDA_VLAN, &[7, 0][..])];
    let station = |state| read(message(libc::RTM_NEWNEIGH, libc::AF_BRIDGE, PORT, state, &of));
    let learned = Some(Entry::Station { bridge: Some(BRIDGE), port: PORT, mac: MAC_A });
    assert_eq!(station(libc::NUD_REACHABLE), learned);
    assert_eq!(station(libc::NUD_NOARP), learned, "set by somebody");
    assert_eq!(station(libc::NUD_PERMANENT), None, "the bridge's own");
}

#[test]
fn only_what_is_new_of_neighbours_is_news() {
    let mut news = News::default();
    let arp = [(libc::NDA_DST, &[10, 1, 0, 2][..]), (libc::NDA_LLADDR, &MAC_A[..])];
    let other = [(libc::NDA_DST, &[10, 1, 0, 2][..]), (libc::NDA_LLADDR, &MAC_B[..])];
    let new = |state, of: &[_]| message(libc::RTM_NEWNEIGH, libc::AF_INET, BRIDGE, state, of);
    assert!(!news.is_news(&new(libc::NUD_INCOMPLETE, &arp[..1])));
    assert!(news.is_news(&new(libc::NUD_REACHABLE, &arp)));
    for state in [libc::NUD_STALE, libc::NUD_DELAY, libc::NUD_PROBE, libc::NUD_REACHABLE] {
        assert!(!news.is_news(&new(state, &arp)), "state {state}");
    }
    assert!(news.is_news(&new(libc::NUD_STALE, &other)));
    assert!(news.is_news(&new(libc::NUD_FAILED, &other)));
    assert!(!news.is_news(&message(libc::RTM_DELNEIGH, libc::AF_INET, BRIDGE, libc::NUD_FAILED, &arp)));

    let station =
        |kind| message(kind, libc::AF_BRIDGE, PORT, libc::NUD_REACHABLE, &[(libc::NDA_LLADDR, &MAC_A)]);
    assert!(news.is_news(&station(libc::RTM_NEWNEIGH)));
    assert!(!news.is_news(&station(libc::RTM_NEWNEIGH)));
    assert!(news.is_news(&station(libc::RTM_DELNEIGH)), "the bridge forgot it, and floods");
    assert!(News::default().is_news(&station(libc::RTM_DELNEIGH)), "what it heard before we listened, too");
    assert!(news.is_news(&station(libc::RTM_NEWNEIGH)));

    assert!(news.is_news(&message(libc::RTM_NEWLINK, 0, PORT, 0, &[])));
    assert!(news.is_news(&[]));
}
