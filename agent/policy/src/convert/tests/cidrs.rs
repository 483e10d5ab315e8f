//! Lenient reading of addresses: S20.

use crate::convert::cidr::{address, cidr};

#[test]
fn what_stored_objects_hold_is_read_and_masked() {
    let cases = [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("010.001.002.003/032", "10.1.2.3/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("1.2.3.4/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("FD00::1/64", "fd00::/64"),
        ("00fd00::000001/0128", "fd00::1/128"),
        ("2001:db8::0:0/32", "2001:db8::/32"),
        ("64:ff9b::010.0.0.1/96", "64:ff9b::/96"),
    ];
    for (text, expected) in cases {
        assert_eq!(cidr(text).map(|net| net.to_string()).as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn what_is_no_cidr_is_refused() {
    let cases = [
        "",
        "/",
        "10.0.0.0",
        "10.0.0.0/",
        "/8",
        "10.0.0.0/33",
        "10.0.0/8",
        "10.0.0.0.0/8",
        "256.0.0.0/8",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0.0/8/8",
        " 10.0.0.0/8",
        "10.0.0.0/8 ",
        "10..0.0/8",
        "0x10.0.0.0/8",
        "::/129",
        "fd00::g/8",
        ":::/8",
        "fe80::1%eth0/64",
        "::ffff:10.0.0.0/104",
        "::ffff:0a00:0000/8",
        "1:2:3:4:5:6:7:8:9/8",
        "10.0.0.0/00000000000000000000000000008",
        "::00000000000000000000001/8",
        "é/8",
        "１.0.0.0/8",
    ];
    for text in cases {
        assert_eq!(cidr(text), None, "{text}");
    }
}

#[test]
fn addresses_are_read_the_same_way() {
    assert_eq!(address("010.0.0.1"), "10.0.0.1".parse().ok());
    assert_eq!(address("fd00::1"), "fd00::1".parse().ok());
    assert_eq!(address("::ffff:10.0.0.1"), None);
    assert_eq!(address("node-1"), None);
}
