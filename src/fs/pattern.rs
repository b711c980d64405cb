//! Patterns of gitignore. Each is translated to a glob of `globset`, which matches in linear time but differs from
//! git in `**` beside other characters and in `[…]`. In addition to gitignore's syntax, `{a,b}` matches either.

use crate::wire::AbsPath;
use crate::wire::options::MAX_FILTER_BYTES;
use crate::wire::path::escape_bytes;
use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};
use std::ffi::OsStr;
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::str::Chars;

/// Why a [`FilterSpec`](crate::wire::options::FilterSpec) is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The rules together are over [`MAX_FILTER_BYTES`].
    #[error(
        "the filter rules have {0} bytes, at most {MAX_FILTER_BYTES} are accepted; shorten them, e.g. by patterns instead of names"
    )]
    RulesTooLong(usize),
    /// A rule is invalid.
    #[error("filter rule {} (`{}`) cannot be read: {reason}", .index + 1, crate::wire::path::escape_bytes(.rule.as_bytes()))]
    InvalidRule {
        /// Its index in the list, from 0.
        index: usize,
        /// Its text.
        rule: String,
        /// Why it is rejected.
        reason: String,
    },
    /// The rules together can't be compiled.
    #[error("the filter rules cannot be compiled: {0}; use fewer or simpler ones")]
    CannotCompile(String),
}

/// Compiled patterns in order.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    set: GlobSet,
    /// The effect of each glob of the set.
    effects: Vec<Effect>,
}

/// What a pattern does with its matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Effect {
    /// It includes again; otherwise it excludes.
    includes: bool,
    /// It matches directories only.
    only_dirs: bool,
}

impl Patterns {
    /// Compiles lines of gitignore. Comments, empty lines and patterns that match nothing are skipped.
    ///
    /// # Errors
    /// A line is invalid, or all of them can't be compiled together.
    pub(super) fn new(lines: &[String]) -> Result<Patterns, FilterError> {
        let mut effects = Vec::new();
        let mut builder = GlobSetBuilder::new();
        for (index, line) in lines.iter().enumerate() {
            let failed = |why| FilterError::InvalidRule { index, rule: line.clone(), reason: why };
            let Some((glob, effect)) = parse_line(line).map_err(failed)? else { continue };
            let glob =
                GlobBuilder::new(&glob).literal_separator(true).backslash_escape(true).build();
            builder.add(glob.map_err(|error| failed(error.kind().to_string()))?);
            effects.push(effect);
        }
        let set = builder.build().map_err(|error| FilterError::CannotCompile(error.to_string()))?;
        Ok(Patterns { set, effects })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    /// Whether the last pattern that matches `path` itself excludes it.
    pub(super) fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        let mut hits = Vec::new();
        let candidate = Candidate::new(Path::new(OsStr::from_bytes(path)));
        self.set.matches_candidate_into(&candidate, &mut hits);
        let effects = hits.iter().rev().filter_map(|at| self.effects.get(*at));
        effects.filter(|e| is_dir || !e.only_dirs).map(|e| !e.includes).next().unwrap_or(false)
    }
}

/// A line without trailing spaces, unless they are escaped by a backslash.
pub fn trim_pattern(line: &str) -> &str {
    let mut end = 0;
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ' ' => {}
            '\\' => match chars.next() {
                Some((at, c)) => end = at + c.len_utf8(),
                None => return line,
            },
            c => end = at + c.len_utf8(),
        }
    }
    &line[..end]
}

/// Finds the lines that are absolute paths at or below one of `roots`: patterns are relative to the root of the
/// source, so these match nothing. Returns the index of each, and an error message with the pattern to write instead.
pub fn find_absolute_patterns(lines: &[String], roots: &[&AbsPath]) -> Vec<(usize, String)> {
    let below = |pattern: &str, root: &AbsPath| {
        let rest = pattern.strip_prefix(std::str::from_utf8(root.as_bytes()).ok()?)?;
        match rest.strip_prefix('/') {
            _ if root.as_bytes() == b"/" => None,
            None if !rest.is_empty() => None,
            Some("") | None => Some("/*".to_owned()),
            Some(_) => Some(rest.to_owned()),
        }
    };
    let fault = |line: &String| {
        let line = trim_pattern(line);
        let (mark, pattern) = line.strip_prefix('!').map_or(("", line), |rest| ("!", rest));
        let relative = roots.iter().find_map(|root| below(pattern, root))?;
        Some(format!(
            "`{}` is an absolute path, and patterns begin at the root of the source: write `{mark}{}`, or `{mark}{}` \
             for that path below the root",
            escape_bytes(line.as_bytes()),
            escape_bytes(relative.as_bytes()),
            escape_bytes(&pattern.as_bytes()[1..]),
        ))
    };
    lines.iter().enumerate().filter_map(|(index, line)| Some((index, fault(line)?))).collect()
}

