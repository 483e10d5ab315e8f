//! The rules of `nf_tables`: what nft makes, and iptables-nft and ebtables-nft by targets of xtables in it. A rule is run
//! with registers of which each bit is the packet's mark, known, or anything.

use std::io;
use std::ops::ControlFlow;

use super::super::netlink::{Attributes, Netlink, Request, Streamed, bytes_at, text, u32_at};
use super::targets::{Effect, effect};
use super::value::{Registers, Source, Value};
use super::{How, MAX_BYTES, MAX_RULES, Place, Read, Which, Written};

/// `struct nfgenmsg`, and the request for rules: the subsystem of `nf_tables` (`linux/netfilter/nfnetlink.h`) and
/// `NFT_MSG_GETRULE` (`linux/netfilter/nf_tables.h`, as all that follows).
const NFGENMSG: usize = 4;
const GET_RULE: u16 = 10 << 8 | 7;
/// `NFTA_RULE_*`: what an answer holds,
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const HANDLE: u16 = 3;
const EXPRESSIONS: u16 = 4;
/// `NFTA_LIST_ELEM`; `NFTA_EXPR_*`: what an expression holds,
const ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_META_*` and `NFT_META_MARK`,
const META_DESTINATION: u16 = 1;
const META_KEY: u16 = 2;
const META_SOURCE: u16 = 3;
const META_MARK: u32 = 3;
/// `NFTA_CT_*` and `NFT_CT_MARK`,
const CT_DESTINATION: u16 = 1;
const CT_KEY: u16 = 2;
const CT_MARK: u32 = 3;
/// `NFTA_IMMEDIATE_*`, `NFTA_DATA_VALUE`, `NFT_REG_VERDICT`,
const IMMEDIATE_DESTINATION: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const VERDICT: u32 = 0;
/// `NFTA_BITWISE_*`, the second register since Linux 6.13, and `enum nft_bitwise_ops`,
const BITWISE_SOURCE: u16 = 1;
const BITWISE_DESTINATION: u16 = 2;
const BITWISE_LENGTH: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const BITWISE_OPERATION: u16 = 6;
const BITWISE_DATA: u16 = 7;
const BITWISE_SOURCE_2: u16 = 8;
const MASK_AND_XOR: u32 = 0;
const AND: u32 = 3;
const OR: u32 = 4;
const XOR: u32 = 5;
/// `NFTA_TARGET_*` (`linux/netfilter/nf_tables_compat.h`).
const TARGET_NAME: u16 = 1;
const TARGET_REVISION: u16 = 2;
const TARGET_SETTINGS: u16 = 3;
/// A mark's bytes.
const MARK_BYTES: usize = 4;

/// Adds every rule of every family.
pub(super) fn dump(mask: u32, found: &mut Written) -> io::Result<Streamed> {
    let request = Request::new(GET_RULE, 0, &[0; NFGENMSG]);
    Netlink::open_netfilter()?.stream_until(&request, |body| {
        found.bytes += u64::try_from(body.len()).unwrap_or(u64::MAX);
        found.take(mask, parse(body));
        if found.rules < MAX_RULES && found.bytes < MAX_BYTES {
            return ControlFlow::Continue(());
        }
        found.unread.push(format!("rules of nf_tables after the first {}", found.rules));
        ControlFlow::Break(())
    })
}

/// `None` if not even its place can be read.
fn parse(body: &[u8]) -> Option<Read> {
    let find = |kind| Attributes::find(body, NFGENMSG, kind);
    let place = Place {
        family: family(*body.first()?),
        table: text(find(TABLE)?),
        chain: text(find(CHAIN)?),
        which: Which::Handle(u64::from_be_bytes(find(HANDLE)?.try_into().ok()?)),
    };
    let mut rule = Running::new();
    let ran = match find(EXPRESSIONS) {
        _ if !is_whole(body.get(NFGENMSG..)?) => None,
        // The kernel leaves an empty list out.
        None => Some(()),
        Some(expressions) => rule.run(expressions),
    };
    let write = if ran.is_some() { rule.write } else { Some((u32::MAX, How::Unreadable)) };
    Some(Read { place, write })
}

/// `NFPROTO_*` of `linux/netfilter.h`, as nft calls them.
fn family(number: u8) -> String {
    match number {
        1 => "inet".to_owned(),
        2 => "ip".to_owned(),
        3 => "arp".to_owned(),
        5 => "netdev".to_owned(),
        7 => "bridge".to_owned(),
        10 => "ip6".to_owned(),
        other => format!("family {other}"),
    }
}

/// A rule while its expressions are gone through.
struct Running {
    registers: Registers,
    write: Option<(u32, How)>,
}

impl Running {
    const fn new() -> Self {
        Self { registers: Registers::new(), write: None }
    }

    /// `None` if an expression cannot be read.
    fn run(&mut self, expressions: &[u8]) -> Option<()> {
        is_whole(expressions).then_some(())?;
        for (kind, expression) in Attributes::after(expressions, 0) {
            (kind == ELEMENT && is_whole(expression)).then_some(())?;
            let name = text(Attributes::find(expression, 0, EXPRESSION_NAME)?);
            let data = Attributes::find(expression, 0, EXPRESSION_DATA).unwrap_or_default();
            is_whole(data).then_some(())?;
            match name.as_str() {
                "meta" => self.meta(data)?,
                "ct" => self.ct(data)?,
                "immediate" => self.immediate(data)?,
                "bitwise" => self.bitwise(data)?,
                "target" => self.target(data)?,
                // They fill no register.
                "cmp" | "range" | "counter" | "match" | "log" | "limit" => {}
                _ => self.registers.forget(),
            }
        }
        Some(())
    }

    fn wrote(&mut self, bits: u32, how: How) {
        if bits == 0 {
            return;
        }
        let (before, last) = self.write.take().unwrap_or((0, How::Set));
        self.write = Some((before | bits, last.max(how)));
    }

    /// Loads something of the packet, or sets it.
    fn meta(&mut self, data: &[u8]) -> Option<()> {
        let key = be32(data, META_KEY)?;
        if let Some(register) = be32(data, META_DESTINATION) {
            return self.load(register, (key == META_MARK).then_some(Value::PACKET_MARK));
        }
        let value = self.registers.get(be32(data, META_SOURCE)?)?;
        if key == META_MARK {
            let how = match value.source {
                Source::Rule | Source::Packet => How::Set,
                Source::Connection => How::Restored,
                Source::Unknown => How::Opaque,
            };
            self.wrote(value.changes(), how);
        }
        Some(())
    }

    /// Loads something of the connection; what is set of it is not the packet's.
    fn ct(&mut self, data: &[u8]) -> Option<()> {
        let key = be32(data, CT_KEY)?;
        match be32(data, CT_DESTINATION) {
            Some(register) => self.load(register, (key == CT_MARK).then_some(Value::CONNECTION_MARK)),
            None => Some(()),
        }
    }

    /// What is not a mark may fill more than a word.
    fn load(&mut self, register: u32, mark: Option<Value>) -> Option<()> {
        let Some(mark) = mark else {
            self.registers.forget();
            return Some(());
        };
        self.registers.set(register, mark)
    }

    fn immediate(&mut self, data: &[u8]) -> Option<()> {
        let register = be32(data, IMMEDIATE_DESTINATION)?;
        if register == VERDICT {
            return Some(());
        }
        let value = value_of(data, IMMEDIATE_DATA)?;
        self.load(register, word(value).map(Value::constant))
    }

    fn bitwise(&mut self, data: &[u8]) -> Option<()> {
        let source = self.registers.get(be32(data, BITWISE_SOURCE)?)?;
        let destination = be32(data, BITWISE_DESTINATION)?;
        // Kernels before 5.7 know one operation and do not name it.
        let operation = be32(data, BITWISE_OPERATION).unwrap_or(MASK_AND_XOR);
        let constant = |kind| value_of(data, kind).and_then(word).map(Value::constant);
        if be32(data, BITWISE_LENGTH).and_then(|length| usize::try_from(length).ok()) != Some(MARK_BYTES) {
            return self.load(destination, None);
        }
        let result = match operation {
            MASK_AND_XOR => source.and(constant(BITWISE_MASK)?).xor(constant(BITWISE_XOR)?),
            AND | OR | XOR => {
                let other = match be32(data, BITWISE_SOURCE_2) {
                    Some(register) => self.registers.get(register)?,
                    None => constant(BITWISE_DATA)?,
                };
                match operation {
                    AND => source.and(other),
                    OR => source.or(other),
                    _ => source.xor(other),
                }
            }
            // Shifts, and what later kernels may have.
            _ => Value::UNKNOWN,
        };
        self.registers.set(destination, result)
    }

    fn target(&mut self, data: &[u8]) -> Option<()> {
        let name = text(Attributes::find(data, 0, TARGET_NAME)?);
        let settings = Attributes::find(data, 0, TARGET_SETTINGS).unwrap_or_default();
        match effect(&name, be32(data, TARGET_REVISION)?, settings) {
            Effect::Nothing => {}
            Effect::Writes(bits) => self.wrote(bits, How::Target(name)),
            Effect::Unknown => self.wrote(u32::MAX, How::UnknownTarget(name)),
        }
        Some(())
    }
}

/// Whether attributes fill a buffer to its end: [`Attributes`] leaves out what comes after a broken one.
fn is_whole(buffer: &[u8]) -> bool {
    let end = Attributes::after(buffer, 0).fold(0, |at: usize, (_, value)| {
        at.next_multiple_of(4).saturating_add(4).saturating_add(value.len())
    });
    end.next_multiple_of(4) >= buffer.len()
}

/// A number of `nf_tables`, in network byte order.
fn be32(data: &[u8], kind: u16) -> Option<u32> {
    Attributes::find(data, 0, kind).and_then(|value| bytes_at(value, 0)).map(u32::from_be_bytes)
}

/// The bytes of a constant.
fn value_of(data: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes::find(Attributes::find(data, 0, kind)?, 0, DATA_VALUE)
}

/// A constant as a register holds it, if it is as long as a mark.
fn word(value: &[u8]) -> Option<u32> {
    u32_at(value, 0).filter(|_| value.len() == MARK_BYTES)
}

#[cfg(test)]
#[path = "nftables_tests.rs"]
mod tests;
