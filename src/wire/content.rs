//! How content is hashed: as a whole, or without its zeros.
//!
//! A whole digest is the BLAKE3 digest of all bytes, as `b3sum` prints it. BLAKE3 numbers its chunks, so
//! the value of a run of zeros depends on its place, and a hole of a terabyte costs minutes. Where nobody asks
//! for that digest, content is hashed without its zeros:
//!
//! - Content is a sequence of blocks of [`BLOCK_BYTES`] bytes, the last of which may be shorter, from the start of
//!   the file or range on. The value of a block is [`ZERO_DIGEST`] where all its bytes are zero, whether they are
//!   stored or a hole; otherwise it is its BLAKE3 chaining value at its offset in the file.
//! - Blocks are joined to the tree of BLAKE3. The value of a node is [`ZERO_DIGEST`] where those of both its children
//!   are, otherwise BLAKE3's of the two.
//! - The value of a range is that of its topmost node, the digest of a file the same with the flag of the root;
//!   of an empty file and of one of zeros it is [`ZERO_DIGEST`].
//!
//! So content without a block of zeros has its BLAKE3 digest, equal content has equal values however it is
//! stored, and any amount of hole costs a few steps. Two contents of one length with one value are equal as
//! surely as with BLAKE3: a chaining value of 32 zero bytes is not found.

use super::Digest;
use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root,
};

/// The length of the blocks that are hashed and compared, in bytes. Shorter ones find more that is equal,
/// and cost 34 bytes of reply each.
pub const BLOCK_BYTES: u64 = 256 << 10;

/// The value of zeros where content is hashed without them.
pub const ZERO_DIGEST: Digest = Digest([0; 32]);

static ZERO_BLOCK: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// How content is hashed, see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashMode {
    /// All of it.
    Full,
    /// Without its zeros.
    SkipZeros,
}

impl HashMode {
    /// The value of one block, which begins at `offset` of its file and is not empty.
    pub fn hash_block(self, offset: u64, content: &[u8]) -> Digest {
        if self == HashMode::SkipZeros && is_all_zero(content) {
            return ZERO_DIGEST;
        }
        let mut hasher = hasher_at(offset);
        hasher.update(content);
        Digest(hasher.finalize_non_root())
    }
}

/// A hasher for the chaining value of what begins at `offset`, a multiple of 1 KiB.
pub fn hasher_at(offset: u64) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher
}

/// Whether all bytes of `content`, at most a block, are zero.
pub fn is_all_zero(content: &[u8]) -> bool {
    content.chunks(ZERO_BLOCK.len()).all(|piece| *piece == ZERO_BLOCK[..piece.len()])
}

/// Joins the values of neighbouring subtrees.
pub(super) fn merge_subtrees(left: &Digest, right: &Digest) -> Digest {
    if *left == ZERO_DIGEST && *right == ZERO_DIGEST {
        return ZERO_DIGEST;
    }
    Digest(merge_subtrees_non_root(left.as_chaining_value(), right.as_chaining_value(), Mode::Hash))
}

fn merge_root(left: &Digest, right: &Digest) -> Digest {
    if *left == ZERO_DIGEST && *right == ZERO_DIGEST {
        return ZERO_DIGEST;
    }
    merge_subtrees_root(left.as_chaining_value(), right.as_chaining_value(), Mode::Hash).into()
}

impl Digest {
    fn as_chaining_value(&self) -> &ChainingValue {
        &self.0
    }
}

/// Joins the values of subtrees, in order, to that of all of them.
#[derive(Debug, Clone, Default)]
pub struct SubtreeStack {
    /// With their heights above a block, which fall.
    entries: Vec<(u32, Digest)>,
}

impl SubtreeStack {
    /// Adds the value of the next `length` bytes: a power of two blocks that begin at a multiple of
    /// themselves, or the end.
    pub fn push_subtree(&mut self, length: u64, value: Digest) {
        // The topmost two stay apart: whether they make the root is known at the end.
        while let [.., (left_height, left), (height, right)] = self.entries.as_slice()
            && left_height == height
        {
            let joined = (height + 1, merge_subtrees(left, right));
            self.entries.truncate(self.entries.len() - 2);
            self.entries.push(joined);
        }
        self.entries.push((length.div_ceil(BLOCK_BYTES).next_power_of_two().ilog2(), value));
    }

    /// The value of all; `None` where there is none.
    pub fn merged_value(&self) -> Option<Digest> {
        self.merge_from_right(merge_subtrees)
    }

    /// The same of all of a file, of more than one.
    fn root_digest(&self) -> Option<Digest> {
        self.merge_from_right(merge_root)
    }

    /// Joins from the right; the last two with `last`.
    fn merge_from_right(&self, last: impl Fn(&Digest, &Digest) -> Digest) -> Option<Digest> {
        let mut lower = self.entries.iter().rev().map(|(_, value)| *value);
        let mut value = lower.next()?;
        let mut lower = lower.peekable();
        while let Some(left) = lower.next() {
            value = match lower.peek() {
                Some(_) => merge_subtrees(&left, &value),
                None => last(&left, &value),
            };
        }
        Some(value)
    }
}

