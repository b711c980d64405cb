//! `--include`, `--exclude` and their files: filter rules in the order of the command line.

use crate::cli::error::{CliError, Result};
use crate::cli::files_from::{is_stdin, read_input};
use crate::cli::sanitize::display_path;
use crate::fs::trim_pattern;
use crate::util::shell_quote::quote_for_shell;
use crate::wire::path::escape_bytes;
use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use std::path::PathBuf;

/// The rules as given.
#[derive(Debug, Clone, Default)]
pub(super) struct FilterRuleArgs(Vec<RuleArg>);

#[derive(Debug, Clone)]
struct RuleArg {
    /// Includes again what an earlier rule excludes.
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
            .arg(pattern(EXCLUDE, "Exclude entries that match this gitignore pattern"))
            .arg(pattern(INCLUDE, "Include again what an earlier --exclude excludes"))
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

/// The occurrences of one option, with their places on the command line.
fn occurrences<T: Clone + Send + Sync + 'static>(
    matches: &ArgMatches,
    id: &str,
    include: bool,
    source: fn(T) -> RuleSource,
) -> Vec<(usize, RuleArg)> {
    let indices = matches.indices_of(id).into_iter().flatten();
    let values = matches.get_many::<T>(id).into_iter().flatten().cloned();
    indices.zip(values.map(|value| RuleArg { include, source: source(value) })).collect()
}

impl FromArgMatches for FilterRuleArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut rules = [
            occurrences(matches, EXCLUDE, false, RuleSource::Pattern),
            occurrences(matches, INCLUDE, true, RuleSource::Pattern),
            occurrences(matches, EXCLUDE_FROM, false, RuleSource::File),
            occurrences(matches, INCLUDE_FROM, true, RuleSource::File),
        ]
        .concat();
        rules.sort_by_key(|(index, _)| *index);
        Ok(FilterRuleArgs(rules.into_iter().map(|(_, rule)| rule).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = FilterRuleArgs::from_arg_matches(matches)?;
        Ok(())
    }
}

impl FilterRuleArgs {
    /// The rules for the request, with those of files read.
    ///
    /// # Errors
    /// A pattern is not valid, a file can't be read, or standard input is used twice (`stdin_is_used`: it is used
    /// already).
    pub(super) fn read_rules(&self, mut stdin_is_used: bool) -> Result<Vec<String>> {
        let mut rules = Vec::new();
        for RuleArg { include, source } in &self.0 {
            let path = match source {
                RuleSource::Pattern(pattern) => {
                    rules.push(rule_from_pattern(*include, pattern)?);
                    continue;
                }
                RuleSource::File(path) => path,
            };
            if is_stdin(path) && std::mem::replace(&mut stdin_is_used, true) {
                return Err(CliError::usage("standard input can be read only once")
                    .with_hint("put the names or the rules into a file"));
            }
            let text = String::from_utf8(read_input(path, "the filter rules")?).map_err(|e| {
                let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
                let line = valid.split(|b| *b == b'\n').count();
                let file = display_path(path);
                CliError::usage(format!("line {line} of the filter rules {file} is not UTF-8"))
                    .with_hint("`*` matches any characters, also those that can't be written")
            })?;
            // A byte order mark at its start is not part of the first rule.
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            rules.extend(text.lines().filter_map(|line| rule_from_line(*include, line)));
        }
        Ok(rules)
    }

    /// The options and their values.
    pub(super) fn words(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.0.iter().map(|rule| match (&rule.source, rule.include) {
            (RuleSource::Pattern(pattern), true) => ("--include", pattern.as_bytes()),
            (RuleSource::Pattern(pattern), false) => ("--exclude", pattern.as_bytes()),
            (RuleSource::File(path), include) => (
                if include { "--include-from" } else { "--exclude-from" },
                path.as_os_str().as_encoded_bytes(),
            ),
        })
    }

    /// Whether a file of rules was standard input, which can't be read again.
    pub(super) fn uses_stdin(&self) -> bool {
        self.0.iter().any(|rule| matches!(&rule.source, RuleSource::File(path) if is_stdin(path)))
    }
}

/// The rule for a pattern on the command line, where `#` does not start a comment and a trailing blank is part of the
/// name.
fn rule_from_pattern(include: bool, pattern: &str) -> Result<String> {
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

/// The rule for a line in the format of gitignore; `None` for a comment or an empty line.
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
pub(super) fn rule_words(rule: &str) -> (&'static str, &str) {
    match rule.strip_prefix('!') {
        Some(pattern) => ("--include", pattern),
        None => ("--exclude", rule),
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
            let source = RuleSource::File(file.path().to_owned());
            FilterRuleArgs(vec![RuleArg { include, source }]).read_rules(false).unwrap()
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
        let source = RuleSource::File(file.path().to_owned());
        let e =
            FilterRuleArgs(vec![RuleArg { include: false, source }]).read_rules(false).unwrap_err();
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
