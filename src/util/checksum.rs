//! A check on documents: content has digests, and so nothing but names, metadata and answers could be
//! damaged on the way unseen. TCP's checksum lets one in 65,536 damaged segments through, and sees
//! nothing of what a NIC or a memory did before it was reckoned.
//!
//! What goes between agents always has one, in its frame or in a [header](CHECKSUM_HEADER). Requests to the master and
//! its answers have the header where ours sends them; who writes a request by hand sends none. The heads of
//! HTTP messages have none: a URL or a status that is damaged is another one.

/// The length of a check, in bytes.
pub const CHECKSUM_BYTES: usize = 8;
/// The header that carries the check of a body, in hexadecimal digits.
pub const CHECKSUM_HEADER: &str = "longhaul-checksum";

/// The check of a document: the beginning of its BLAKE3 digest.
pub fn compute_checksum(document: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut check = [0; CHECKSUM_BYTES];
    check.copy_from_slice(&blake3::hash(document).as_bytes()[..CHECKSUM_BYTES]);
    check
}

/// The check as a header's value.
pub fn header_value(document: &[u8]) -> String {
    format!("{:016x}", u64::from_be_bytes(compute_checksum(document)))
}

/// The check of a document that comes in pieces.
#[derive(Debug, Default)]
pub struct ChecksumHasher(blake3::Hasher);

impl ChecksumHasher {
    /// The next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The check of all pieces, as a header's value.
    pub fn header_value(&self) -> String {
        let digest = self.0.finalize();
        let start: String = digest.to_hex().chars().take(2 * CHECKSUM_BYTES).collect();
        start
    }
}

/// Whether a body is what was sent, as far as the header that came with it tells; without one it is taken as
/// it is.
pub fn matches_header(header: Option<&[u8]>, body: &[u8]) -> bool {
    header.is_none_or(|sent| sent == header_value(body).as_bytes())
}

/// The document in front of its check; `None`: it is not what was sent.
pub fn verify_and_strip(sealed: &[u8]) -> Option<&[u8]> {
    let (document, sent) = sealed.split_at_checked(sealed.len().checked_sub(CHECKSUM_BYTES)?)?;
    (compute_checksum(document) == sent).then_some(document)
}

/// Why a damaged document is not read.
pub const CHECKSUM_MISMATCH: &str = "it does not match its check: it was damaged on the way";
/// The code of the problem that answers a damaged request: nothing was changed, and the same request is to
/// be sent again.
pub const CORRUPTED_CODE: &str = "damaged";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_detected() {
        let document = b"names and modes";
        let sealed = [&document[..], &compute_checksum(document)].concat();
        assert_eq!(verify_and_strip(&sealed), Some(&document[..]));
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify_and_strip(&damaged), None, "bit {bit}");
        }
        assert_eq!(verify_and_strip(b"short"), None);
        assert_eq!(header_value(document).len(), 2 * CHECKSUM_BYTES);
    }

    #[test]
    fn chunks_have_the_checksum_of_the_whole() {
        let mut running = ChecksumHasher::default();
        running.update(b"names ");
        running.update(b"and modes");
        assert_eq!(running.header_value(), header_value(b"names and modes"));
    }

    #[test]
    fn a_header_is_compared_with_its_body_and_a_missing_header_is_accepted() {
        let sent = header_value(b"a page");
        assert!(
            matches_header(Some(sent.as_bytes()), b"a page") && matches_header(None, b"a page")
        );
        assert!(
            !matches_header(Some(sent.as_bytes()), b"a pagf")
                && !matches_header(Some(b""), b"a page")
        );
    }
}
