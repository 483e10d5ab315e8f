//! Rules as a kernel (Linux 6.18) told them after nft 1.0.6, iptables-nft and ebtables-nft 1.8.9 had made them, and what
//! breaks of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::super::super::netlink::push_attribute;
use super::super::MAX_WRITERS;
use super::*;

/// Four lines each: the rule as it was typed, its place, what it writes and by what, the body of the message.
const RECORDED: &str = include_str!("recorded_nftables.txt");

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn recorded() -> Vec<Vec<u8>> {
    let lines: Vec<&str> = RECORDED.lines().map(str::trim).collect();
    lines.chunks(4).map(|rule| bytes(rule[3])).collect()
}

/// As the recorded file says it.
fn told(read: &Read) -> (String, String) {
    let write = read.write.as_ref().map(|(bits, how)| format!("{bits:08x} {how}"));
    (read.place.to_string(), write.unwrap_or_else(|| "nothing".to_owned()))
}

#[test]
fn recorded_rules_write_what_their_text_says() {
    let lines: Vec<&str> = RECORDED.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 20 * 4);
    for rule in lines.chunks(4) {
        let read = parse(&bytes(rule[3])).unwrap();
        assert_eq!(told(&read), (rule[1].to_owned(), rule[2].to_owned()), "{}", rule[0]);
    }
}

/// A list of attributes.
fn attributes(all: &[(u16, &[u8])]) -> Vec<u8> {
    let mut buffer = Vec::new();
    for (kind, value) in all {
        push_attribute(&mut buffer, *kind, value);
    }
    buffer
}

fn expression(name: &str, data: &[(u16, &[u8])]) -> Vec<u8> {
    let text = [name.as_bytes(), b"\0"].concat();
    let expression = attributes(&[(EXPRESSION_NAME, &text), (EXPRESSION_DATA, &attributes(data))]);
    attributes(&[(ELEMENT, &expression)])
}

fn load(name: &str, key: u32, register: u32) -> Vec<u8> {
    let (register, key) = (register.to_be_bytes(), key.to_be_bytes());
    let destination = if name == "ct" { CT_DESTINATION } else { META_DESTINATION };
    expression(name, &[(destination, &register), (META_KEY, &key)])
}

fn set_mark(register: u32) -> Vec<u8> {
    expression("meta", &[(META_KEY, &META_MARK.to_be_bytes()), (META_SOURCE, &register.to_be_bytes())])
}

fn immediate(register: u32, value: &[u8]) -> Vec<u8> {
    let value = attributes(&[(DATA_VALUE, value)]);
    expression("immediate", &[(IMMEDIATE_DESTINATION, &register.to_be_bytes()), (IMMEDIATE_DATA, &value)])
}

/// The operations of Linux 6.13, from one register and another or a constant.
fn merge(operation: u32, from: u32, other: Result<u32, u32>, to: u32) -> Vec<u8> {
    let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
    let (kind, other) = match other {
        Ok(register) => (BITWISE_SOURCE_2, register.to_be_bytes().to_vec()),
        Err(constant) => (BITWISE_DATA, attributes(&[(DATA_VALUE, &constant.to_ne_bytes())])),
    };
    expression(
        "bitwise",
        &[
            (BITWISE_SOURCE, &from),
            (BITWISE_DESTINATION, &to),
            (BITWISE_LENGTH, &4u32.to_be_bytes()),
            (BITWISE_OPERATION, &operation.to_be_bytes()),
            (kind, &other),
        ],
    )
}

fn target(name: &str, revision: u32, settings: &[u8]) -> Vec<u8> {
    let text = [name.as_bytes(), b"\0"].concat();
    let data =
        [(TARGET_NAME, &text[..]), (TARGET_REVISION, &revision.to_be_bytes()), (TARGET_SETTINGS, settings)];
    expression("target", &data)
}

fn rule(expressions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![2, 0, 0, 0];
    push_attribute(&mut body, TABLE, b"t\0");
    push_attribute(&mut body, CHAIN, b"c\0");
    push_attribute(&mut body, HANDLE, &7u64.to_be_bytes());
    push_attribute(&mut body, EXPRESSIONS, &expressions.concat());
    body
}

fn write_of(expressions: &[Vec<u8>]) -> Option<(u32, How)> {
    parse(&rule(expressions)).unwrap().write
}

