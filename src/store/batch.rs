//! The writes of a commit.

use std::collections::{BTreeMap, BTreeSet};

/// The writes of a commit. Values are absolute, so a repeat is harmless. Deletes are applied before puts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// This batch is the whole state: all other records are removed. It has no effect on blobs: those to remove are in
    /// `blob_deletes` (see [`Store::blob_keys`](super::Store::blob_keys)).
    pub replace: bool,
    /// Records to write.
    pub puts: BTreeMap<String, Vec<u8>>,
    /// Records to remove; a key that does not exist is no error.
    pub deletes: BTreeSet<String>,
    /// Blobs to write.
    pub blob_puts: BTreeMap<String, Vec<u8>>,
    /// Blobs to remove; a key that does not exist is no error.
    pub blob_deletes: BTreeSet<String>,
}

impl Batch {
    /// Whether a commit would change nothing.
    pub fn is_empty(&self) -> bool {
        !self.replace && self.len() == 0
    }

    /// The number of keys.
    pub(super) fn len(&self) -> usize {
        self.puts.len() + self.deletes.len() + self.blob_puts.len() + self.blob_deletes.len()
    }

    /// The size of all keys and values.
    pub(super) fn byte_len(&self) -> u64 {
        let values = |map: &BTreeMap<String, Vec<u8>>| -> usize {
            map.iter().map(|(k, v)| k.len() + v.len()).sum()
        };
        let keys = |set: &BTreeSet<String>| -> usize { set.iter().map(String::len).sum() };
        (values(&self.puts)
            + values(&self.blob_puts)
            + keys(&self.deletes)
            + keys(&self.blob_deletes)) as u64
    }

    /// Identifies the batch: a store recognizes the repeat of a commit by it.
    pub(super) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(&[u8::from(self.replace)]);
        for map in [&self.puts, &self.blob_puts] {
            part(&(map.len() as u64).to_le_bytes());
            for (key, value) in map {
                part(key.as_bytes());
                part(value);
            }
        }
        for set in [&self.deletes, &self.blob_deletes] {
            part(&(set.len() as u64).to_le_bytes());
            set.iter().for_each(|key| part(key.as_bytes()));
        }
        hasher.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_batches_have_different_digests() {
        let put = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
        let all = [
            Batch::default(),
            Batch { replace: true, ..Batch::default() },
            Batch { puts: [put("a", "bc")].into(), ..Batch::default() },
            Batch { puts: [put("ab", "c")].into(), ..Batch::default() },
            Batch { puts: [put("a", "b"), put("c", "")].into(), ..Batch::default() },
            Batch { blob_puts: [put("a", "bc")].into(), ..Batch::default() },
            Batch { deletes: ["a".to_owned()].into(), ..Batch::default() },
            Batch { blob_deletes: ["a".to_owned()].into(), ..Batch::default() },
        ];
        let digests: BTreeSet<String> = all.iter().map(Batch::digest).collect();
        assert_eq!(digests.len(), all.len());
        assert_eq!(all[3].digest(), all[3].clone().digest());
        assert_eq!((all[4].len(), all[4].byte_len()), (2, 3));
        assert!(all[0].is_empty() && !all[1].is_empty());
    }

    #[test]
    fn the_size_of_a_batch_is_the_sum_of_its_keys_and_values() {
        let entry = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
        let batch = Batch {
            puts: [entry("a", "12")].into(),
            deletes: ["bbb".to_owned()].into(),
            blob_puts: [entry("cccc", "12345")].into(),
            blob_deletes: ["dddddd".to_owned(), "e".to_owned()].into(),
            ..Batch::default()
        };
        assert_eq!((batch.len(), batch.byte_len()), (5, 3 + 3 + 9 + 7));
    }
}
