//! What a register of `nf_tables` can hold, bit by bit: the packet's own mark, a known bit, or anything. Pure.

/// Where a value comes from, for those who read about it. The later one counts where two meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Written in the rule.
    Rule,
    /// The packet's mark.
    Packet,
    /// The connection's mark.
    Connection,
    /// A map, another field, a register that nothing here has filled.
    Unknown,
}

/// 32 bits of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// Bits that are as they are in the packet's mark.
    kept: u32,
    /// Bits that are 0.
    zeros: u32,
    /// Bits that are 1.
    ones: u32,
    pub(super) source: Source,
}

impl Value {
    pub(super) const UNKNOWN: Self = Self { kept: 0, zeros: 0, ones: 0, source: Source::Unknown };
    pub(super) const PACKET_MARK: Self = Self { kept: u32::MAX, source: Source::Packet, ..Self::UNKNOWN };
    pub(super) const CONNECTION_MARK: Self = Self { source: Source::Connection, ..Self::UNKNOWN };

    pub(super) const fn constant(value: u32) -> Self {
        Self { kept: 0, zeros: !value, ones: value, source: Source::Rule }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            kept: self.kept & other.kept | self.kept & other.ones | other.kept & self.ones,
            zeros: self.zeros | other.zeros,
            ones: self.ones & other.ones,
            source: self.source.max(other.source),
        }
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self {
            kept: self.kept & other.kept | self.kept & other.zeros | other.kept & self.zeros,
            zeros: self.zeros & other.zeros,
            ones: self.ones | other.ones,
            source: self.source.max(other.source),
        }
    }

    pub(super) fn xor(self, other: Self) -> Self {
        Self {
            kept: self.kept & other.zeros | other.kept & self.zeros,
            zeros: self.zeros & other.zeros | self.ones & other.ones,
            ones: self.zeros & other.ones | self.ones & other.zeros,
            source: self.source.max(other.source),
        }
    }

    /// Bits of the packet's mark that differ, or may, once it is set to this.
    pub(super) const fn changes(self) -> u32 {
        !self.kept
    }
}

/// `NFT_REG_1` to `NFT_REG_4` hold 16 bytes each, `NFT_REG32_00` to `_15` are the same bytes in words
/// (`enum nft_registers` of `linux/netfilter/nf_tables.h`).
const WORDS: usize = 16;
const WORDS_OF_A_REGISTER: usize = 4;
const FIRST_REGISTER: usize = 1;
const LAST_REGISTER: usize = 4;
const FIRST_WORD: usize = 8;

/// The registers while a rule runs.
#[derive(Clone, Debug)]
pub(super) struct Registers([Value; WORDS]);

impl Registers {
    /// Before the first expression of a rule.
    pub(super) const fn new() -> Self {
        Self([Value::UNKNOWN; WORDS])
    }

    fn word(register: u32) -> Option<usize> {
        let register = usize::try_from(register).ok()?;
        let word = match register {
            FIRST_REGISTER..=LAST_REGISTER => (register - FIRST_REGISTER) * WORDS_OF_A_REGISTER,
            _ => register.checked_sub(FIRST_WORD)?,
        };
        (word < WORDS).then_some(word)
    }

    /// The first 32 bits of a register; `None` where there is none of this number.
    pub(super) fn get(&self, register: u32) -> Option<Value> {
        self.0.get(Self::word(register)?).copied()
    }

    /// Fills the first 32 bits of a register.
    pub(super) fn set(&mut self, register: u32, value: Value) -> Option<()> {
        *self.0.get_mut(Self::word(register)?)? = value;
        Some(())
    }

    /// Something may have filled any of them with anything.
    pub(super) fn forget(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An operation, and its other operand: the packet's mark, the connection's, or a constant.
    type Step = (u8, u8, u32);

    fn run(steps: &[Step], packet: u32, connection: u32) -> (Value, u32) {
        steps.iter().fold(
            (Value::PACKET_MARK, packet),
            |(value, concrete), (operation, operand, constant)| {
                let (other, number) = match operand % 3 {
                    0 => (Value::PACKET_MARK, packet),
                    1 => (Value::CONNECTION_MARK, connection),
                    _ => (Value::constant(*constant), *constant),
                };
                match operation % 4 {
                    0 => (value.and(other), concrete & number),
                    1 => (value.or(other), concrete | number),
                    2 => (value.xor(other), concrete ^ number),
                    _ => (other, number),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_bit_that_is_told_to_stay_stays_whatever_the_marks_are(
            steps in prop::collection::vec(any::<Step>(), 0..6), packet: u32, connection: u32,
        ) {
            let (value, concrete) = run(&steps, packet, connection);
            prop_assert_eq!((concrete ^ packet) & !value.changes(), 0);
            prop_assert_eq!(concrete & value.zeros, 0);
            prop_assert_eq!(!concrete & value.ones, 0);
        }
    }

    #[test]
    fn what_two_steps_leave_of_a_bit_is_followed() {
        let keep = |mask: u32| Value::PACKET_MARK.and(Value::constant(mask));
        assert_eq!(keep(0xffff_00ff).changes(), 0xff00);
        assert_eq!(keep(0xffff_00ff).or(Value::constant(0x4000)).changes(), 0xff00);
        assert_eq!(Value::PACKET_MARK.or(Value::constant(0x4000)).changes(), 0x4000);
        assert_eq!(Value::PACKET_MARK.xor(Value::constant(3)).changes(), 3);
        let some = Value::CONNECTION_MARK.and(Value::constant(0xf0));
        assert_eq!(keep(!0xf0).or(some).changes(), 0xf0);
        assert_eq!(Value::CONNECTION_MARK.changes(), u32::MAX);
        assert_eq!(Value::constant(0).changes(), u32::MAX);
    }

    #[test]
    fn a_register_and_its_first_word_are_one() {
        let mut registers = Registers::new();
        for (register, word) in [(1, 8), (2, 12), (3, 16), (4, 20)] {
            assert_eq!(registers.set(register, Value::constant(register)), Some(()));
            assert_eq!(registers.get(word), Some(Value::constant(register)));
        }
        for none in [0, 5, 7, 24, u32::MAX] {
            assert_eq!((registers.get(none), registers.set(none, Value::UNKNOWN)), (None, None), "{none}");
        }
        registers.forget();
        assert_eq!(registers.get(1), Some(Value::UNKNOWN));
    }
}
