//! T5: what is no plain IPv4 or IPv6 on a link.

use portcullis_common::event::{Direction, Reason};
use portcullis_lab::{Cni, Family};
use portcullis_tests::field::{Fate, Field, OPEN, Shot, Who};
use portcullis_tests::frames::{
    self, ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Path,
};

use crate::FAMILIES;

/// LLDP, MPLS, `PPPoE`, loopback, an experiment, and the largest.
const OTHERS: [u16; 6] = [0x88cc, 0x8847, 0x8864, 0x9000, 0x88b5, 0xffff];

pub(crate) fn attack(field: &mut Field) {
    let mut senders = vec![(Who::Pod("friend"), Fate::Dropped(Direction::Egress, Reason::NotIp))];
    if field.cni == Cni::Bridge {
        // Of nobody's port: it is the receiver's program that has to see it.
        senders.push((Who::Stray, Fate::Dropped(Direction::Ingress, Reason::NotIp)));
    }
    for (from, fate) in senders {
        for family in FAMILIES {
            // A bridge whose frames pass netfilter strips and looks inside, and may drop them itself.
            frames_of(field, from, family, fate);
        }
    }
}

fn legal(path: Path, mark: &[u8]) -> Vec<u8> {
    // As long as either family's header and a transport header.
    let payload = [mark, &[0; 40]].concat();
    frames::frame(path, frames::UDP, &frames::udp(path, (40_010, OPEN), &payload))
}

fn frames_of(field: &mut Field, from: Who, family: Family, fate: Fate) {
    let shot =
        |what: &str, fate| Shot { threat: "T5", what: what.to_owned(), from, to: "server", family, fate };
    if from == Who::Pod("friend") {
        field.shoot(&shot("plain", Fate::Arrives), |path, mark| vec![legal(path, mark)]);
    }
    for (what, tags) in [
        ("802.1Q", &[(ETHERTYPE_VLAN, 5)][..]),
        ("802.1Q of priority", &[(ETHERTYPE_VLAN, 0x6000)]),
        ("802.1Q of VLAN 1", &[(ETHERTYPE_VLAN, 1)]),
        ("802.1ad", &[(ETHERTYPE_QINQ, 5)]),
        ("QinQ", &[(ETHERTYPE_QINQ, 5), (ETHERTYPE_VLAN, 6)]),
        ("two 802.1Q", &[(ETHERTYPE_VLAN, 0), (ETHERTYPE_VLAN, 0)]),
    ] {
        field.shoot(&shot(what, tagged_fate(from, fate)), |path, mark| {
            vec![frames::tagged(&legal(path, mark), tags)]
        });
    }
    let kind = if family == Family::Ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    field.shoot(&shot("LLC and SNAP", fate), |path, mark| {
        vec![frames::snap(path, kind, &legal(path, mark)[ETHERNET..])]
    });
    for other in OTHERS {
        field.shoot(&shot(&format!("type {other:#06x}"), fate), |path, mark| {
            vec![frames::ethernet(path, other, &legal(path, mark)[ETHERNET..])]
        });
    }
    // The other family's type: what it says it is cannot be read.
    let swapped = if family == Family::Ipv6 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let broken = match fate {
        Fate::Dropped(direction, _) => field.unreadable(direction, Reason::BadHeader),
        Fate::Arrives | Fate::Lost => fate,
    };
    field.shoot(&shot("the other family's type", broken), |path, mark| {
        vec![frames::ethernet(path, swapped, &legal(path, mark)[ETHERNET..])]
    });
}

/// A bridge that filters by VLAN may keep a tagged frame to itself; whatever comes to the program is counted.
fn tagged_fate(from: Who, fate: Fate) -> Fate {
    match from {
        Who::Stray => Fate::Lost,
        Who::Pod(_) | Who::Outside => fate,
    }
}
