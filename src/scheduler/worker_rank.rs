//! The order of workers wherever a list of them is searched or divided.

use crate::wire::WorkerId;

/// A pseudo-random order of workers that never changes.
pub(super) fn rank(id: &WorkerId, salt: u32) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(id.as_str().as_bytes()).update(&salt.to_le_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}
