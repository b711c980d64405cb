//! Words as a shell reads them back.

/// `word` in a command that can be pasted into a shell: as it is where it is plain, in `'…'` where it can be shown, else in
/// `$'…'` with escapes, so that it neither ends early nor writes to the terminal.
pub(super) fn quote_for_shell(word: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(b);
    match std::str::from_utf8(word) {
        Ok(text) if !word.is_empty() && word.iter().all(plain) => text.to_owned(),
        Ok(text) if !text.contains(|c: char| c == '\'' || needs_escape(c)) => format!("'{text}'"),
        _ => format!("$'{}'", escape_word(word)),
    }
}

/// Whether a terminal does not show a character as itself.
fn needs_escape(c: char) -> bool {
    // What [`show`](crate::wire::path::show) escapes, but for the backslash.
    c != '\\'
        && crate::wire::path::escape_bytes(c.encode_utf8(&mut [0; 4]).as_bytes()).starts_with('\\')
}

fn escape_word(word: &[u8]) -> String {
    let mut out = String::new();
    let octal = |out: &mut String, raw: &[u8]| {
        raw.iter().for_each(|b| out.push_str(&format!("\\{b:03o}")));
    };
    for chunk in word.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' | '\'' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if needs_escape(c) => octal(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => out.push(c),
            }
        }
        octal(&mut out, chunk.invalid());
    }
    out
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
}
