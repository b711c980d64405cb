//! Hash trees of content: the complete BLAKE3 digest, or a digest that skips zeros.
//!
//! The complete digest is the BLAKE3 digest of all bytes, as `b3sum` prints it. BLAKE3 numbers its chunks, so
//! the value of a run of zeros depends on its offset, and hashing a hole of a terabyte takes minutes. Where
//! that digest is not requested, zeros are skipped:
//!
//! - Content is a sequence of blocks of [`BLOCK_BYTES`] bytes (the last one may be shorter) from the start of
//!   the file or range. The value of a block is [`ZERO_DIGEST`] if all its bytes are zero, stored or in a hole;
//!   otherwise it is its BLAKE3 chaining value at its offset in the file.
//! - Blocks are merged into the BLAKE3 tree. The value of a node is [`ZERO_DIGEST`] if both children have that value,
//!   otherwise the BLAKE3 value of the two.
//! - The value of a range is that of its topmost node; the digest of a file is the same with the root flag.
//!   An empty file and a file of zeros have [`ZERO_DIGEST`].
//!
//! So content without a zero block has its BLAKE3 digest, equal content has equal values for every layout of
//! holes, and a hole of any size takes a few steps. Two contents of one length with one value are equal with
//! the certainty of BLAKE3: no chaining value of 32 zero bytes is known.

use super::Digest;
use blake3::Hasher;
use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// The length of the blocks that are hashed and compared, in bytes. Shorter blocks find more equal content,
/// and cost 34 bytes of reply each.
pub const BLOCK_BYTES: u64 = 256 << 10;

/// The value of zeros in [`HashMode::SkipZeros`].
pub const ZERO_DIGEST: Digest = Digest([0; 32]);

static ZERO_BLOCK: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashMode {
    /// All bytes are hashed.
    Full,
    /// Blocks of zeros are skipped.
    SkipZeros,
}

impl HashMode {
    /// The value of one non-empty block at `offset` of its file.
    pub fn hash_block(self, offset: u64, content: &[u8]) -> Digest {
        if self == HashMode::SkipZeros && is_all_zero(content) {
            return ZERO_DIGEST;
        }
        let mut hasher = hasher_at(offset);
        hasher.update(content);
        Digest(hasher.finalize_non_root())
    }
}

/// A hasher for the chaining value of content at `offset`, a multiple of 1 KiB.
pub(crate) fn hasher_at(offset: u64) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher
}

/// `content` has any length.
pub fn is_all_zero(content: &[u8]) -> bool {
    content.chunks(ZERO_BLOCK.len()).all(|chunk| *chunk == ZERO_BLOCK[..chunk.len()])
}

fn merge_subtrees(left: &Digest, right: &Digest, is_root: bool) -> Digest {
    if *left == ZERO_DIGEST && *right == ZERO_DIGEST {
        ZERO_DIGEST
    } else if is_root {
        merge_subtrees_root(&left.0, &right.0, Mode::Hash).into()
    } else {
        Digest(merge_subtrees_non_root(&left.0, &right.0, Mode::Hash))
    }
}

/// Merges the chaining values of equal, power-of-two ranges (the last one may be shorter) into the
/// BLAKE3 digest of the whole file, as `b3sum` prints it. `None` for less than two ranges: a file of one range has
/// no chaining value, only a digest.
pub fn merge_ranges(values: &[Digest]) -> Option<Digest> {
    SubtreeStack::of_equal_blocks(values).root_digest().filter(|_| values.len() > 1)
}

/// Merges the chaining values of equal, power-of-two blocks (the last one may be shorter) into the
/// value of the range that they cover; `None` for no block.
pub fn merge_blocks(values: &[Digest]) -> Option<Digest> {
    SubtreeStack::of_equal_blocks(values).merged_value()
}

/// Merges the values of subtrees, which are added in order.
///
/// Source: the BLAKE3 paper, section 2.1 (left subtrees are full), and `blake3::hazmat`.
#[derive(Debug, Clone, Default)]
pub struct SubtreeStack {
    /// Height above a block and value; the heights decrease.
    entries: Vec<(u32, Digest)>,
}