/// The glob of a line, for whole paths; `None` where it matches nothing.
fn parse_line(line: &str) -> Result<Option<(String, Effect)>, String> {
    let line = trim_pattern(line);
    if line.starts_with('#') {
        return Ok(None);
    }
    let (line, includes) = line.strip_prefix('!').map_or((line, false), |rest| (rest, true));
    let (line, only_dirs) = line.strip_suffix('/').map_or((line, false), |rest| (rest, true));
    // Also one in a class, which then can't match it.
    let anchored = line.contains('/');
    let line = line.strip_prefix('/').unwrap_or(line);
    if line.is_empty() {
        return Ok(None);
    }
    let Some(glob) = translate_to_glob(line, anchored)? else { return Ok(None) };
    // No path has an empty component.
    if glob.starts_with('/') || glob.ends_with('/') || glob.contains("//") {
        return Ok(None);
    }
    let glob = if anchored { glob } else { format!("**/{glob}") };
    Ok(Some((glob, Effect { includes, only_dirs })))
}

/// The glob for a pattern without its marks; `None` where it matches nothing.
fn translate_to_glob(pattern: &str, anchored: bool) -> Result<Option<String>, String> {
    let mut glob = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern.chars().peekable();
    // `**` differs from `*` only after a `/` or such a start: git compares the characters before the first special
    // one separately, so the rest of a pattern starts there as after a `/`.
    let (mut at_component, mut plain) = (true, true);
    while let Some(c) = rest.next() {
        let first = std::mem::replace(&mut at_component, false);
        let all_plain = plain;
        plain &= !matches!(c, '\\' | '*' | '?' | '[' | '{');
        match c {
            '\\' => match rest.next() {
                None => {
                    return Err("a backslash ends it: write `\\\\` for the character".to_owned());
                }
                Some('/') => {
                    glob.push('/');
                    at_component = true;
                }
                Some(c) => glob.extend(['\\', c]),
            },
            '/' => {
                glob.push('/');
                at_component = true;
            }
            '*' => {
                let several = consume_stars(&mut rest) > 0;
                let end =
                    separator_len(&rest).filter(|_| several && anchored && (first || all_plain));
                match end {
                    // Beside other characters, and in a name, several stars are one.
                    None => glob.push('*'),
                    // Before an escaped slash, at least one directory.
                    Some(2) => glob.push_str(if first { "*/**" } else { "{**/}*" }),
                    Some(_) if first => glob.push_str("**"),
                    Some(_) => {
                        consume_dir_wildcards(&mut rest);
                        // Any directories, and any start of the next name.
                        glob.push_str("{**/}");
                        if rest.peek().is_none() {
                            glob.push('*');
                        }
                    }
                }
            }
            '[' => match CharClass::parse(&mut rest)?.into_glob() {
                Some(class) => glob.push_str(&class),
                None => return Ok(None),
            },
            c => glob.push(c),
        }
    }
    Ok(Some(glob))
}

/// Consumes all stars that come next; returns their number.
fn consume_stars(rest: &mut Peekable<Chars<'_>>) -> usize {
    std::iter::from_fn(|| rest.next_if_eq(&'*')).count()
}

/// The length of the `/` that comes next, also of an escaped one; 0 at the end of the pattern, `None` elsewhere.
fn separator_len(rest: &Peekable<Chars<'_>>) -> Option<usize> {
    let mut next = rest.clone();
    match (next.next(), next.next()) {
        (None, _) => Some(0),
        (Some('/'), _) => Some(1),
        (Some('\\'), Some('/')) => Some(2),
        _ => None,
    }
}

/// Consumes the `/` that comes next, and every following `**/`, or `**` at the end: they match nothing more.
fn consume_dir_wildcards(rest: &mut Peekable<Chars<'_>>) {
    while separator_len(rest) == Some(1) {
        rest.next();
        let mut ahead = rest.clone();
        if consume_stars(&mut ahead) < 2 || !matches!(separator_len(&ahead), Some(0 | 1)) {
            return;
        }
        *rest = ahead;
    }
}

/// A character class `[…]`.
struct CharClass {
    negated: bool,
    ascii: [bool; 128],
    /// Characters beyond ASCII: each byte of them counts.
    others: Vec<char>,
}

/// The named classes `[:name:]`, for ASCII.
type IsInClass = fn(&u8) -> bool;

