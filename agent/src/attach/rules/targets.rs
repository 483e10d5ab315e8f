//! Which bits of a packet's mark a target of xtables can change, by its name, revision and settings: what iptables and
//! ebtables put into `nf_tables`, and what stands in the tables of iptables-legacy. Pure.

use super::super::netlink::{bytes_at, u32_at};

/// What a target does to the packet's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    Nothing,
    /// It can change these bits.
    Writes(u32),
    /// It is not known, or its settings cannot be read.
    Unknown,
}

/// Targets of the kernel that leave the mark alone, those of ebtables and arptables in lower case. `NFQUEUE` is one:
/// what the program behind it writes, no rule says.
const HARMLESS: [&str; 41] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CLUSTERIP",
    "CONNSECMARK",
    "CT",
    "DNAT",
    "DNPT",
    "DSCP",
    "ECN",
    "HL",
    "IDLETIMER",
    "LED",
    "LOG",
    "MASQUERADE",
    "NETMAP",
    "NFLOG",
    "NFQUEUE",
    "NOTRACK",
    "RATEEST",
    "REDIRECT",
    "REJECT",
    "SECMARK",
    "SNAT",
    "SNPT",
    "SYNPROXY",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
    "arpreply",
    "dnat",
    "log",
    "mangle",
    "nflog",
    "redirect",
    "snat",
    "standard",
];

/// What `xt_MARK`, `xt_TPROXY` and a restoring `xt_CONNMARK` do: `mark = (mark & ~mask) ^ value`, so that bits of the value
/// outside of the mask are changed too.
fn mask_and_xor(mask: Option<u32>, value: Option<u32>) -> Effect {
    match (mask, value) {
        (Some(mask), Some(value)) => Effect::Writes(mask | value),
        (None, _) | (_, None) => Effect::Unknown,
    }
}

/// `settings` is the target's own structure, of the headers named below.
pub(super) fn effect(name: &str, revision: u32, settings: &[u8]) -> Effect {
    match (name, revision) {
        // `struct xt_mark_tginfo2` of `linux/netfilter/xt_mark.h`: mark, mask. Other revisions left the kernel with 2.6.
        ("MARK", 2) => mask_and_xor(u32_at(settings, 4), u32_at(settings, 0)),
        ("CONNMARK", 1..=3) => connmark(revision, settings),
        // `struct xt_tproxy_target_info` of `linux/netfilter/xt_TPROXY.h`, both revisions: mask, value.
        ("TPROXY", 0 | 1) => mask_and_xor(u32_at(settings, 0), u32_at(settings, 4)),
        // A hash.
        ("HMARK", _) => Effect::Writes(u32::MAX),
        ("SET", 0..=2) => Effect::Nothing,
        ("SET", 3) => set(settings),
        ("mark", 0) => ebtables_mark(settings),
        _ if HARMLESS.contains(&name) => Effect::Nothing,
        _ => Effect::Unknown,
    }
}

/// `struct xt_connmark_tginfo1` of `linux/netfilter/xt_connmark.h` is ctmark, ctmask, nfmask, mode; later ones have the shift's
/// direction and width before the mode.
fn connmark(revision: u32, settings: &[u8]) -> Effect {
    /// `XT_CONNMARK_SET`, `_SAVE` and `_RESTORE`.
    const SET: u8 = 0;
    const SAVE: u8 = 1;
    const RESTORE: u8 = 2;
    /// `D_SHIFT_LEFT`.
    const LEFT: u8 = 0;
    let byte = |at| bytes_at::<1>(settings, at).map(|[byte]| byte);
    let (mode, shift) =
        if revision == 1 { (byte(12), Some((LEFT, 0))) } else { (byte(14), byte(12).zip(byte(13))) };
    match (mode, shift) {
        (Some(SET | SAVE), _) => Effect::Nothing,
        (Some(RESTORE), Some((direction, width))) => {
            let shifted = u32_at(settings, 4).and_then(|mask| {
                let width = u32::from(width);
                if direction == LEFT { mask.checked_shl(width) } else { mask.checked_shr(width) }
            });
            mask_and_xor(u32_at(settings, 8), shifted)
        }
        (_, _) => Effect::Unknown,
    }
}

/// `struct xt_set_info_target_v3` of `linux/netfilter/xt_set.h`: sets to add to, to delete from and to map by, of four bytes
/// each and a number first, then flags. What is mapped to, mask and all, is in the set.
fn set(settings: &[u8]) -> Effect {
    /// `IPSET_FLAG_MAP_SKBMARK` of `linux/netfilter/ipset/ip_set.h`, and `IPSET_INVALID_ID`.
    const MAP_MARK: u32 = 1 << 8;
    const NONE: [u8; 2] = [0xff, 0xff];
    match (bytes_at::<2>(settings, 8), u32_at(settings, 12)) {
        (Some(map), Some(flags)) if map != NONE && flags & MAP_MARK != 0 => Effect::Writes(u32::MAX),
        (Some(_), Some(_)) => Effect::Nothing,
        (None, _) | (_, None) => Effect::Unknown,
    }
}

