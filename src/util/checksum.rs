//! Checksums of documents. Content has digests; a checksum detects corruption of names, metadata and replies in
//! transit. The TCP checksum misses one in 65,536 corrupted segments, and does not cover corruption in a NIC or in
//! memory before it is computed.
//!
//! Documents between agents always have a checksum, in the frame or in a [header](CHECKSUM_HEADER). Requests of
//! our clients to the master, and its replies, have the header; it is optional for other clients. The heads of HTTP
//! messages have no checksum.

use crate::wire::Digest;

/// The length of a checksum, in bytes.
const CHECKSUM_BYTES: usize = 8;
/// The header with the checksum of a body, in hexadecimal digits.
pub const CHECKSUM_HEADER: &str = "longhaul-checksum";
/// The error message for a corrupted document.
pub const CHECKSUM_MISMATCH: &str = "checksum mismatch: it was corrupted in transit";

/// The checksum of a document: the first bytes of its BLAKE3 digest.
pub fn compute_checksum(document: &[u8]) -> [u8; CHECKSUM_BYTES] {
    Digest::from(blake3::hash(document)).prefix()
}

/// The checksum of a document as the value of the header.
pub fn header_value(document: &[u8]) -> String {
    format!("{:016x}", u64::from_be_bytes(compute_checksum(document)))
}

/// Computes the checksum of a document that arrives in chunks.
#[derive(Debug, Default)]
pub struct ChecksumHasher(blake3::Hasher);

impl ChecksumHasher {
    /// Adds the next chunk.
    pub fn update(&mut self, chunk: &[u8]) {
        self.0.update(chunk);
    }

    /// The checksum of all chunks as the value of the header.
    pub fn header_value(&self) -> String {
        format!("{:016x}", u64::from_be_bytes(Digest::from(self.0.finalize()).prefix()))
    }
}

/// Whether the header matches the body. A body without the header is accepted.
pub fn matches_header(header: Option<&[u8]>, body: &[u8]) -> bool {
    header.is_none_or(|value| value == header_value(body).as_bytes())
}

/// The document before its checksum; `None` for a mismatch.
pub fn verify_and_strip(bytes: &[u8]) -> Option<&[u8]> {
    let (document, checksum) = bytes.split_last_chunk()?;
    (compute_checksum(document) == *checksum).then_some(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_detected() {
        let document = b"names and modes";
        let with_checksum = [&document[..], &compute_checksum(document)].concat();
        assert_eq!(verify_and_strip(&with_checksum), Some(&document[..]));
        for bit in 0..with_checksum.len() * 8 {
            let mut corrupted = with_checksum.clone();
            corrupted[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify_and_strip(&corrupted), None, "bit {bit}");
        }
        assert_eq!(verify_and_strip(b"short"), None);
        assert_eq!(header_value(document).len(), 2 * CHECKSUM_BYTES);
    }

    #[test]
    fn chunks_have_the_checksum_of_the_whole() {
        let mut hasher = ChecksumHasher::default();
        hasher.update(b"names ");
        hasher.update(b"and modes");
        assert_eq!(hasher.header_value(), header_value(b"names and modes"));
    }

    #[test]
    fn a_header_is_compared_with_its_body_and_a_missing_header_is_accepted() {
        let value = header_value(b"a page");
        assert!(
            matches_header(Some(value.as_bytes()), b"a page") && matches_header(None, b"a page")
        );
        assert!(
            !matches_header(Some(value.as_bytes()), b"a pagf")
                && !matches_header(Some(b""), b"a page")
        );
    }
}
