//! What counts as a lead, from messages as the kernel lays them out.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::netlink::push_attribute;
use super::*;

const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

/// A route message under construction.
struct Draft(Vec<u8>);

impl Draft {
    fn to(address: impl Into<IpAddr>) -> Self {
        let (family, bytes) = match address.into() {
            IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
            IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
        };
        let length = u8::try_from(bytes.len() * 8).unwrap();
        let family = u8::try_from(family).unwrap();
        let fixed = [family, length, 0, 0, libc::RT_TABLE_MAIN, 0, 0, libc::RTN_UNICAST, 0, 0, 0, 0];
        Self(fixed.to_vec()).with(libc::RTA_DST, &bytes)
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.0, kind, value);
        self
    }

    fn dev(self, interface: u32) -> Self {
        self.with(libc::RTA_OIF, &interface.to_ne_bytes())
    }

    fn byte(mut self, offset: usize, value: u8) -> Self {
        self.0[offset] = value;
        self
    }

    fn parse(self) -> Option<Route> {
        parse_route(&self.0)
    }
}

fn interface(index: u32) -> Interface {
    let (name, lead) = (format!("veth{index}"), Lead::Route);
    Interface { index, name, mac: None, arphrd: 1, kind: None, master: None, peer: None, lead, station: None }
}

fn leads(routes: impl IntoIterator<Item = Draft>) -> Vec<(String, u32)> {
    let links = [3, 4].map(|index| (index, interface(index))).into();
    let routes: Vec<Route> = routes.into_iter().filter_map(Draft::parse).collect();
    let found = from_routes(&links, &routes);
    found.into_iter().map(|(address, link)| (address.to_string(), link.index)).collect()
}

#[test]
fn a_route_to_one_address_on_a_device_leads_there() {
    let found = leads([Draft::to(POD).dev(3), Draft::to(POD6).dev(4)]);
    assert_eq!(found, [("10.1.2.3".to_owned(), 3), ("fd00::3".to_owned(), 4)]);
}

#[test]
fn prefixes_gateways_other_tables_and_types_do_not_lead() {
    let gateway = Draft::to(POD).dev(3).with(libc::RTA_GATEWAY, &[10, 0, 0, 1]);
    let table = Draft::to(POD).dev(3).with(libc::RTA_TABLE, &1000u32.to_ne_bytes());
    let others = [
        gateway,
        table,
        Draft::to(POD).dev(3).byte(1, 24),
        Draft::to(POD).dev(3).byte(4, 100),
        Draft::to(POD).dev(3).byte(7, libc::RTN_BLACKHOLE),
        Draft::to(POD).dev(3).with(VIA, &[2, 0, 10, 0, 0, 1]),
        Draft::to(POD).dev(3).with(ENCAP, &[]),
        Draft::to(POD).with(MULTIPATH, &[0; 8]),
        Draft::to(POD),
        Draft::to(POD).dev(99),
    ];
    for (number, other) in others.into_iter().enumerate() {
        assert_eq!(leads([other]), [], "route {number}");
    }
}

#[test]
fn an_address_of_the_node_leads_nowhere() {
    let local = Draft::to(POD6).dev(3).byte(7, libc::RTN_LOCAL).byte(4, libc::RT_TABLE_LOCAL);
    assert_eq!(leads([Draft::to(POD6).dev(3), local]), []);
}

#[test]
fn the_lowest_metric_wins_in_either_order() {
    let metric = |dev, metric: u32| Draft::to(POD).dev(dev).with(libc::RTA_PRIORITY, &metric.to_ne_bytes());
    for routes in [[metric(3, 20), metric(4, 10)], [metric(4, 10), metric(3, 20)]] {
        assert_eq!(leads(routes), [("10.1.2.3".to_owned(), 4)]);
    }
}

#[test]
fn a_link_is_read_with_its_pair() {
    let mut body = vec![0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    push_attribute(&mut body, libc::IFLA_IFNAME, b"veth7\0");
    push_attribute(&mut body, libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 7]);
    push_attribute(&mut body, libc::IFLA_LINK, &2u32.to_ne_bytes());
    push_attribute(&mut body, LINK_NETNSID, &5i32.to_ne_bytes());
    let mut info = Vec::new();
    push_attribute(&mut info, INFO_KIND, b"veth\0");
    push_attribute(&mut body, libc::IFLA_LINKINFO, &info);

    let link = parse_link(&body).expect("a link");
    assert_eq!((link.index, link.name.as_str(), link.arphrd), (7, "veth7", 1));
    assert_eq!(link.mac, Some([2, 0, 0, 0, 0, 7]));
    assert_eq!(link.kind.as_deref(), Some("veth"));
    assert_eq!(link.peer, Some(Peer { index: 2, namespace: Some(5) }));
}

#[test]
fn loopback_leads_nowhere() {
    let lo = Interface { arphrd: libc::ARPHRD_LOOPBACK, ..interface(3) };
    let route = Draft::to(POD).dev(3).parse().expect("a route");
    assert_eq!(from_routes(&[(3, lo)].into(), &[route]), BTreeMap::new());
}

#[test]
fn the_longest_prefix_that_ends_at_a_bridge_counts() {
    let mut bridge = interface(3);
    bridge.kind = Some("bridge".to_owned());
    let links = [(3, bridge), (4, interface(4))].into();
    let prefix = |length| Draft::to(POD).dev(3).byte(1, length);
    let bridge_to = |routes: Vec<Draft>| {
        let routes: Vec<Route> = routes.into_iter().filter_map(Draft::parse).collect();
        Ways::new(&links, &routes).bridge_to(POD.into())
    };
    let default = Draft(vec![2, 0, 0, 0, libc::RT_TABLE_MAIN, 0, 0, libc::RTN_UNICAST, 0, 0, 0, 0]);

    assert_eq!(bridge_to(vec![prefix(24)]), Some(3));
    assert_eq!(bridge_to(vec![default.dev(3)]), Some(3));
    assert_eq!(bridge_to(vec![prefix(32)]), Some(3));
    assert_eq!(bridge_to(vec![Draft::to([10, 9, 0, 0]).dev(3).byte(1, 16)]), None);
    // A longer one leads elsewhere, or nowhere.
    for length in [25, 32] {
        assert_eq!(bridge_to(vec![prefix(24), Draft::to(POD).dev(4).byte(1, length)]), None);
        let gateway = Draft::to(POD).dev(3).byte(1, length).with(libc::RTA_GATEWAY, &[10, 1, 2, 1]);
        assert_eq!(bridge_to(vec![prefix(24), gateway]), None);
        let blackhole = Draft::to(POD).byte(1, length).byte(7, libc::RTN_BLACKHOLE);
        assert_eq!(bridge_to(vec![prefix(24), blackhole]), None);
    }
    let better = Draft::to(POD).dev(4).byte(1, 24);
    let worse = prefix(24).with(libc::RTA_PRIORITY, &1u32.to_ne_bytes());
    assert_eq!(bridge_to(vec![worse, better]), None);
    // The gateway's own address.
    let local = Draft::to(POD).dev(3).byte(7, libc::RTN_LOCAL).byte(4, libc::RT_TABLE_LOCAL);
    assert_eq!(bridge_to(vec![prefix(24), local]), None);
}
