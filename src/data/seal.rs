//! A check on documents: content has digests, and so nothing but names, metadata and answers could be
//! damaged on the way unseen. TCP's checksum lets one in 65,536 damaged segments through, and sees
//! nothing of what a NIC or a memory did before it was reckoned.

/// The length of a check, in bytes.
pub const CHECK: usize = 8;
/// The header that carries the check of a body, in hexadecimal digits.
pub const HEADER: &str = "longhaul-check";

/// The check of a document: the beginning of its BLAKE3 digest.
pub fn check(document: &[u8]) -> [u8; CHECK] {
    let mut check = [0; CHECK];
    check.copy_from_slice(&blake3::hash(document).as_bytes()[..CHECK]);
    check
}

/// The check as a header's value.
pub fn in_header(document: &[u8]) -> String {
    format!("{:016x}", u64::from_be_bytes(check(document)))
}

/// The document in front of its check; `None`: it is not what was sent.
pub fn opened(sealed: &[u8]) -> Option<&[u8]> {
    let (document, sent) = sealed.split_at_checked(sealed.len().checked_sub(CHECK)?)?;
    (check(document) == sent).then_some(document)
}

/// Why a damaged document is not read.
pub const DAMAGED: &str = "it does not match its check: it was damaged on the way";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen() {
        let document = b"names and modes";
        let sealed = [&document[..], &check(document)].concat();
        assert_eq!(opened(&sealed), Some(&document[..]));
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&damaged), None, "bit {bit}");
        }
        assert_eq!(opened(b"short"), None);
        assert_eq!(in_header(document).len(), 2 * CHECK);
    }
}
