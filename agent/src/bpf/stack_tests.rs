//! The stack of the programs as Linux 6.1 counts it, without a machine of it: later kernels give each program more, and
//! would not tell.

use std::collections::BTreeMap;

use object::read::elf::ElfFile64;
use object::{
    LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind,
};

use super::*;

/// What all frames of a chain of calls may have (`MAX_BPF_STACK` of include/linux/filter.h).
const STACK: u64 = 512;
/// Each frame is counted in steps (`check_max_stack_depth` of kernel/bpf/verifier.c, up to Linux 6.8).
const STEP: u64 = 32;
/// Bytes of an instruction.
const INSTRUCTION: u64 = 8;
/// The register of the frame, the opcodes that matter, and what marks a call of a function of the object's own
/// (include/uapi/linux/bpf.h).
const FRAME: u8 = 10;
const CALL: u8 = 0x85;
const COPY: u8 = 0xbf;
const ADD: u8 = 0x07;
const OWN_FUNCTION: u8 = 1;

/// A place in the object: section and offset.
type Place = (usize, u64);

#[derive(Debug)]
struct Function {
    name: String,
    /// Bytes of its frame.
    frame: u64,
    calls: Vec<Place>,
}

struct Instruction {
    opcode: u8,
    to: u8,
    from: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn of(bytes: &[u8]) -> Self {
        let word = |range: std::ops::Range<usize>| bytes.get(range).unwrap();
        let registers = bytes[1];
        Self {
            opcode: bytes[0],
            to: registers & 0xf,
            from: registers >> 4,
            offset: i16::from_le_bytes(word(2..4).try_into().unwrap()),
            immediate: i32::from_le_bytes(word(4..8).try_into().unwrap()),
        }
    }

    /// How far down the frame it reaches by the frame's register itself.
    fn reaches(&self) -> u64 {
        // The classes LDX, ST and STX.
        let base = match self.opcode & 7 {
            1 => self.from,
            2 | 3 => self.to,
            _ => return 0,
        };
        if base == FRAME { u64::from(self.offset.unsigned_abs()) } else { 0 }
    }
}

/// Functions by their places.
fn functions() -> BTreeMap<Place, Function> {
    let file = ElfFile64::<LittleEndian>::parse(OBJECT).unwrap();
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
        let code = section.data_range(symbol.address(), symbol.size()).unwrap().unwrap();
        let targets: BTreeMap<u64, Place> = section
            .relocations()
            .filter_map(|(at, relocation)| {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    return None;
                };
                let symbol = file.symbol_by_index(index).unwrap();
                Some((at, (symbol.section_index()?.0, symbol.address())))
            })
            .collect();
        let mut function = Function { name: symbol.name().unwrap().to_owned(), frame: 0, calls: Vec::new() };
        let mut copies = [false; 16];
        for (at, bytes) in (symbol.address()..).step_by(8).zip(code.chunks_exact(8)) {
            let instruction = Instruction::of(bytes);
            function.frame = function.frame.max(instruction.reaches());
            let to = usize::from(instruction.to);
            match instruction.opcode {
                CALL if instruction.from == OWN_FUNCTION => {
                    let steps = i64::from(instruction.immediate) + 1;
                    let (section, begin) = targets.get(&at).copied().unwrap_or((section.index().0, at));
                    let place = begin.checked_add_signed(steps * i64::try_from(INSTRUCTION).unwrap());
                    function.calls.push((section, place.unwrap()));
                }
                COPY => copies[to] = instruction.from == FRAME,
                ADD if copies[to] => {
                    function.frame = function.frame.max(u64::from(instruction.immediate.unsigned_abs()));
                    copies[to] = false;
                }
                // Whatever else writes a register: arithmetic and loads.
                opcode if matches!(opcode & 7, 0 | 1 | 4 | 7) => copies[to] = false,
                _ => {}
            }
        }
        functions.insert((section.index().0, symbol.address()), function);
    }
    functions
}

/// The deepest chain from here: its bytes, and the names on it.
fn deepest(functions: &BTreeMap<Place, Function>, at: Place) -> (u64, Vec<String>) {
    let function = functions.get(&at).unwrap_or_else(|| panic!("no function at {at:?}"));
    let below = function.calls.iter().map(|call| deepest(functions, *call)).max().unwrap_or_default();
    let name = format!("{} ({})", function.name, function.frame);
    let frame = function.frame.max(1).next_multiple_of(STEP);
    (below.0 + frame, std::iter::once(name).chain(below.1).collect())
}

#[test]
fn every_chain_of_calls_fits_into_the_stack_of_linux_6_1() {
    let functions = functions();
    let depth = |name: &str| {
        let at = functions.iter().find(|(_, function)| function.name == name).unwrap().0;
        deepest(&functions, *at)
    };
    let mut branched = 0;
    for name in [POD_EGRESS, POD_INGRESS, DELIVER_OUT, DELIVER_HERE, HOST_IN, HOST_OUT] {
        let (bytes, chain) = depth(name);
        println!("{name}: {bytes} of {STACK} bytes: {}", chain.join(", "));
        assert!(bytes <= STACK, "{name}: {bytes} of {STACK} bytes: {}", chain.join(", "));
        branched += usize::from(chain.len() > 2);
    }
    assert!(branched > 0, "no program calls a function that calls another: the object was not read rightly");
    assert!(functions.values().any(|function| function.frame > 128), "no frame was seen");
}
