//! Which bits of the packet mark are ours, as the administrator says it. What the bits mean is in
//! [`portcullis_common::wire`]; who else writes them is none of this module's.

use std::fmt;
use std::str::FromStr;

use portcullis_common::wire::{DEFAULT_MARK_SHIFT, MARK_BITS};
use thiserror::Error;

/// `--mark-mask`: as many bits as [`MARK_BITS`] has, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkMask(u32);

impl MarkMask {
    /// Our bits, as they stand in the mark.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// How far [`MARK_BITS`] are shifted to be there.
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// Every mask that there can be, from the lowest bits up.
    #[must_use]
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..=MARK_BITS.leading_zeros()).map(|shift| Self(MARK_BITS << shift))
    }
}

impl Default for MarkMask {
    fn default() -> Self {
        Self(MARK_BITS << DEFAULT_MARK_SHIFT)
    }
}

/// As eight hexadecimal digits.
impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// Why a text is no mask.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MarkMaskError {
    /// No number that a mark can be.
    #[error("is no number of 32 bits: write it as {} or in decimal", MarkMask::default())]
    Number,
    /// Too few bits, too many, or holes among them.
    #[error(
        "{given:#010x} is not {wanted} bits in one piece: shift {MARK_BITS:#x} to where nobody else writes, as in {example}",
        wanted = MARK_BITS.count_ones(),
        example = MarkMask::default()
    )]
    Shape {
        /// What was given.
        given: u32,
    },
}

impl TryFrom<u32> for MarkMask {
    type Error = MarkMaskError;

    fn try_from(bits: u32) -> Result<Self, MarkMaskError> {
        Self::all().find(|mask| mask.0 == bits).ok_or(MarkMaskError::Shape { given: bits })
    }
}

impl FromStr for MarkMask {
    type Err = MarkMaskError;

    fn from_str(text: &str) -> Result<Self, MarkMaskError> {
        let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let (digits, radix) = hexadecimal.map_or((text, 10), |digits| (digits, 16));
        // A sign is none of the digits, though the library reads one.
        let is_number = digits.starts_with(|digit: char| digit.is_digit(radix));
        let bits = u32::from_str_radix(digits, radix).ok().filter(|_| is_number);
        bits.ok_or(MarkMaskError::Number)?.try_into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_the_programs_are_built_with() {
        let mask = MarkMask::default();
        assert_eq!((mask.bits(), mask.shift()), (0x0fff_0000, 16));
        assert_eq!(mask.to_string(), "0x0fff0000");
    }

    #[test]
    fn a_mask_is_read_as_hexadecimal_and_as_decimal() {
        for (text, bits, shift) in [
            ("0x0fff0000", 0x0fff_0000, 16),
            ("0xFFF00000", 0xfff0_0000, 20),
            ("0XfFf", 0xfff, 0),
            ("4095", 0xfff, 0),
            ("268369920", 0x0fff_0000, 16),
        ] {
            let mask: MarkMask = text.parse().unwrap();
            assert_eq!((mask.bits(), mask.shift()), (bits, shift), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_told_apart_from_what_is_no_mask() {
        for text in ["", "0x", "fff", "0x0fff0000 ", "+4095", "-1", "0x+fff", "0x100000fff", "4294967296"] {
            assert_eq!(text.parse::<MarkMask>(), Err(MarkMaskError::Number), "{text}");
        }
        for (text, bits) in
            [("0", 0), ("0x7ff", 0x7ff), ("0x1fff", 0x1fff), ("0xff0f0", 0xff0f0), ("0xffffffff", u32::MAX)]
        {
            assert_eq!(text.parse::<MarkMask>(), Err(MarkMaskError::Shape { given: bits }), "{text}");
        }
    }

    #[test]
    fn an_error_says_what_to_write() {
        let said = "0xffff0000".parse::<MarkMask>().unwrap_err().to_string();
        assert_eq!(
            said,
            "0xffff0000 is not 12 bits in one piece: shift 0xfff to where nobody else writes, as in 0x0fff0000"
        );
        let said = "here".parse::<MarkMask>().unwrap_err().to_string();
        assert_eq!(said, "is no number of 32 bits: write it as 0x0fff0000 or in decimal");
    }

    #[test]
    fn every_mask_is_read_back_as_it_is_printed() {
        assert_eq!(MarkMask::all().count(), 21);
        for mask in MarkMask::all() {
            assert_eq!(mask.to_string().parse(), Ok(mask));
            assert_eq!(MARK_BITS << mask.shift(), mask.bits());
        }
    }
}