/// Content being hashed, in order.
pub struct ContentHasher(Kind);

enum Kind {
    Whole(Box<Hasher>),
    NonZero(Box<NonZero>),
}

struct NonZero {
    completed: SubtreeStack,
    /// Of the block that is under way …
    block: Hasher,
    /// … its offset, how much of it has come, and whether some of that is not zero; only then it is in
    /// the hasher.
    at: u64,
    block_len: u64,
    has_data: bool,
}

impl ContentHasher {
    /// For a file.
    pub fn new(hashing: HashMode) -> Self {
        Self::at_offset(hashing, 0)
    }

    /// For what begins at `offset` of a file: a multiple of 1 KiB, of [`BLOCK_BYTES`] where it is longer than that.
    pub fn at_offset(hashing: HashMode, offset: u64) -> Self {
        let block = hasher_at(offset);
        ContentHasher(match hashing {
            HashMode::Full => Kind::Whole(Box::new(block)),
            HashMode::SkipZeros => Kind::NonZero(Box::new(NonZero {
                completed: SubtreeStack::default(),
                block,
                at: offset,
                block_len: 0,
                has_data: false,
            })),
        })
    }

    /// Adds content.
    pub fn update(&mut self, mut content: &[u8]) {
        match &mut self.0 {
            Kind::Whole(hasher) => drop(hasher.update(content)),
            Kind::NonZero(hasher) => {
                while !content.is_empty() {
                    let (now, later) =
                        content.split_at(hasher.remaining_in_block().min(content.len()));
                    hasher.update(now);
                    content = later;
                }
            }
        }
    }

    /// Adds `length` zeros; where they are hashed, asks `go_on` again and again.
    ///
    /// # Errors
    /// What `go_on` says.
    pub fn update_zeros<E>(
        &mut self,
        mut length: u64,
        go_on: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        match &mut self.0 {
            Kind::Whole(hasher) => {
                while length > 0 {
                    go_on()?;
                    let n = length.min(BLOCK_BYTES);
                    hasher.update(&ZERO_BLOCK[..n as usize]);
                    length -= n;
                }
            }
            Kind::NonZero(hasher) => hasher.update_zeros(length),
        }
        Ok(())
    }

    /// The value of a range; `None` of an empty one that is hashed as a whole.
    pub fn chaining_value(mut self) -> Option<Digest> {
        match &mut self.0 {
            // BLAKE3 has no chaining value of nothing.
            Kind::Whole(hasher) if hasher.count() == 0 => None,
            Kind::Whole(hasher) => Some(Digest(hasher.finalize_non_root())),
            Kind::NonZero(hasher) => {
                hasher.finish_block();
                Some(hasher.completed.merged_value().unwrap_or(ZERO_DIGEST))
            }
        }
    }

    /// The digest of a file.
    pub fn digest(mut self) -> Digest {
        match &mut self.0 {
            Kind::Whole(hasher) => hasher.finalize().into(),
            Kind::NonZero(hasher) if hasher.completed.entries.is_empty() && hasher.has_data => {
                hasher.block.finalize().into()
            }
            Kind::NonZero(hasher) => {
                hasher.finish_block();
                hasher.completed.root_digest().unwrap_or(ZERO_DIGEST)
            }
        }
    }
}

impl NonZero {
    /// What the block that is under way still takes; the next one begins where it is full.
    fn remaining_in_block(&mut self) -> usize {
        if self.block_len == BLOCK_BYTES {
            self.finish_block();
        }
        (BLOCK_BYTES - self.block_len) as usize
    }

    /// Adds content of one block.
    fn update(&mut self, content: &[u8]) {
        if !self.has_data && !is_all_zero(content) {
            self.block = hasher_at(self.at);
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
            let value =
                if self.has_data { Digest(self.block.finalize_non_root()) } else { ZERO_DIGEST };
            self.completed.push_subtree(self.block_len, value);
            self.at += self.block_len;
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
            // As many as make a subtree here.
            let most = length / BLOCK_BYTES;
            let here = self.completed.block_count();
            let height = most.ilog2().min(if here == 0 { 63 } else { here.trailing_zeros() });
            let n = BLOCK_BYTES << height;
            self.completed.push_subtree(n, ZERO_DIGEST);
            self.at += n;
            length -= n;
        }
        if length > 0 {
            self.remaining_in_block();
            self.update(&ZERO_BLOCK[..length as usize]);
        }
    }
}

impl SubtreeStack {
    /// How many blocks there are; the end is taken for a whole subtree.
    fn block_count(&self) -> u64 {
        self.entries.iter().map(|(height, _)| 1 << height).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::manifest::{merge_blocks, merge_ranges};
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// A run of content: so many bytes, zeros or not, reported as a hole or not.
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

    /// By the definition.
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
        hasher.update_zeros(1 << 62, || Err("asked")).unwrap();
        assert_eq!(hasher.digest(), ZERO_DIGEST);
        let mut whole = ContentHasher::new(HashMode::Full);
        assert_eq!(whole.update_zeros(1 << 62, || Err("asked")), Err("asked"));
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
    }
}