/// `struct ebt_mark_t_info` of `linux/netfilter_bridge/ebt_mark_t.h`: a long, and a word whose upper 28 bits say what is
/// done with it.
fn ebtables_mark(settings: &[u8]) -> Effect {
    const SET: u32 = 0xffff_fff0;
    const OR: u32 = 0xffff_ffe0;
    const AND: u32 = 0xffff_ffd0;
    const XOR: u32 = 0xffff_ffc0;
    const ACTION: u32 = !0xf;
    let long = bytes_at(settings, 0).map(usize::from_ne_bytes);
    // A mark has 32 bits; what a long has beyond is lost.
    let mark = long.and_then(|long| u32::try_from(long & 0xffff_ffff).ok());
    match (mark, u32_at(settings, size_of::<usize>()).map(|word| word & ACTION)) {
        (Some(_), Some(SET)) => Effect::Writes(u32::MAX),
        (Some(mark), Some(OR | XOR)) => Effect::Writes(mark),
        (Some(mark), Some(AND)) => Effect::Writes(!mark),
        (_, _) => Effect::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn connmark(revision: u32, masks: [u32; 2], bytes: [u8; 4]) -> Effect {
        let settings = [words(&[0, masks[0], masks[1]]), bytes.to_vec()].concat();
        effect("CONNMARK", revision, &settings)
    }

    #[test]
    fn a_mark_changes_its_mask_and_what_its_value_has_beyond() {
        assert_eq!(effect("MARK", 2, &words(&[0x4000, 0x4000])), Effect::Writes(0x4000));
        assert_eq!(effect("MARK", 2, &words(&[0, 0x4000])), Effect::Writes(0x4000));
        assert_eq!(effect("MARK", 2, &words(&[0x10, 0])), Effect::Writes(0x10), "--xor-mark");
        assert_eq!(effect("TPROXY", 1, &words(&[0xff, 0x101])), Effect::Writes(0x1ff));
    }

    #[test]
    fn only_a_restored_connmark_writes_the_packet_s() {
        for (mode, expected) in
            [(0, Effect::Nothing), (1, Effect::Nothing), (2, Effect::Writes(0xff)), (3, Effect::Unknown)]
        {
            assert_eq!(connmark(1, [0xf, 0xf0], [mode, 0, 0, 0]), expected);
            assert_eq!(connmark(2, [0xf, 0xf0], [0, 0, mode, 0]), expected);
            assert_eq!(connmark(3, [0xf, 0xf0], [0, 0, mode, 0]), expected);
        }
        assert_eq!(connmark(2, [0xf, 0xf0], [0, 8, 2, 0]), Effect::Writes(0xff0), "shifted left");
        assert_eq!(connmark(2, [0xf00, 0xf0], [1, 8, 2, 0]), Effect::Writes(0xff), "shifted right");
        assert_eq!(connmark(2, [0xf00, 0xf0], [0, 32, 2, 0]), Effect::Unknown);
    }

    #[test]
    fn a_set_writes_where_it_maps_to_marks() {
        let set = |index: u32, flags| effect("SET", 3, &words(&[0xffff, 0xffff, index, flags, 0]));
        assert_eq!(set(1, 1 << 8), Effect::Writes(u32::MAX));
        assert_eq!(set(1, 1 << 9), Effect::Nothing);
        assert_eq!(set(0xffff, 1 << 8), Effect::Nothing);
        assert_eq!(effect("SET", 4, &words(&[0; 5])), Effect::Unknown);
    }

    #[test]
    fn a_mark_of_ebtables_is_set_or_merged() {
        let mark = |action: u32| {
            let settings = [0x4000usize.to_ne_bytes().to_vec(), words(&[action])].concat();
            effect("mark", 0, &settings)
        };
        assert_eq!(mark(0xffff_ffff), Effect::Writes(u32::MAX), "set and accept");
        assert_eq!(mark(0xffff_ffed), Effect::Writes(0x4000), "or and continue");
        assert_eq!(mark(0xffff_ffdd), Effect::Writes(!0x4000), "and");
        assert_eq!(mark(0xffff_ffcd), Effect::Writes(0x4000), "xor");
        assert_eq!(mark(0), Effect::Unknown);
    }

    #[test]
    fn what_is_not_known_or_cut_off_is_no_nothing() {
        for (name, revision) in
            [("MARK", 2), ("CONNMARK", 1), ("CONNMARK", 2), ("TPROXY", 0), ("SET", 3), ("mark", 0)]
        {
            for length in 0..8 {
                assert_eq!(effect(name, revision, &vec![2; length]), Effect::Unknown, "{name} {length}");
            }
        }
        for (name, revision) in
            [("MARK", 1), ("MARK", 3), ("CONNMARK", 0), ("CONNMARK", 4), ("TPROXY", 2), ("IPMARK", 0)]
        {
            assert_eq!(effect(name, revision, &[0; 64]), Effect::Unknown, "{name} {revision}");
        }
        assert_eq!(effect("MASQUERADE", 0, &[]), Effect::Nothing);
        assert!(HARMLESS.is_sorted());
    }
}
