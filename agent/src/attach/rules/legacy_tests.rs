//! Tables as a kernel (Linux 6.18) told them after iptables-legacy 1.8.9 had made them, and what breaks of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

/// Three lines each: the family, `struct ipt_getinfo`, the entries of its table `mangle`. For `ip` after
/// `-A PREROUTING -j MARK --set-xmark 0x4000/0x4000`, `-N mine`, `-A PREROUTING -j mine` and
/// `-A mine -p tcp --dport 80 -j CONNMARK --restore-mark`; for `ip6` after `-A POSTROUTING -j MARK --set-mark 1`.
const RECORDED: &str = include_str!("recorded_legacy.txt");

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn recorded() -> [(&'static Family, Vec<u8>, Vec<u8>); 2] {
    let lines: Vec<&str> = RECORDED.lines().map(str::trim).collect();
    let one = |family: usize| {
        let lines = &lines[3 * family..3 * family + 3];
        assert_eq!(lines[0], FAMILIES[family].name);
        (&FAMILIES[family], bytes(lines[1]), bytes(lines[2]))
    };
    [one(0), one(1)]
}

fn parsed(family: &Family, info: &[u8], entries: &[u8]) -> Option<Vec<String>> {
    let mut told = Vec::new();
    let read = parse(family, "mangle", info, entries, |rule| {
        let write = rule.write.map(|(bits, how)| format!("{bits:08x} {how}"));
        told.push(format!("{}: {}", rule.place, write.unwrap_or_else(|| "nothing".to_owned())));
    });
    read.map(|()| told)
}

#[test]
fn recorded_tables_are_read_with_chains_and_numbers() {
    let told = recorded().map(|(family, info, entries)| parsed(family, &info, &entries).unwrap());
    assert_eq!(
        told[0],
        [
            "ip mangle PREROUTING rule 1 (iptables-legacy): 00004000 MARK",
            "ip mangle PREROUTING rule 2 (iptables-legacy): nothing",
            "ip mangle mine rule 1 (iptables-legacy): ffffffff CONNMARK",
            // Its end: a chain of one's own returns.
            "ip mangle mine rule 2 (iptables-legacy): nothing",
        ]
    );
    assert_eq!(told[1], ["ip6 mangle POSTROUTING rule 1 (iptables-legacy): ffffffff MARK"]);
}

#[test]
fn a_target_that_is_not_known_writes_everything() {
    let [(family, info, entries), _] = recorded();
    let mut changed = entries;
    let at = changed.windows(5).position(|window| window == b"MARK\0").unwrap();
    changed[at..at + 4].copy_from_slice(b"WHAT");
    let told = parsed(family, &info, &changed).unwrap();
    assert!(told[0].ends_with("ffffffff WHAT, which is not understood"), "{told:?}");
}

#[test]
fn a_table_that_is_cut_off_is_not_read() {
    for (family, info, entries) in recorded() {
        for length in 0..entries.len() {
            assert_eq!(parsed(family, &info, &entries[..length]), None, "{length}");
        }
        assert_eq!(parsed(family, &info[..INFO - 50], &entries), None);
    }
}

#[test]
fn an_entry_of_no_length_ends_the_walk() {
    let [(family, info, _), _] = recorded();
    assert_eq!(parsed(family, &info, &[0; 400]), None);
}

proptest! {
    #[test]
    fn no_change_of_a_table_makes_the_reader_panic_or_stay(
        which in 0..2usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (family, mut info, mut entries) = recorded()[which].clone();
        for (at, value) in changes {
            let at = at.index(INFO + entries.len());
            *info.iter_mut().chain(entries.iter_mut()).nth(at).unwrap() = value;
        }
        let _ = parsed(family, &info, &entries);
    }
}
