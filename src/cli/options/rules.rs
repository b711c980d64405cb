//! `--include`, `--exclude` and their files: rules in the order of the command line.

use super::super::failure::Failure;
use super::super::names;
use crate::cli::shell::shell_word;
use crate::fs::trim_pattern;
use crate::wire::path::escape_bytes;
use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use std::path::PathBuf;

/// The rules as they were given.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules(Vec<Given>);

#[derive(Debug, Clone)]
struct Given {
    /// Takes in again what an earlier rule leaves out.
    include: bool,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Pattern(String),
    File(PathBuf),
}

const EXCLUDE: &str = "exclude";
const INCLUDE: &str = "include";
const EXCLUDE_FROM: &str = "exclude-from";
const INCLUDE_FROM: &str = "include-from";

impl Args for Rules {
    fn augment_args(command: Command) -> Command {
        let rule = |id: &'static str, value, help: &'static str| {
            Arg::new(id).long(id).value_name(value).action(ArgAction::Append).help(help)
        };
        let pattern = |id, help| rule(id, "PATTERN", help).value_parser(ValueParser::string());
        let file = |id, help| rule(id, "FILE", help).value_parser(ValueParser::path_buf());
        command
            .arg(pattern(EXCLUDE, "Leave out what this pattern of gitignore matches"))
            .arg(pattern(INCLUDE, "Include again what an earlier --exclude leaves out"))
            .arg(file(
                EXCLUDE_FROM,
                "The lines of this file, as in a .gitignore; `-`: standard input",
            ))
            .arg(file(INCLUDE_FROM, "The same, with the meaning of each line inverted"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Rules::augment_args(command)
    }
}

impl FromArgMatches for Rules {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given: Vec<(usize, Given)> = Vec::new();
        for (id, include) in [(EXCLUDE, false), (INCLUDE, true)] {
            let values = matches.get_many::<String>(id).into_iter().flatten();
            let at = matches.indices_of(id).into_iter().flatten();
            given.extend(
                at.zip(values)
                    .map(|(at, text)| (at, Given { include, what: What::Pattern(text.clone()) })),
            );
        }
        for (id, include) in [(EXCLUDE_FROM, false), (INCLUDE_FROM, true)] {
            let values = matches.get_many::<PathBuf>(id).into_iter().flatten();
            let at = matches.indices_of(id).into_iter().flatten();
            given.extend(
                at.zip(values)
                    .map(|(at, path)| (at, Given { include, what: What::File(path.clone()) })),
            );
        }
        given.sort_by_key(|(at, _)| *at);
        Ok(Rules(given.into_iter().map(|(_, given)| given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Rules::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Rules {
    /// The rules as the request takes them, their files read.
    ///
    /// # Errors
    /// A pattern that can't be one, a file that can't be read, or a second reader of standard input
    /// (`stdin_taken`: there is one already).
    pub(super) fn read(&self, mut stdin_taken: bool) -> Result<Vec<String>, Failure> {
        let mut rules = Vec::new();
        for given in &self.0 {
            match &given.what {
                What::Pattern(pattern) => rules.push(of_pattern(given.include, pattern)?),
                What::File(path) => {
                    let stdin = path.as_os_str() == "-";
                    if stdin && stdin_taken {
                        return Err(Failure::usage("standard input can be read only once")
                            .hinted("put the names or the rules into a file"));
                    }
                    stdin_taken |= stdin;
                    let raw = names::raw(path, "the filter rules")?;
                    let text = String::from_utf8(raw).map_err(|e| {
                        let line =
                            e.as_bytes()[..e.utf8_error().valid_up_to()].split(|b| *b == b'\n');
                        Failure::usage(format!(
                            "line {} of the filter rules {} is not UTF-8",
                            line.count(),
                            escape_bytes(path.as_os_str().as_encoded_bytes())
                        ))
                        .hinted(
                            "`*` stands for any characters, also for those that can't be written",
                        )
                    })?;
                    // A byte order mark at its start is no part of the first rule.
                    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                    rules.extend(text.lines().filter_map(|line| of_line(given.include, line)));
                }
            }
        }
        Ok(rules)
    }

    /// The options again, as words.
    pub(super) fn words(&self) -> Vec<Vec<u8>> {
        let word = |given: &Given| {
            let kind = if given.include { "include" } else { "exclude" };
            let (option, value) = match &given.what {
                What::Pattern(pattern) => (format!("--{kind}"), pattern.clone().into_bytes()),
                What::File(path) => {
                    (format!("--{kind}-from"), path.as_os_str().as_encoded_bytes().to_vec())
                }
            };
            [option.into_bytes(), value]
        };
        self.0.iter().flat_map(word).collect()
    }

    /// Whether some of them came from standard input, which cannot be read again.
    pub(super) fn read_stdin(&self) -> bool {
        let stdin =
            |given: &Given| matches!(&given.what, What::File(path) if path.as_os_str() == "-");
        self.0.iter().any(stdin)
    }
}

/// The rule of a pattern on the command line. There, `#` begins no comment and a blank at the end
/// belongs to the name.
fn of_pattern(include: bool, pattern: &str) -> Result<String, Failure> {
    let (option, other) =
        if include { ("--include", "--exclude") } else { ("--exclude", "--include") };
    if pattern.is_empty() {
        return Err(Failure::usage(format!("{option} has an empty pattern")));
    }
    if let Some(rest) = pattern.strip_prefix('!') {
        let shown = escape_bytes(rest.as_bytes());
        return Err(Failure::usage(format!("{option} '!{shown}' both includes and excludes"))
            .hinted(format!(
                "write {other} {}, or {option} {} where the name begins with `!`",
                shell_word(rest.as_bytes()),
                shell_word(format!("\\!{rest}").as_bytes())
            )));
    }
    let mut rule = String::from(if include { "!" } else { "" });
    if pattern.starts_with('#') && !include {
        rule.push('\\');
    }
    rule.push_str(pattern);
    if trim_pattern(&rule).len() < rule.len() {
        rule.pop();
        rule.push_str("\\ ");
    }
    Ok(rule)
}

/// The rule of a line, as gitignore reads it; `None` for a comment and an empty line.
fn of_line(include: bool, line: &str) -> Option<String> {
    let line = trim_pattern(line);
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    match (include, line.strip_prefix('!')) {
        (false, _) => Some(line.to_owned()),
        (true, Some(rest)) => Some(rest.to_owned()),
        (true, None) => Some(format!("!{line}")),
    }
}

/// The option and pattern of a rule: the inverse of [`of_pattern`].
pub(super) fn to_words(rule: &str) -> [String; 2] {
    match rule.strip_prefix('!') {
        Some(pattern) => ["--include".to_owned(), pattern.to_owned()],
        None => ["--exclude".to_owned(), rule.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_on_the_command_line_is_one_rule_that_means_it() {
        for (include, pattern, rule) in [
            (false, "*.o", "*.o"),
            (true, "*.c", "!*.c"),
            (false, "#x", "\\#x"),
            (true, "#x", "!#x"),
            (false, "\\!x", "\\!x"),
            (false, "x ", "x\\ "),
            (false, "x\\ ", "x\\ "),
            (false, "x  ", "x \\ "),
            (false, "x\\\\ ", "x\\\\\\ "),
            (false, "x\t", "x\t"),
        ] {
            assert_eq!(of_pattern(include, pattern).unwrap(), rule, "{pattern}");
        }
        for bad in ["", "!x"] {
            assert_eq!(of_pattern(false, bad).unwrap_err().exit.code(), 2, "{bad}");
        }
        let text = of_pattern(false, "!x").unwrap_err().render();
        assert!(text.contains("--include x") && text.contains("'\\!x'"), "{text}");
    }

    #[test]
    fn a_file_of_rules_is_a_gitignore_or_its_opposite() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# comment\n\n*.o  \r\n!keep.o\n/a b/\nend\\ \n").unwrap();
        let read = |include| {
            let what = What::File(file.path().to_owned());
            Rules(vec![Given { include, what }]).read(false).unwrap()
        };
        assert_eq!(read(false), ["*.o", "!keep.o", "/a b/", "end\\ "]);
        for (text, rules) in [
            ("\u{feff}*.o\n*.a\n", &["*.o", "*.a"][..]),
            ("\u{feff}# comment\r\n*.a", &["*.a"]),
            ("*.a\n\u{feff}x\n", &["*.a", "\u{feff}x"]),
            ("\u{feff}", &[]),
            ("tab\t \nx\\  \n   \n", &["tab\t", "x\\ "]),
        ] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(read(false), rules, "{text:?}");
        }
        std::fs::write(file.path(), "*.o\n!keep.o\n/a b/\nend\\ \n").unwrap();
        assert_eq!(read(true), ["!*.o", "keep.o", "!/a b/", "!end\\ "]);
        std::fs::write(file.path(), b"a\nb\xff\n").unwrap();
        let what = What::File(file.path().to_owned());
        let e = Rules(vec![Given { include: false, what }]).read(false).unwrap_err();
        assert!(e.render().contains("line 2 of the filter rules"), "{}", e.render());
    }

    #[test]
    fn standard_input_is_read_once() {
        let given = Given { include: false, what: What::File("-".into()) };
        assert_eq!(Rules(vec![given]).read(true).unwrap_err().exit.code(), 2);
        // Also where a file is read in between.
        let file = tempfile::NamedTempFile::new().unwrap();
        let from =
            |path: &std::path::Path| Given { include: false, what: What::File(path.to_owned()) };
        let given = vec![from(file.path()), from("-".as_ref())];
        let failure = Rules(given).read(true).unwrap_err();
        assert!(failure.message.contains("only once"), "{}", failure.message);
    }
}
