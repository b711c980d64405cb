//! `--include`, `--exclude` and their files: rules in the order of the command line.

use super::super::error::CliError;
use super::super::files_from;
use crate::cli::shell_quote::quote_for_shell;
use crate::fs::trim_pattern;
use crate::wire::path::escape_bytes;
use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use std::path::PathBuf;

/// The rules as they were given.
#[derive(Debug, Clone, Default)]
pub(super) struct FilterRuleArgs(Vec<RuleArg>);

#[derive(Debug, Clone)]
struct RuleArg {
    /// Takes in again what an earlier rule leaves out.
    include: bool,
    source: RuleSource,
}

#[derive(Debug, Clone)]
enum RuleSource {
    Pattern(String),
    File(PathBuf),
}

const EXCLUDE: &str = "exclude";
const INCLUDE: &str = "include";
const EXCLUDE_FROM: &str = "exclude-from";
const INCLUDE_FROM: &str = "include-from";

impl Args for FilterRuleArgs {
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
        FilterRuleArgs::augment_args(command)
    }
}

impl FromArgMatches for FilterRuleArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given: Vec<(usize, RuleArg)> = Vec::new();
        for (id, include) in [(EXCLUDE, false), (INCLUDE, true)] {
            let values = matches.get_many::<String>(id).into_iter().flatten();
            let at = matches.indices_of(id).into_iter().flatten();
            given.extend(at.zip(values).map(|(at, text)| {
                (at, RuleArg { include, source: RuleSource::Pattern(text.clone()) })
            }));
        }
        for (id, include) in [(EXCLUDE_FROM, false), (INCLUDE_FROM, true)] {
            let values = matches.get_many::<PathBuf>(id).into_iter().flatten();
            let at = matches.indices_of(id).into_iter().flatten();
            given.extend(at.zip(values).map(|(at, path)| {
                (at, RuleArg { include, source: RuleSource::File(path.clone()) })
            }));
        }
        given.sort_by_key(|(at, _)| *at);
        Ok(FilterRuleArgs(given.into_iter().map(|(_, given)| given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = FilterRuleArgs::from_arg_matches(matches)?;
        Ok(())
    }
}

impl FilterRuleArgs {
    /// The rules as the request takes them, their files read.
    ///
    /// # Errors
    /// A pattern that can't be one, a file that can't be read, or a second reader of standard input
    /// (`stdin_taken`: there is one already).
    pub(super) fn read_rules(&self, mut stdin_taken: bool) -> Result<Vec<String>, CliError> {
        let mut rules = Vec::new();
        for given in &self.0 {
            match &given.source {
                RuleSource::Pattern(pattern) => {
                    rules.push(rule_from_pattern(given.include, pattern)?)
                }
                RuleSource::File(path) => {
                    let stdin = path.as_os_str() == "-";
                    if stdin && stdin_taken {
                        return Err(CliError::usage("standard input can be read only once")
                            .with_hint("put the names or the rules into a file"));
                    }
                    stdin_taken |= stdin;
                    let raw = files_from::read_input(path, "the filter rules")?;
                    let text = String::from_utf8(raw).map_err(|e| {
                        let line =
                            e.as_bytes()[..e.utf8_error().valid_up_to()].split(|b| *b == b'\n');
                        CliError::usage(format!(
                            "line {} of the filter rules {} is not UTF-8",
                            line.count(),
                            escape_bytes(path.as_os_str().as_encoded_bytes())
                        ))
                        .with_hint(
                            "`*` stands for any characters, also for those that can't be written",
                        )
                    })?;
                    // A byte order mark at its start is no part of the first rule.
                    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                    rules.extend(
                        text.lines().filter_map(|line| rule_from_line(given.include, line)),
                    );
                }
            }
        }
        Ok(rules)
    }

    /// The options again, as words.
    pub(super) fn to_words(&self) -> Vec<Vec<u8>> {
        let word = |given: &RuleArg| {
            let kind = if given.include { "include" } else { "exclude" };
            let (option, value) = match &given.source {
                RuleSource::Pattern(pattern) => (format!("--{kind}"), pattern.clone().into_bytes()),
                RuleSource::File(path) => {
                    (format!("--{kind}-from"), path.as_os_str().as_encoded_bytes().to_vec())
                }
            };
            [option.into_bytes(), value]
        };
        self.0.iter().flat_map(word).collect()
    }

    /// Whether some of them came from standard input, which cannot be read again.
    pub(super) fn uses_stdin(&self) -> bool {
        let stdin = |given: &RuleArg| matches!(&given.source, RuleSource::File(path) if path.as_os_str() == "-");
        self.0.iter().any(stdin)
    }
}

/// The rule of a pattern on the command line. There, `#` begins no comment and a blank at the end
/// belongs to the name.
fn rule_from_pattern(include: bool, pattern: &str) -> Result<String, CliError> {
    let (option, other) =
        if include { ("--include", "--exclude") } else { ("--exclude", "--include") };
    if pattern.is_empty() {
        return Err(CliError::usage(format!("{option} has an empty pattern")));
    }
    if let Some(rest) = pattern.strip_prefix('!') {
        let shown = escape_bytes(rest.as_bytes());
        return Err(CliError::usage(format!("{option} '!{shown}' both includes and excludes"))
            .with_hint(format!(
                "write {other} {}, or {option} {} where the name begins with `!`",
                quote_for_shell(rest.as_bytes()),
                quote_for_shell(format!("\\!{rest}").as_bytes())
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
fn rule_from_line(include: bool, line: &str) -> Option<String> {
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

/// The option and pattern of a rule: the inverse of [`rule_from_pattern`].
pub(super) fn rule_to_words(rule: &str) -> [String; 2] {
    match rule.strip_prefix('!') {
        Some(pattern) => ["--include".to_owned(), pattern.to_owned()],
        None => ["--exclude".to_owned(), rule.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_on_the_command_line_becomes_one_equivalent_rule() {
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
            assert_eq!(rule_from_pattern(include, pattern).unwrap(), rule, "{pattern}");
        }
        for bad in ["", "!x"] {
            assert_eq!(rule_from_pattern(false, bad).unwrap_err().exit.code(), 2, "{bad}");
        }
        let text = rule_from_pattern(false, "!x").unwrap_err().render();
        assert!(text.contains("--include x") && text.contains("'\\!x'"), "{text}");
    }

    #[test]
    fn a_file_of_rules_is_read_as_gitignore_or_inverted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# comment\n\n*.o  \r\n!keep.o\n/a b/\nend\\ \n").unwrap();
        let read = |include| {
            let what = RuleSource::File(file.path().to_owned());
            FilterRuleArgs(vec![RuleArg { include, source: what }]).read_rules(false).unwrap()
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
        let what = RuleSource::File(file.path().to_owned());
        let e = FilterRuleArgs(vec![RuleArg { include: false, source: what }])
            .read_rules(false)
            .unwrap_err();
        assert!(e.render().contains("line 2 of the filter rules"), "{}", e.render());
    }

    #[test]
    fn standard_input_is_read_once() {
        let given = RuleArg { include: false, source: RuleSource::File("-".into()) };
        assert_eq!(FilterRuleArgs(vec![given]).read_rules(true).unwrap_err().exit.code(), 2);
        // Also where a file is read in between.
        let file = tempfile::NamedTempFile::new().unwrap();
        let from = |path: &std::path::Path| RuleArg {
            include: false,
            source: RuleSource::File(path.to_owned()),
        };
        let given = vec![from(file.path()), from("-".as_ref())];
        let failure = FilterRuleArgs(given).read_rules(true).unwrap_err();
        assert!(failure.message.contains("only once"), "{}", failure.message);
    }
}
