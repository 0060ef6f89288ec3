//! Size vectors packed into machine words, so that "does it fit in every dimension" is a few instructions.
//!
//! Every dimension gets a field wide enough for its capacity and one guard bit above it. With the
//! guard bits of the minuend set, one subtraction of whole words subtracts all fields at once, and a
//! field that would have gone below zero shows as a cleared guard bit, never as a borrow from its
//! neighbour. Invariant: no field of a size or a remainder exceeds its capacity.

/// A vector in `W` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Packed<const W: usize>(pub(super) [u64; W]);

/// Where each dimension lives in the words.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Word and shift, one a dimension.
    places: Vec<(usize, u32)>,
    word_count: usize,
    guards: Vec<u64>,
}

impl Layout {
    /// Lays fields of the capacities' widths into as few words as first-fit does.
    pub(super) fn new(capacity: &[i64]) -> Layout {
        let mut used_bits: Vec<u32> = Vec::new();
        let mut places = Vec::with_capacity(capacity.len());
        let mut guards: Vec<u64> = Vec::new();
        for &capacity in capacity {
            debug_assert!(
                capacity > 0,
                "dimensions without capacity are taken out before"
            );
            let bits = 64 - capacity.unsigned_abs().leading_zeros() + 1;
            let word = match used_bits.iter().position(|used| used + bits <= 64) {
                Some(word) => word,
                None => {
                    used_bits.push(0);
                    guards.push(0);
                    used_bits.len() - 1
                }
            };
            places.push((word, used_bits[word]));
            used_bits[word] += bits;
            guards[word] |= 1 << (used_bits[word] - 1);
        }
        Layout {
            places,
            word_count: used_bits.len().max(1),
            guards,
        }
    }

    pub(super) fn word_count(&self) -> usize {
        self.word_count
    }

    pub(super) fn guard<const W: usize>(&self) -> Packed<W> {
        let mut words = [0; W];
        words[..self.guards.len()].copy_from_slice(&self.guards);
        Packed(words)
    }

    /// Packs a vector none of whose numbers exceeds its capacity.
    pub(super) fn pack<const W: usize>(&self, vector: &[i64]) -> Packed<W> {
        let mut words = [0; W];
        for (&(word, shift), &number) in self.places.iter().zip(vector) {
            words[word] |= number.unsigned_abs() << shift;
        }
        Packed(words)
    }
}

impl<const W: usize> Packed<W> {
    /// `self - size` if no dimension goes below zero.
    #[inline(always)]
    pub(super) fn minus(&self, size: &Self, guard: &Self) -> Option<Self> {
        let mut missing = 0;
        let words = std::array::from_fn(|word| {
            let difference = (self.0[word] | guard.0[word]).wrapping_sub(size.0[word]);
            missing |= !difference & guard.0[word];
            difference & !guard.0[word]
        });
        (missing == 0).then_some(Packed(words))
    }

    #[inline(always)]
    pub(super) fn fits(&self, size: &Self, guard: &Self) -> bool {
        let mut missing = 0;
        for ((rest, size), guard) in self.0.iter().zip(&size.0).zip(&guard.0) {
            missing |= !(rest | guard).wrapping_sub(*size) & guard;
        }
        missing == 0
    }
}