impl SubtreeStack {
    fn of_equal_blocks(values: &[Digest]) -> Self {
        let mut stack = SubtreeStack::default();
        values.iter().for_each(|value| stack.push_subtree(BLOCK_BYTES, *value));
        stack
    }

    /// Adds the value of the next `length` bytes: a power of two of blocks that begins at a multiple of that length, or
    /// the end of the content.
    pub fn push_subtree(&mut self, length: u64, value: Digest) {
        // The topmost two remain separate: only at the end it is known whether their parent is the root.
        while let [.., (left_height, left), (height, right)] = self.entries.as_slice()
            && left_height == height
        {
            let parent = (height + 1, merge_subtrees(left, right, false));
            self.entries.truncate(self.entries.len() - 2);
            self.entries.push(parent);
        }
        self.entries.push((length.div_ceil(BLOCK_BYTES).next_power_of_two().ilog2(), value));
    }

    /// The value of the range; `None` for an empty one.
    pub fn merged_value(&self) -> Option<Digest> {
        self.merge_from_right(false)
    }

    /// The digest of the file, if it has more than one subtree.
    fn root_digest(&self) -> Option<Digest> {
        self.merge_from_right(true)
    }

    fn merge_from_right(&self, is_root: bool) -> Option<Digest> {
        let mut merged = self.entries.last()?.1;
        for (index, (_, left)) in self.entries.iter().enumerate().rev().skip(1) {
            merged = merge_subtrees(left, &merged, is_root && index == 0);
        }
        Some(merged)
    }

    /// The number of blocks; the end of the content counts as a full subtree.
    fn block_count(&self) -> u64 {
        self.entries.iter().map(|(height, _)| 1 << height).sum()
    }
}

/// Hashes content that is added in order.
pub struct ContentHasher(State);

enum State {
    Full(Box<Hasher>),
    SkipZeros(Box<SparseHasher>),
}

struct SparseHasher {
    completed: SubtreeStack,
    /// The hasher of the current block; it has content only with `has_data`.
    block: Hasher,
    block_offset: u64,
    block_len: u64,
    /// The current block has a byte that is not zero.
    has_data: bool,
}

impl ContentHasher {
    /// A hasher for a file.
    pub fn new(mode: HashMode) -> Self {
        Self::at_offset(mode, 0)
    }

    /// A hasher for a range at `offset` of a file: a multiple of 1 KiB, and of [`BLOCK_BYTES`] for a range longer than
    /// that.
    pub fn at_offset(mode: HashMode, offset: u64) -> Self {
        let block = hasher_at(offset);
        ContentHasher(match mode {
            HashMode::Full => State::Full(Box::new(block)),
            HashMode::SkipZeros => State::SkipZeros(Box::new(SparseHasher {
                completed: SubtreeStack::default(),
                block,
                block_offset: offset,
                block_len: 0,
                has_data: false,
            })),
        })
    }

    /// Adds content.
    pub fn update(&mut self, mut content: &[u8]) {
        match &mut self.0 {
            State::Full(hasher) => drop(hasher.update(content)),
            State::SkipZeros(hasher) => {
                while !content.is_empty() {
                    let length = hasher.remaining_in_block().min(content.len());
                    let (current, later) = content.split_at(length);
                    hasher.update(current);
                    content = later;
                }
            }
        }
    }

    /// Adds `length` zeros. In [`HashMode::Full`] `check_active` is called for each block.
    ///
    /// # Errors
    /// The error of `check_active`.
    pub fn update_zeros<E>(
        &mut self,
        mut length: u64,
        check_active: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        match &mut self.0 {
            State::Full(hasher) => {
                while length > 0 {
                    check_active()?;
                    let n = length.min(BLOCK_BYTES);
                    hasher.update(&ZERO_BLOCK[..n as usize]);
                    length -= n;
                }
            }
            State::SkipZeros(hasher) => hasher.update_zeros(length),
        }
        Ok(())
    }

    /// The value of a range; `None` for an empty one in [`HashMode::Full`].
    pub fn chaining_value(mut self) -> Option<Digest> {
        match &mut self.0 {
            // BLAKE3 has no chaining value of empty content.
            State::Full(hasher) if hasher.count() == 0 => None,
            State::Full(hasher) => Some(Digest(hasher.finalize_non_root())),
            State::SkipZeros(hasher) => {
                hasher.finish_block();
                Some(hasher.completed.merged_value().unwrap_or(ZERO_DIGEST))
            }
        }
    }

