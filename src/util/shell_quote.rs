//! Quoting of words for a shell.

use crate::wire::AbsPath;
use crate::wire::path::{escape_octal, is_hidden};

/// `word` for a command that can be pasted into a shell: unquoted if it has only plain characters, in `'…'` if a terminal
/// displays it, otherwise in `$'…'` with escapes.
pub(crate) fn quote_for_shell(word: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(b);
    match std::str::from_utf8(word) {
        Ok(text) if !word.is_empty() && word.iter().all(plain) => text.to_owned(),
        Ok(text) if !text.contains(|c: char| c == '\'' || is_hidden(c)) => format!("'{text}'"),
        _ => format!("$'{}'", escape_word(word)),
    }
}

pub(crate) fn quote_path(path: &AbsPath) -> String {
    quote_for_shell(path.as_bytes())
}

fn escape_word(word: &[u8]) -> String {
    escape_octal(word, "\\", |out, c| {
        match c {
            '\\' | '\'' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_hidden(c) => return false,
            c => out.push(c),
        }
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_are_read_back_by_a_shell_unchanged() {
        for (word, quoted) in [
            (&b"/a/b-1.x_y+z:@%,=0"[..], "/a/b-1.x_y+z:@%,=0"),
            (b"", "''"),
            (b"/a b", "'/a b'"),
            (b"*.o", "'*.o'"),
            (b"~/$HOME `x` \"y\" !z", "'~/$HOME `x` \"y\" !z'"),
            (b"back\\slash", "'back\\slash'"),
            ("/caf\u{e9}".as_bytes(), "'/caf\u{e9}'"),
            (b"it's", "$'it\\'s'"),
            (b"it's a\\b", "$'it\\'s a\\\\b'"),
            (b"new\nline\t\r", "$'new\\nline\\t\\r'"),
            (b"\x1b[31m7", "$'\\033[31m7'"),
            (b"\xff\xfe/x", "$'\\377\\376/x'"),
            (b"\xc3(", "$'\\303('"),
            ("\u{202e}7".as_bytes(), "$'\\342\\200\\2567'"),
        ] {
            assert_eq!(quote_for_shell(word), quoted);
            let script = format!("printf %s {quoted}");
            let read = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(read.stdout, word, "{quoted}");
        }
    }

    #[test]
    fn a_path_in_a_hint_is_quoted_for_the_shell() {
        let of = |path: &str| quote_path(&AbsPath::new(path).unwrap());
        assert_eq!([of("/a/b-1"), of("/a b"), of("/it's")], ["/a/b-1", "'/a b'", "$'/it\\'s'"]);
    }
}
