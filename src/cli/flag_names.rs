//! The options and arguments that set the fields of a request, so that an error about `/options/mtime_tolerance_ns`
//! names `--modify-window`.

use super::args::Cli;
use crate::client::ClientError;
use crate::wire::problem::FieldError;
use clap::CommandFactory;

/// JSON pointers of the fields with an option or argument of another name.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("/source_path", "SRC"),
    ("/destination_path", "DST"),
    ("/source_workers", "SRC"),
    ("/destination_workers", "DST"),
    ("/add_destinations", "--add-destination"),
    ("/request_id", "--id"),
    ("/file_list", "--files-from"),
    ("/reason", "--reason"),
    ("/worker_id", "--worker"),
    ("/options/compare", "--checksum or --size-only"),
    ("/options/mtime_tolerance_ns", "--modify-window"),
    ("/options/clone", "--no-clone"),
    ("/options/manifest", "--manifest or --digests"),
    ("/options/filter/rules", "--exclude or --include"),
    ("/options/delete/max", "--max-delete"),
    ("/options/delete/max_percent", "--max-delete-percent"),
];

/// The option of `ctl sync submit` with the name of a field.
fn option_of_name(name: &str) -> Option<String> {
    let option = name.replace('_', "-");
    let cli = Cli::command();
    let submit = cli.find_subcommand("sync")?.find_subcommand("submit")?;
    let is_known = submit.get_arguments().any(|arg| arg.get_long() == Some(&option));
    is_known.then(|| format!("--{option}"))
}

/// The option or argument for the field at `pointer`, or for the field that contains it.
fn flag_for_field(pointer: &str) -> Option<String> {
    let (parent, name) = pointer.rsplit_once('/')?;
    let other = OTHER_NAMES.iter().find(|(field, _)| *field == pointer);
    let flag = other.map(|(_, flag)| (*flag).to_owned()).or_else(|| option_of_name(name));
    flag.or_else(|| {
        let flag = flag_for_field(parent)?;
        // An element of a list, counted from 1.
        let number = name.parse::<u64>().ok().and_then(|index| index.checked_add(1));
        Some(number.map_or(flag.clone(), |number| format!("{flag} (number {number})")))
    })
}

/// Replaces names of fields in the text of a rule by their options.
fn replace_field_names(detail: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = detail;
    while let Some(begin) = rest.find(word) {
        let (before, from) = rest.split_at(begin);
        let (name, after) = from.split_at(from.find(|c| !word(c)).unwrap_or(from.len()));
        out.push_str(before);
        // A name without `_` may be an English word.
        let other = OTHER_NAMES.iter().find(|(field, _)| field.rsplit('/').next() == Some(name));
        let flag = match other {
            _ if !name.contains('_') => None,
            Some((_, flag)) => Some((*flag).to_owned()),
            None => option_of_name(name),
        };
        out.push_str(flag.as_deref().unwrap_or(name));
        rest = after;
    }
    out + rest
}

/// Replaces fields by options and arguments in an error of the master.
pub(super) fn name_flags(mut e: ClientError) -> ClientError {
    let ClientError::Problem { problem, .. } = &mut e else { return e };
    for FieldError { pointer, detail } in &mut problem.errors {
        if let Some(flag) = flag_for_field(pointer) {
            (*pointer, *detail) = (flag, replace_field_names(detail));
        }
    }
    match problem.errors.as_slice() {
        [] => {}
        [only] => problem.detail = format!("{}: {}", only.pointer, only.detail),
        all => problem.detail = format!("{} options or arguments are wrong", all.len()),
    }
    e
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::error::CliError;
    use crate::wire::options::{DeleteOptions, FilterSpec, SyncOptions};
    use crate::wire::problem::{Problem, ProblemCode};

    fn shown(errors: &[(&str, &str)]) -> String {
        let mut problem = Problem::new(ProblemCode::InvalidFields, "/x: y");
        let fault = |(pointer, detail): &(&str, &str)| FieldError {
            pointer: (*pointer).to_owned(),
            detail: (*detail).to_owned(),
        };
        problem.errors = errors.iter().map(fault).collect();
        let e = ClientError::Problem { problem: Box::new(problem), retry_after: None };
        CliError::from(name_flags(e)).render()
    }

    #[test]
    fn a_field_is_named_by_the_flag_that_sets_it() {
        let text = shown(&[("/destination_path", "must not be the same as source_path")]);
        assert_eq!(text, "error: DST: must not be the same as SRC   (exit 2)");
        let text = shown(&[("/file_list/4", "is empty"), ("/options/delete/max", "must be so")]);
        assert!(text.contains("--files-from (number 5): is empty"), "{text}");
        assert!(text.contains("--max-delete: must be so"), "{text}");
        let text = shown(&[("/options/verify", "update, ignore_existing or existing are left")]);
        assert!(text.contains("--verify: update, --ignore-existing or existing"), "{text}");
        assert!(shown(&[("/unheard_of", "is x")]).contains("/unheard_of: is x"));
    }

    /// An option with another name than its field must be in the table.
    #[test]
    fn every_option_of_a_request_has_its_flag() {
        let fields = |e: serde_json::Error| -> Vec<String> {
            // `unknown field `?`, expected one of `a`, `b` …`
            e.to_string().split('`').skip(3).step_by(2).map(str::to_owned).collect()
        };
        let of =
            |at: &str, e| fields(e).into_iter().map(|f| format!("{at}/{f}")).collect::<Vec<_>>();
        let unknown = r#"{"?": 1}"#;
        let options = of("/options", serde_json::from_str::<SyncOptions>(unknown).unwrap_err());
        let delete = serde_json::from_str::<DeleteOptions>(unknown).unwrap_err();
        let filter = serde_json::from_str::<FilterSpec>(unknown).unwrap_err();
        let all = [options, of("/options/delete", delete), of("/options/filter", filter)].concat();
        assert!(all.len() > 25, "{all:?}");
        for field in all.iter().filter(|field| *field != "/options/filter") {
            let flag = flag_for_field(field).unwrap_or_default();
            assert!(flag.starts_with("--"), "{field}: {flag}");
            let one = field.starts_with("/options/delete/") && flag == "--delete";
            assert!(!one, "{field} has no flag of its own");
        }
    }
}