/// What `[:name:]` means, of ASCII.
const NAMED_CLASSES: [(&str, IsInClass); 12] = [
    ("alnum", u8::is_ascii_alphanumeric),
    ("alpha", u8::is_ascii_alphabetic),
    ("blank", |byte| matches!(byte, b' ' | b'\t')),
    ("cntrl", u8::is_ascii_control),
    ("digit", u8::is_ascii_digit),
    ("graph", u8::is_ascii_graphic),
    ("lower", u8::is_ascii_lowercase),
    ("print", |byte| matches!(byte, b' '..=b'~')),
    ("punct", u8::is_ascii_punctuation),
    ("space", |byte| matches!(byte, b' ' | b'\t'..=b'\r')),
    ("upper", u8::is_ascii_uppercase),
    ("xdigit", u8::is_ascii_hexdigit),
];

impl CharClass {
    /// Parses a class after its `[`.
    fn parse(rest: &mut Peekable<Chars<'_>>) -> Result<CharClass, String> {
        let unclosed = || "a `[` lacks its `]`: write `\\[` for the character".to_owned();
        let negated = rest.next_if(|c| matches!(c, '!' | '^')).is_some();
        let mut class = CharClass { negated, ascii: [false; 128], others: Vec::new() };
        // A possible start of a range.
        let mut from: Option<char> = None;
        let mut first = true;
        loop {
            let c = rest.next().ok_or_else(unclosed)?;
            match (c, from) {
                (']', _) if !first => return Ok(class),
                ('-', Some(low)) if rest.peek().is_some_and(|next| *next != ']') => {
                    let mut high = rest.next().ok_or_else(unclosed)?;
                    if high == '\\' {
                        high = rest.next().ok_or_else(unclosed)?;
                    }
                    class.add_range(low, high)?;
                    from = None;
                }
                ('[', _) if rest.peek() == Some(&':') => {
                    let inside: String = rest.clone().skip(1).take_while(|c| *c != ']').collect();
                    match inside.strip_suffix(':') {
                        Some(name) => {
                            class.add_named(name)?;
                            // The colon, the name, and the bracket.
                            let length = inside.chars().count() + 2;
                            rest.by_ref().take(length).for_each(drop);
                            from = None;
                        }
                        None => {
                            class.add(c);
                            from = Some(c);
                        }
                    }
                }
                _ => {
                    let c = if c == '\\' { rest.next().ok_or_else(unclosed)? } else { c };
                    class.add(c);
                    from = Some(c);
                }
            }
            first = false;
        }
    }

    fn add(&mut self, c: char) {
        match self.ascii.get_mut(c as usize) {
            Some(has) => *has = true,
            None => self.others.push(c),
        }
    }

    fn add_range(&mut self, low: char, high: char) -> Result<(), String> {
        if !low.is_ascii() || !high.is_ascii() {
            return Err(format!("the range {low}-{high} is not of ASCII characters: list them"));
        }
        if low > high {
            return Err(format!("the range {low}-{high} is empty: write {high}-{low}"));
        }
        (low..=high).for_each(|c| self.add(c));
        Ok(())
    }

    fn add_named(&mut self, name: &str) -> Result<(), String> {
        let Some((_, holds)) = NAMED_CLASSES.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = NAMED_CLASSES.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "there is no class [:{name}:]; the classes are {}",
                known.join(", ")
            ));
        };
        (0..128u8).filter(holds).for_each(|byte| self.add(char::from(byte)));
        Ok(())
    }

    /// The class for `globset`, which has no escapes in classes: special characters are placed where they are not
    /// special. No class matches `/`. `None`: it matches nothing.
    fn into_glob(mut self) -> Option<String> {
        self.ascii[usize::from(b'/')] = self.negated;
        let mut take = |c: char| std::mem::take(&mut self.ascii[c as usize]);
        let (close, dash) = (take(']'), take('-'));
        let mut marks = String::new();
        marks.extend(['!', '^'].into_iter().filter(|mark| take(*mark)));
        let mut body = String::from(if close { "]" } else { "" });
        let mut byte = 0u8;
        while let Some(has) = self.ascii.get(usize::from(byte)) {
            if *has {
                let run = self.ascii[usize::from(byte)..].iter().take_while(|has| **has).count();
                let last = byte + u8::try_from(run - 1).unwrap_or(0);
                body.push(char::from(byte));
                if last > byte {
                    body.extend(['-', char::from(last)]);
                }
                byte = last;
            }
            byte += 1;
        }
        body.extend(self.others);
        if self.negated {
            return Some(format!("[!{body}{marks}{}]", if dash { "-" } else { "" }));
        }
        match (body.is_empty(), dash) {
            (false, _) => Some(format!("[{body}{marks}{}]", if dash { "-" } else { "" })),
            // First, a dash is no range and prevents a negation by what follows.
            (true, true) => Some(format!("[-{marks}]")),
            (true, false) if marks.is_empty() => None,
            (true, false) => {
                let each: Vec<String> = marks.chars().map(|mark| format!("\\{mark}")).collect();
                Some(format!("{{{}}}", each.join(",")))
            }
        }
    }
}

#[cfg(test)]
mod tests;
