//! A check on documents: content has digests, and so nothing but names, metadata and answers could be
//! damaged on the way unseen. TCP's checksum lets one in 65,536 damaged segments through, and sees
//! nothing of what a NIC or a memory did before it was reckoned.
//!
//! What goes between agents always has one, in its frame or in a [header](HEADER). Requests to the master and
//! its answers have the header where ours sends them; who writes a request by hand sends none. The heads of
//! HTTP messages have none: a URL or a status that is damaged is another one.

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

/// The check of a document that comes in pieces.
#[derive(Debug, Default)]
pub struct Running(blake3::Hasher);

impl Running {
    /// The next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The check of all pieces, as a header's value.
    pub fn in_header(&self) -> String {
        let digest = self.0.finalize();
        let start: String = digest.to_hex().chars().take(2 * CHECK).collect();
        start
    }
}

/// Whether a body is what was sent, as far as the header that came with it tells; without one it is taken as
/// it is.
pub fn fits(header: Option<&[u8]>, body: &[u8]) -> bool {
    header.is_none_or(|sent| sent == in_header(body).as_bytes())
}

/// The document in front of its check; `None`: it is not what was sent.
pub fn opened(sealed: &[u8]) -> Option<&[u8]> {
    let (document, sent) = sealed.split_at_checked(sealed.len().checked_sub(CHECK)?)?;
    (check(document) == sent).then_some(document)
}

/// Why a damaged document is not read.
pub const DAMAGED: &str = "it does not match its check: it was damaged on the way";
/// The code of the problem that answers a damaged request: nothing was changed, and the same request is to
/// be sent again.
pub const DAMAGED_CODE: &str = "damaged";

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

    #[test]
    fn pieces_have_the_check_of_the_whole() {
        let mut running = Running::default();
        running.push(b"names ");
        running.push(b"and modes");
        assert_eq!(running.in_header(), in_header(b"names and modes"));
    }

    #[test]
    fn a_header_is_held_against_its_body_and_none_lets_all_pass() {
        let sent = in_header(b"a page");
        assert!(fits(Some(sent.as_bytes()), b"a page") && fits(None, b"a page"));
        assert!(!fits(Some(sent.as_bytes()), b"a pagf") && !fits(Some(b""), b"a page"));
    }
}