#[test]
fn marks_are_merged_from_two_registers() {
    let marks = [load("meta", META_MARK, 1), load("ct", CT_MARK, 9)];
    let merged = |steps: &[Vec<u8>], from| write_of(&[&marks[..], steps, &[set_mark(from)]].concat());
    assert_eq!(merged(&[], 1), None, "the mark itself");
    assert_eq!(merged(&[], 9), Some((u32::MAX, How::Restored)));
    // Of the connection's mark a byte, into that byte.
    let byte = [merge(AND, 9, Err(0xff00), 9), merge(AND, 1, Err(!0xff00), 1), merge(OR, 1, Ok(9), 1)];
    assert_eq!(merged(&byte, 1), Some((0xff00, How::Restored)));
    assert_eq!(merged(&[merge(XOR, 1, Err(0xf0), 10)], 10), Some((0xf0, How::Set)));
    assert_eq!(merged(&[merge(OR, 1, Ok(9), 1)], 1), Some((u32::MAX, How::Restored)));
    assert_eq!(
        merged(&[merge(77, 1, Err(0), 1)], 1),
        Some((u32::MAX, How::Opaque)),
        "an operation of later kernels"
    );
}

#[test]
fn a_register_that_something_else_may_have_filled_is_not_the_mark() {
    let mark = || load("meta", META_MARK, 1);
    assert_eq!(write_of(&[mark(), expression("cmp", &[]), set_mark(1)]), None);
    let opaque = Some((u32::MAX, How::Opaque));
    for filler in [
        expression("payload", &[]),
        expression("of a later kernel", &[]),
        load("meta", 6, 2),
        load("ct", 0, 2),
    ] {
        assert_eq!(write_of(&[mark(), filler, set_mark(1)]), opaque);
    }
    // 16 bytes from the first word on, among them the mark's word.
    assert_eq!(write_of(&[load("meta", META_MARK, 10), immediate(1, &[0; 16]), set_mark(10)]), opaque);
    assert_eq!(write_of(&[set_mark(1)]), opaque);
    let other = expression("meta", &[(META_KEY, &2u32.to_be_bytes()), (META_SOURCE, &1u32.to_be_bytes())]);
    assert_eq!(write_of(&[other]), None, "another field is set");
}

#[test]
fn what_a_rule_writes_several_times_adds_up() {
    let settings = [0x10u32.to_ne_bytes(), 0x10u32.to_ne_bytes()].concat();
    let once = target("MARK", 2, &settings);
    let or = [load("meta", META_MARK, 1), merge(OR, 1, Err(1), 1), set_mark(1)].concat();
    assert_eq!(write_of(&[or, once]), Some((0x11, How::Target("MARK".to_owned()))));
    let unknown = How::UnknownTarget("IPMARK".to_owned());
    assert_eq!(write_of(&[target("IPMARK", 0, &[])]), Some((u32::MAX, unknown)));
}

#[test]
fn a_broken_expression_counts_as_one_that_writes_everything() {
    let unreadable = Some((u32::MAX, How::Unreadable));
    let no_key = expression("meta", &[(META_SOURCE, &1u32.to_be_bytes())]);
    let no_such_register = set_mark(99);
    let cut = immediate(1, &[0; 4])[..10].to_vec();
    let no_name = attributes(&[(ELEMENT, &attributes(&[(EXPRESSION_DATA, &[])]))]);
    for broken in
        [no_key, no_such_register, cut, no_name, vec![1], target("MARK", 2, &[]).repeat(2)[..70].to_vec()]
    {
        assert_eq!(write_of(std::slice::from_ref(&broken)), unreadable, "{broken:?}");
    }
}

#[test]
fn a_rule_that_is_cut_off_never_seems_to_write_less() {
    for whole in recorded() {
        let expected = parse(&whole).unwrap();
        for length in 0..whole.len() {
            let Some(cut) = parse(&whole[..length]) else { continue };
            // Where an attribute ends nothing says that there is more.
            let is_list_gone = Attributes::find(&whole[..length], NFGENMSG, EXPRESSIONS).is_none();
            let is_unreadable = cut.write == Some((u32::MAX, How::Unreadable));
            let is_between = is_list_gone && is_whole(&whole[NFGENMSG..length]);
            assert!(cut == expected || is_unreadable || is_between, "{length}: {cut:?}");
        }
    }
}

#[test]
fn only_rules_that_collide_are_kept_and_every_bit_is_known() {
    let mut found = Written::default();
    for body in recorded() {
        found.take(0xff00, parse(&body));
    }
    found.take(0xff00, None);
    assert_eq!((found.rules, found.bits, found.colliding), (21, u32::MAX, 12));
    assert_eq!(found.unread.len(), 1);
    let found = found.finish();
    assert!(found.writers.is_sorted() && found.writers.iter().all(|writer| writer.bits & 0xff00 != 0));
    let mut found = Written::default();
    for _ in 0..=MAX_WRITERS {
        found.take(u32::MAX, parse(&recorded()[0]));
    }
    assert_eq!((found.writers.len(), found.colliding), (MAX_WRITERS, 1025));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&body);
        let _ = Running::new().run(&body);
    }

    #[test]
    fn no_change_of_a_rule_makes_the_reader_panic(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let all = recorded();
        let mut body = which.get(&all).clone();
        for (at, value) in changes {
            let at = at.index(body.len());
            body[at] = value;
        }
        let _ = parse(&body);
    }
}