    /// The digest of a file.
    pub fn digest(mut self) -> Digest {
        match &mut self.0 {
            State::Full(hasher) => hasher.finalize().into(),
            State::SkipZeros(hasher) if hasher.completed.entries.is_empty() && hasher.has_data => {
                hasher.block.finalize().into()
            }
            State::SkipZeros(hasher) => {
                hasher.finish_block();
                hasher.completed.root_digest().unwrap_or(ZERO_DIGEST)
            }
        }
    }
}

impl SparseHasher {
    /// The free space of the current block; a full block is finished first.
    fn remaining_in_block(&mut self) -> usize {
        if self.block_len == BLOCK_BYTES {
            self.finish_block();
        }
        (BLOCK_BYTES - self.block_len) as usize
    }

    /// Adds content that fits into the current block.
    fn update(&mut self, content: &[u8]) {
        if !self.has_data && !is_all_zero(content) {
            self.block = hasher_at(self.block_offset);
            self.block.update(&ZERO_BLOCK[..self.block_len as usize]);
            self.has_data = true;
        }
        if self.has_data {
            self.block.update(content);
        }
        self.block_len += content.len() as u64;
    }

    fn finish_block(&mut self) {
        if self.block_len > 0 {
            let data = self.has_data.then(|| Digest(self.block.finalize_non_root()));
            self.completed.push_subtree(self.block_len, data.unwrap_or(ZERO_DIGEST));
            self.block_offset += self.block_len;
            (self.block_len, self.has_data) = (0, false);
        }
    }

