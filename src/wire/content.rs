//! How content is hashed: as a whole, or without its zeros.
//!
//! A whole digest is the BLAKE3 digest of all bytes, as `b3sum` prints it. BLAKE3 numbers its chunks, so
//! the value of a run of zeros depends on its place, and a hole of a terabyte costs minutes. Where nobody asks
//! for that digest, content is hashed without its zeros:
//!
//! - Content is a sequence of blocks of [`BLOCK`] bytes, the last of which may be shorter, from the start of
//!   the file or range on. The value of a block is [`ZERO`] where all its bytes are zero, whether they are
//!   stored or a hole; otherwise it is its BLAKE3 chaining value at its offset in the file.
//! - Blocks are joined to the tree of BLAKE3. The value of a node is [`ZERO`] where those of both its children
//!   are, otherwise BLAKE3's of the two.
//! - The value of a range is that of its topmost node, the digest of a file the same with the flag of the root;
//!   of an empty file and of one of zeros it is [`ZERO`].
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
pub const BLOCK: u64 = 256 << 10;

/// The value of zeros where content is hashed without them.
pub const ZERO: Digest = Digest([0; 32]);

static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// How content is hashed, see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashing {
    /// All of it.
    Whole,
    /// Without its zeros.
    NonZero,
}

impl Hashing {
    /// The value of one block, which begins at `offset` of its file and is not empty.
    pub fn block(self, offset: u64, content: &[u8]) -> Digest {
        if self == Hashing::NonZero && is_zero(content) {
            return ZERO;
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
pub fn is_zero(content: &[u8]) -> bool {
    content.chunks(ZEROS.len()).all(|piece| *piece == ZEROS[..piece.len()])
}

/// Joins the values of neighbouring subtrees.
pub(super) fn join(left: &Digest, right: &Digest) -> Digest {
    if *left == ZERO && *right == ZERO {
        return ZERO;
    }
    Digest(merge_subtrees_non_root(left.as_value(), right.as_value(), Mode::Hash))
}

fn join_root(left: &Digest, right: &Digest) -> Digest {
    if *left == ZERO && *right == ZERO {
        return ZERO;
    }
    merge_subtrees_root(left.as_value(), right.as_value(), Mode::Hash).into()
}

impl Digest {
    fn as_value(&self) -> &ChainingValue {
        &self.0
    }
}

/// Joins the values of subtrees, in order, to that of all of them.
#[derive(Debug, Clone, Default)]
pub struct Subtrees {
    /// With their heights above a block, which fall.
    all: Vec<(u32, Digest)>,
}

impl Subtrees {
    /// Adds the value of the next `length` bytes: a power of two blocks that begin at a multiple of
    /// themselves, or the end.
    pub fn add(&mut self, length: u64, value: Digest) {
        // The topmost two stay apart: whether they make the root is known at the end.
        while let [.., (left_height, left), (height, right)] = self.all.as_slice()
            && left_height == height
        {
            let joined = (height + 1, join(left, right));
            self.all.truncate(self.all.len() - 2);
            self.all.push(joined);
        }
        self.all.push((length.div_ceil(BLOCK).next_power_of_two().ilog2(), value));
    }

    /// The value of all; `None` where there is none.
    pub fn value(&self) -> Option<Digest> {
        self.fold(join)
    }

    /// The same of all of a file, of more than one.
    fn root(&self) -> Option<Digest> {
        self.fold(join_root)
    }

    /// Joins from the right; the last two with `last`.
    fn fold(&self, last: impl Fn(&Digest, &Digest) -> Digest) -> Option<Digest> {
        let mut lower = self.all.iter().rev().map(|(_, value)| *value);
        let mut value = lower.next()?;
        let mut lower = lower.peekable();
        while let Some(left) = lower.next() {
            value = match lower.peek() {
                Some(_) => join(&left, &value),
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
    before: Subtrees,
    /// Of the block that is under way …
    block: Hasher,
    /// … its offset, how much of it has come, and whether some of that is not zero; only then it is in
    /// the hasher.
    at: u64,
    filled: u64,
    hashed: bool,
}

impl ContentHasher {
    /// For a file.
    pub fn new(hashing: Hashing) -> Self {
        Self::at(hashing, 0)
    }

    /// For what begins at `offset` of a file: a multiple of 1 KiB, of [`BLOCK`] where it is longer than that.
    pub fn at(hashing: Hashing, offset: u64) -> Self {
        let block = hasher_at(offset);
        ContentHasher(match hashing {
            Hashing::Whole => Kind::Whole(Box::new(block)),
            Hashing::NonZero => Kind::NonZero(Box::new(NonZero {
                before: Subtrees::default(),
                block,
                at: offset,
                filled: 0,
                hashed: false,
            })),
        })
    }

    /// Adds content.
    pub fn update(&mut self, mut content: &[u8]) {
        match &mut self.0 {
            Kind::Whole(hasher) => drop(hasher.update(content)),
            Kind::NonZero(hasher) => {
                while !content.is_empty() {
                    let (now, later) = content.split_at(hasher.room().min(content.len()));
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
    pub fn zeros<E>(
        &mut self,
        mut length: u64,
        go_on: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        match &mut self.0 {
            Kind::Whole(hasher) => {
                while length > 0 {
                    go_on()?;
                    let n = length.min(BLOCK);
                    hasher.update(&ZEROS[..n as usize]);
                    length -= n;
                }
            }
            Kind::NonZero(hasher) => hasher.zeros(length),
        }
        Ok(())
    }

    /// The value of a range; `None` of an empty one that is hashed as a whole.
    pub fn value(mut self) -> Option<Digest> {
        match &mut self.0 {
            // BLAKE3 has no chaining value of nothing.
            Kind::Whole(hasher) if hasher.count() == 0 => None,
            Kind::Whole(hasher) => Some(Digest(hasher.finalize_non_root())),
            Kind::NonZero(hasher) => {
                hasher.end_block();
                Some(hasher.before.value().unwrap_or(ZERO))
            }
        }
    }

    /// The digest of a file.
    pub fn digest(mut self) -> Digest {
        match &mut self.0 {
            Kind::Whole(hasher) => hasher.finalize().into(),
            Kind::NonZero(hasher) if hasher.before.all.is_empty() && hasher.hashed => {
                hasher.block.finalize().into()
            }
            Kind::NonZero(hasher) => {
                hasher.end_block();
                hasher.before.root().unwrap_or(ZERO)
            }
        }
    }
}

impl NonZero {
    /// What the block that is under way still takes; the next one begins where it is full.
    fn room(&mut self) -> usize {
        if self.filled == BLOCK {
            self.end_block();
        }
        (BLOCK - self.filled) as usize
    }

    /// Adds content of one block.
    fn update(&mut self, content: &[u8]) {
        if !self.hashed && !is_zero(content) {
            self.block = hasher_at(self.at);
            self.block.update(&ZEROS[..self.filled as usize]);
            self.hashed = true;
        }
        if self.hashed {
            self.block.update(content);
        }
        self.filled += content.len() as u64;
    }

    fn end_block(&mut self) {
        if self.filled > 0 {
            let value = if self.hashed { Digest(self.block.finalize_non_root()) } else { ZERO };
            self.before.add(self.filled, value);
            self.at += self.filled;
            (self.filled, self.hashed) = (0, false);
        }
    }

    fn zeros(&mut self, mut length: u64) {
        if self.filled > 0 && length > 0 {
            let n = length.min(self.room() as u64);
            self.update(&ZEROS[..n as usize]);
            length -= n;
        }
        if length >= BLOCK {
            self.end_block();
        }
        while length >= BLOCK {
            // As many as make a subtree here.
            let most = length / BLOCK;
            let here = self.before.blocks();
            let height = most.ilog2().min(if here == 0 { 63 } else { here.trailing_zeros() });
            let n = BLOCK << height;
            self.before.add(n, ZERO);
            self.at += n;
            length -= n;
        }
        if length > 0 {
            self.room();
            self.update(&ZEROS[..length as usize]);
        }
    }
}

impl Subtrees {
    /// How many blocks there are; the end is taken for a whole subtree.
    fn blocks(&self) -> u64 {
        self.all.iter().map(|(height, _)| 1 << height).sum()
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
        let length = prop_oneof![1..2000u64, (0..5u64).prop_map(|n| n * BLOCK), 1..3 * BLOCK];
        proptest::collection::vec((length, any::<bool>(), any::<bool>()), 0..6)
    }

    fn content(runs: &[Run]) -> Vec<u8> {
        let bytes = |(length, zero, _): &Run| vec![if *zero { 0 } else { 7 }; *length as usize];
        runs.iter().flat_map(bytes).collect()
    }

    fn feed(hasher: &mut ContentHasher, runs: &[Run]) {
        for (length, zero, hole) in runs {
            match zero & hole {
                true => hasher.zeros(*length, || Ok::<_, Infallible>(())).unwrap(),
                false => hasher.update(&vec![if *zero { 0 } else { 7 }; *length as usize]),
            }
        }
    }

    /// By the definition.
    fn values(content: &[u8]) -> Vec<Digest> {
        let blocks = content.chunks(BLOCK as usize).enumerate();
        blocks.map(|(i, block)| Hashing::NonZero.block(i as u64 * BLOCK, block)).collect()
    }

    #[test]
    fn a_hole_of_any_length_is_hashed_in_a_few_steps_and_told_from_any_other() {
        let digest = |before: u64, after: u64| {
            let mut hasher = ContentHasher::new(Hashing::NonZero);
            hasher.zeros(before, || Ok::<_, Infallible>(())).unwrap();
            hasher.update(b"x");
            hasher.zeros(after, || Ok::<_, Infallible>(())).unwrap();
            hasher.digest()
        };
        let places = [0, 1, BLOCK - 1, BLOCK, 1 << 40, (1 << 40) + 1, 1 << 60];
        let mut all: Vec<Digest> = places.map(|before| digest(before, (1 << 61) - before)).into();
        all.push(ZERO);
        let distinct: std::collections::HashSet<[u8; 32]> = all.iter().map(|d| d.0).collect();
        assert_eq!(distinct.len(), all.len());
        let mut hasher = ContentHasher::new(Hashing::NonZero);
        hasher.zeros(1 << 62, || Err("asked")).unwrap();
        assert_eq!(hasher.digest(), ZERO);
        let mut whole = ContentHasher::new(Hashing::Whole);
        assert_eq!(whole.zeros(1 << 62, || Err("asked")), Err("asked"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equal_content_has_one_value_however_it_comes(runs in runs(), cut in 1usize..2_000_000) {
            let content = content(&runs);
            let values = values(&content);
            let mut hasher = ContentHasher::new(Hashing::NonZero);
            feed(&mut hasher, &runs);
            let expected = merge_blocks(&values).unwrap_or(ZERO);
            prop_assert_eq!(hasher.value(), Some(expected));
            let mut pieces = ContentHasher::new(Hashing::NonZero);
            content.chunks(cut).for_each(|piece| pieces.update(piece));
            prop_assert_eq!(pieces.value(), Some(expected));
            let mut subtrees = Subtrees::default();
            let mut ranges = values.chunks(2).map(|two| merge_blocks(two).unwrap());
            (&mut ranges).for_each(|value| subtrees.add(2 * BLOCK, value));
            prop_assert_eq!(subtrees.value().unwrap_or(ZERO), expected);
        }

        #[test]
        fn what_is_hashed_as_a_whole_or_has_no_block_of_zeros_has_its_blake3_digest(runs in runs()) {
            let content = content(&runs);
            let expected: Digest = blake3::hash(&content).into();
            let mut whole = ContentHasher::new(Hashing::Whole);
            feed(&mut whole, &runs);
            prop_assert_eq!(whole.digest(), expected);
            let mut hasher = ContentHasher::new(Hashing::NonZero);
            feed(&mut hasher, &runs);
            let digest = hasher.digest();
            let values = values(&content);
            if values.is_empty() || values.contains(&ZERO) {
                prop_assert_ne!(digest, expected);
            } else {
                prop_assert_eq!(digest, expected);
            }
            if values.len() > 1 && !values.contains(&ZERO) {
                prop_assert_eq!(merge_ranges(&values), Some(expected));
            }
        }
    }
}
