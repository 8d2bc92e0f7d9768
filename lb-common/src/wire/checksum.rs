//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are taken over 16-bit words as they lie in memory. The sum of byte-swapped words is the
//! byte-swapped sum (RFC 1071 section 2 (B)), so nothing is converted between byte orders as long
//! as the result is stored the way the words were read.

/// What a rewrite adds to a checksum: `Σ new + Σ !old` (RFC 1624 equation 3), not yet folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u32);

impl Delta {
    /// Nothing has changed.
    pub const NONE: Self = Self(0);

    /// Also counts two bytes, at an even offset, that were not there before.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, new: [u8; 2]) -> Self {
        Self(self.0 + u16::from_ne_bytes(new) as u32)
    }

    /// Also counts four bytes, at an even offset, that were not there before.
    #[inline(always)]
    #[must_use]
    pub const fn plus2(self, new: [u8; 4]) -> Self {
        self.plus([new[0], new[1]]).plus([new[2], new[3]])
    }

    /// Also counts sixteen bytes, at an even offset, that were not there before.
    #[inline(always)]
    #[must_use]
    pub const fn plus8(self, new: &[u8; 16]) -> Self {
        let mut sum = self;
        let mut i = 0;
        while i < 16 {
            sum = sum.plus([new[i], new[i + 1]]);
            i += 2;
        }
        sum
    }

    /// The checksum over what was counted, where nothing was there before.
    #[inline(always)]
    #[must_use]
    pub const fn checksum(self) -> [u8; 2] {
        (!fold(self.0)).to_ne_bytes()
    }

    /// Also counts two bytes, at an even offset, that changed from `old` to `new`.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: [u8; 2], new: [u8; 2]) -> Self {
        Self(self.0 + !u16::from_ne_bytes(old) as u32 + u16::from_ne_bytes(new) as u32)
    }

    /// Also counts four bytes, at an even offset, that changed from `old` to `new`.
    #[inline(always)]
    #[must_use]
    pub const fn words2(self, old: [u8; 4], new: [u8; 4]) -> Self {
        self.word([old[0], old[1]], [new[0], new[1]])
            .word([old[2], old[3]], [new[2], new[3]])
    }

    /// Also counts sixteen bytes, at an even offset, that changed from `old` to `new`.
    #[inline(always)]
    #[must_use]
    pub const fn words8(self, old: &[u8; 16], new: &[u8; 16]) -> Self {
        let mut delta = self;
        let mut i = 0;
        while i < 16 {
            delta = delta.word([old[i], old[i + 1]], [new[i], new[i + 1]]);
            i += 2;
        }
        delta
    }

    /// The checksum that takes the place of `checksum` (both as they lie on the wire).
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let sum = self.0 + !u16::from_ne_bytes(checksum) as u32;
        (!fold(sum)).to_ne_bytes()
    }

    /// As [`Self::apply`], with UDP's exception: 0 means that there is no checksum and stays 0
    /// (IPv4, RFC 768), and a checksum that becomes 0 is sent as 0xFFFF (RFC 768, RFC 8200
    /// section 8.1).
    #[inline(always)]
    #[must_use]
    pub const fn apply_udp(self, checksum: [u8; 2]) -> [u8; 2] {
        match checksum {
            [0, 0] => [0, 0],
            _ => match self.apply(checksum) {
                [0, 0] => [0xff, 0xff],
                sum => sum,
            },
        }
    }
}

/// Folds carries back in until 16 bits are left. Two rounds do for any 32-bit sum.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Whether words that hold their own checksum sum up as they should: to minus zero.
#[inline(always)]
pub fn is_zero<const N: usize>(words: [[u8; 2]; N]) -> bool {
    let mut sum = 0;
    for word in words {
        sum += u32::from(u16::from_ne_bytes(word));
    }
    fold(sum) == 0xffff
}

/// The checksum over `bytes`, computed anew (RFC 1071), with `start` as the sum of what comes
/// before, such as a pseudo-header. An odd last byte is padded with zero.
pub fn full(start: Delta, bytes: &[u8]) -> [u8; 2] {
    let mut sum = u64::from(start.0);
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_ne_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_ne_bytes()
}

/// The sum over `bytes` (of even length), to start [`full`] with.
pub fn sum(bytes: &[u8]) -> Delta {
    let total = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]])))
        .sum();
    Delta(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn full_matches_the_example_of_rfc_1071() {
        // Section 3: the bytes 00 01 f2 03 f4 f5 f6 f7 sum to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(full(Delta::NONE, &bytes), [!0xdd, !0xf2]);
    }

    #[test]
    fn update_keeps_minus_zero_as_rfc_1624_asks() {
        // Section 4's example: checksum dd2f, a word changes from 5555 to 3285, new is 0000.
        let delta = Delta::NONE.word([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(delta.apply([0xdd, 0x2f]), [0x00, 0x00]);
        assert_eq!(delta.apply_udp([0xdd, 0x2f]), [0xff, 0xff]);
    }

    #[test]
    fn udp_without_checksum_stays_without() {
        assert_eq!(Delta::NONE.word([1, 2], [3, 4]).apply_udp([0, 0]), [0, 0]);
    }

    proptest! {
        #[test]
        fn update_equals_computing_anew(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..80),
            new in any::<[u8; 16]>(),
        ) {
            bytes[18] |= 1; // not all zero: of the two zeros only ffff-sum occurs then
            let before = full(Delta::NONE, &bytes);
            let old: [u8; 16] = bytes[0..16].try_into().expect("sixteen bytes");
            bytes[0..16].copy_from_slice(&new);
            prop_assert_eq!(
                Delta::NONE.words8(&old, &new).apply(before),
                full(Delta::NONE, &bytes)
            );
        }
    }
}
