//! Text from documents, made safe for a terminal.

use crate::wire::path::escape_bytes;
use std::path::Path;

/// `text` with control characters escaped as `\#ooo`, so that it can't control a terminal. File names in documents are
/// escaped already and stay as they are.
pub(super) fn sanitize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive('\\') {
        // `escape_bytes` would escape the backslashes of escaped names again.
        let (body, backslash) = match part.strip_suffix('\\') {
            Some(body) => (body, "\\"),
            None => (part, ""),
        };
        out.push_str(&escape_bytes(body.as_bytes()));
        out.push_str(backslash);
    }
    out
}

/// A path for messages, escaped like [`sanitize`]d text.
pub(super) fn display_path(path: &Path) -> String {
    escape_bytes(path.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitized_text_keeps_escaped_names_and_no_control_bytes() {
        assert_eq!(sanitize("open a\\#012b: no"), "open a\\#012b: no");
        assert_eq!(
            sanitize("\x1b[31m\r\n\u{202e}\\"),
            "\\#033[31m\\#015\\#012\\#342\\#200\\#256\\"
        );
    }
}