    fn update_zeros(&mut self, mut length: u64) {
        if self.block_len > 0 && length > 0 {
            let n = length.min(self.remaining_in_block() as u64);
            self.update(&ZERO_BLOCK[..n as usize]);
            length -= n;
        }
        if length >= BLOCK_BYTES {
            self.finish_block();
        }
        while length >= BLOCK_BYTES {
            // The largest subtree that can begin here.
            let max_height = (length / BLOCK_BYTES).ilog2();
            let before = self.completed.block_count();
            let height =
                if before == 0 { max_height } else { max_height.min(before.trailing_zeros()) };
            let n = BLOCK_BYTES << height;
            self.completed.push_subtree(n, ZERO_DIGEST);
            self.block_offset += n;
            length -= n;
        }
        if length > 0 {
            self.remaining_in_block();
            self.update(&ZERO_BLOCK[..length as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// Length in bytes, whether they are zeros, whether these are added as a hole.
    type Run = (u64, bool, bool);

    fn runs() -> impl Strategy<Value = Vec<Run>> {
        let length =
            prop_oneof![1..2000u64, (0..5u64).prop_map(|n| n * BLOCK_BYTES), 1..3 * BLOCK_BYTES];
        proptest::collection::vec((length, any::<bool>(), any::<bool>()), 0..6)
    }

    fn content(runs: &[Run]) -> Vec<u8> {
        let bytes = |(length, zero, _): &Run| vec![if *zero { 0 } else { 7 }; *length as usize];
        runs.iter().flat_map(bytes).collect()
    }

    fn hash_runs(hasher: &mut ContentHasher, runs: &[Run]) {
        for (length, zero, hole) in runs {
            match zero & hole {
                true => hasher.update_zeros(*length, || Ok::<_, Infallible>(())).unwrap(),
                false => hasher.update(&vec![if *zero { 0 } else { 7 }; *length as usize]),
            }
        }
    }

    /// The values by definition.
    fn block_values(content: &[u8]) -> Vec<Digest> {
        let blocks = content.chunks(BLOCK_BYTES as usize).enumerate();
        blocks
            .map(|(i, block)| HashMode::SkipZeros.hash_block(i as u64 * BLOCK_BYTES, block))
            .collect()
    }

    #[test]
    fn a_hole_of_any_length_costs_few_steps_and_has_a_distinct_digest() {
        let digest = |before: u64, after: u64| {
            let mut hasher = ContentHasher::new(HashMode::SkipZeros);
            hasher.update_zeros(before, || Ok::<_, Infallible>(())).unwrap();
            hasher.update(b"x");
            hasher.update_zeros(after, || Ok::<_, Infallible>(())).unwrap();
            hasher.digest()
        };
        let places = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 1 << 40, (1 << 40) + 1, 1 << 60];
        let mut all: Vec<Digest> = places.map(|before| digest(before, (1 << 61) - before)).into();
        all.push(ZERO_DIGEST);
        let distinct: std::collections::HashSet<[u8; 32]> = all.iter().map(|d| d.0).collect();
        assert_eq!(distinct.len(), all.len());
        let mut hasher = ContentHasher::new(HashMode::SkipZeros);
        hasher.update_zeros(1 << 62, || Err("stop")).unwrap();
        assert_eq!(hasher.digest(), ZERO_DIGEST);
        let mut whole = ContentHasher::new(HashMode::Full);
        assert_eq!(whole.update_zeros(1 << 62, || Err("stop")), Err("stop"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equal_content_has_one_value_for_any_chunking(runs in runs(), cut in 1usize..2_000_000) {
            let content = content(&runs);
            let values = block_values(&content);
            let mut hasher = ContentHasher::new(HashMode::SkipZeros);
            hash_runs(&mut hasher, &runs);
            let expected = merge_blocks(&values).unwrap_or(ZERO_DIGEST);
            prop_assert_eq!(hasher.chaining_value(), Some(expected));
            let mut pieces = ContentHasher::new(HashMode::SkipZeros);
            content.chunks(cut).for_each(|piece| pieces.update(piece));
            prop_assert_eq!(pieces.chaining_value(), Some(expected));
            let mut subtrees = SubtreeStack::default();
            let mut ranges = values.chunks(2).map(|two| merge_blocks(two).unwrap());
            (&mut ranges).for_each(|value| subtrees.push_subtree(2 * BLOCK_BYTES, value));
            prop_assert_eq!(subtrees.merged_value().unwrap_or(ZERO_DIGEST), expected);
        }

        #[test]
        fn full_mode_and_content_without_zero_blocks_give_the_blake3_digest(runs in runs()) {
            let content = content(&runs);
            let expected: Digest = blake3::hash(&content).into();
            let mut whole = ContentHasher::new(HashMode::Full);
            hash_runs(&mut whole, &runs);
            prop_assert_eq!(whole.digest(), expected);
            let mut hasher = ContentHasher::new(HashMode::SkipZeros);
            hash_runs(&mut hasher, &runs);
            let digest = hasher.digest();
            let values = block_values(&content);
            if values.is_empty() || values.contains(&ZERO_DIGEST) {
                prop_assert_ne!(digest, expected);
            } else {
                prop_assert_eq!(digest, expected);
            }
            if values.len() > 1 && !values.contains(&ZERO_DIGEST) {
                prop_assert_eq!(merge_ranges(&values), Some(expected));
            }
        }

        #[test]
        fn merged_ranges_give_the_blake3_digest(len in 2049usize..40_000, power in 0u32..3, seed: u8) {
            let range = 1024usize << power;
            prop_assume!(len > range);
            let content: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            let values: Vec<Digest> = content.chunks(range).enumerate().map(|(i, part)| {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset((i * range) as u64);
                hasher.update(part);
                Digest(hasher.finalize_non_root())
            }).collect();
            prop_assert_eq!(merge_ranges(&values), Some(blake3::hash(&content).into()));
        }

        #[test]
        fn merged_blocks_give_the_chaining_value_of_their_range(
            len in 1usize..40_000,
            power in 0u32..3,
            first in 0u64..5,
            seed: u8,
        ) {
            let block = 1024usize << power;
            let content: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            let value = |offset: u64, part: &[u8]| {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(offset);
                hasher.update(part);
                Digest(hasher.finalize_non_root())
            };
            // A range that begins where such a range of a file may.
            let offset = first << 16;
            let blocks = content.chunks(block).enumerate();
            let values: Vec<Digest> =
                blocks.map(|(i, part)| value(offset + (i * block) as u64, part)).collect();
            prop_assert_eq!(merge_blocks(&values), Some(value(offset, &content)));
        }
    }
}
