//! Resolves SRC and DST on this host. Symbolic links in them are followed here, once; the agent follows none below them.

use crate::cli::error::{CliError, Result};
use crate::cli::exit::Exit;
use crate::cli::sanitize::display_path;
use crate::fs::{Cause, FsError, RootKind, RootMismatch, Side};
use crate::util::shell_quote::quote_for_shell;
use crate::wire::AbsPath;
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// SRC and DST, checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CopyPaths {
    /// The real path of SRC.
    pub(super) source: AbsPath,
    pub(super) source_is_dir: bool,
    /// SRC as given, made absolute; names of a list may begin with it.
    pub(super) lexical_source: AbsPath,
    /// The real path that DST will have.
    pub(super) destination: AbsPath,
    /// DST as given, made absolute; the path of the trash may begin with it.
    pub(super) lexical_destination: AbsPath,
    /// The storage paths of the agent: SRC (or the directory of the file), and the nearest directory to DST that exists.
    pub(super) storage_paths: Vec<AbsPath>,
}

/// Resolves SRC and DST and checks that they fit each other.
///
/// # Errors
/// SRC does not exist; DST is SRC, lies in it or contains it, or is of another type; one of them can't be accessed. The
/// exit code is that of a sync of agents ([`Exit::of_root_error`]).
pub(super) fn resolve_paths(source: &Path, destination: &Path) -> Result<CopyPaths> {
    let given = make_absolute("SRC", source)?;
    let real = std::fs::canonicalize(&given).map_err(|e| lookup_error(Side::Source, source, &e))?;
    let meta = std::fs::metadata(&real).map_err(|e| lookup_error(Side::Source, source, &e))?;
    let (anchor, target) = nearest_existing(destination)?;
    let there = std::fs::metadata(&target);
    if !meta.is_dir()
        && must_be_directory(destination)
        && !there.as_ref().is_ok_and(Metadata::is_dir)
    {
        let dir = display_path(destination);
        let message = format!("SRC is a file, and DST {dir} is not an existing directory");
        let hint = new_path_hint(destination, &real) + " (directories above it are made)";
        return Err(CliError::usage(message).with_hint(hint));
    }
    if let Ok(there) = &there {
        let kinds = (RootKind::from_metadata(&meta), RootKind::from_metadata(there));
        if let Some(wrong) = kinds.0.mismatch_with(kinds.1) {
            return Err(mismatch_error(wrong, &real, destination));
        }
    }
    let source = to_abs_path("SRC", &real)?;
    let lexical_destination = make_absolute("DST", destination)?;
    let destination = to_abs_path("DST", &target)?;
    if let Some(wrong) = RootMismatch::between_paths(&source, &destination) {
        return Err(mismatch_error(wrong, &real, &target).with_note(format!("SRC is {source}")));
    }
    // A storage path is a directory: that of a file is the one it lies in.
    let home = |path: &AbsPath, is_dir: bool| match path.parent() {
        Some(parent) if !is_dir => parent,
        _ => path.clone(),
    };
    let anchor_is_target = anchor == target;
    let anchor =
        home(&to_abs_path("DST", &anchor)?, !anchor_is_target || there.is_ok_and(|m| m.is_dir()));
    let mut storage_paths = vec![home(&source, meta.is_dir())];
    if !storage_paths.contains(&anchor) {
        storage_paths.push(anchor);
    }
    // A path like `link/..` has no lexical form: then only the real path may be used in names.
    let lexical = |path: &Path, real: &AbsPath| {
        AbsPath::new(path.as_os_str().as_bytes()).unwrap_or_else(|_| real.clone())
    };
    Ok(CopyPaths {
        lexical_source: lexical(&given, &source),
        lexical_destination: lexical(&lexical_destination, &destination),
        source,
        source_is_dir: meta.is_dir(),
        destination,
        storage_paths,
    })
}

/// Whether the path must be that of a directory.
fn must_be_directory(path: &Path) -> bool {
    let raw = path.as_os_str().as_bytes();
    raw.ends_with(b"/") || raw.ends_with(b"/.")
}

fn new_path_hint(destination: &Path, source: &Path) -> String {
    let into = destination.join(source.file_name().unwrap_or_default());
    let into = quote_for_shell(into.as_os_str().as_bytes());
    format!("DST is the file's new path, e.g. {into}")
}

/// For paths or file types that do not fit each other.
fn mismatch_error(misfit: RootMismatch, source: &Path, destination: &Path) -> CliError {
    let error = fs_cli_error(&FsError::root_mismatch(misfit, destination.as_os_str().as_bytes()));
    match misfit {
        RootMismatch::DestinationIsDirectory => error.with_hint(new_path_hint(destination, source)),
        _ => error,
    }
}

/// The error of SRC or DST itself, as a sync of agents reports it.
fn fs_cli_error(error: &FsError) -> CliError {
    let error = error.to_entry_error();
    let exit = Exit::of_root_error(&error);
    CliError { hint: error.hint, ..CliError::new(error.message).with_exit(exit) }
}

/// The real path of the nearest directory (or file) at or above `path` that exists, and the real path that `path` will
/// have.
fn nearest_existing(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let mut head = make_absolute("DST", path)?;
    let mut rest: Vec<OsString> = Vec::new();
    loop {
        match std::fs::canonicalize(&head) {
            Ok(real) => {
                let mut target = real.clone();
                target.extend(rest.iter().rev());
                if !rest.is_empty() && !real.is_dir() {
                    let error = std::io::Error::from(Errno::NOTDIR);
                    return Err(lookup_error(Side::Destination, path, &error));
                }
                return Ok((real, target));
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                if head.symlink_metadata().is_ok() {
                    let shown = display_path(&head);
                    let message = format!("DST: {shown} is a symbolic link that leads nowhere");
                    return Err(CliError::usage(message));
                }
                let parent = head.parent().map(Path::to_path_buf);
                match (head.file_name(), parent) {
                    (Some(name), Some(parent)) => {
                        rest.push(name.to_owned());
                        head = parent;
                    }
                    // `..` below what does not exist.
                    _ => return Err(lookup_error(Side::Destination, path, &e)),
                }
            }
            Err(e) => return Err(lookup_error(Side::Destination, path, &e)),
        }
    }
}

fn make_absolute(what: &str, path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|e| CliError::usage(format!("{what} `{}`: {e}", display_path(path))))
}

fn to_abs_path(what: &str, path: &Path) -> Result<AbsPath> {
    AbsPath::new(path.as_os_str().as_bytes())
        .map_err(|e| CliError::usage(format!("{what} `{}` {e}", display_path(path))))
}

fn lookup_error(side: Side, path: &Path, e: &std::io::Error) -> CliError {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let errno = Errno::from_io_error(e).unwrap_or(Errno::IO);
    let (op, cause) = match (side, errno) {
        (Side::Source, Errno::NOENT | Errno::NOTDIR) => ("read", Cause::SourceMissing),
        (Side::Source, errno) => ("read", errno.into()),
        (Side::Destination | Side::Relay, errno) => ("write to", errno.into()),
    };
    fs_cli_error(&FsError::new(side, op, path.as_os_str().as_bytes(), cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct TestTree {
        dir: tempfile::TempDir,
    }

    impl TestTree {
        /// `src/` with a file `f`, and an empty `dst/`.
        fn new() -> TestTree {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("src")).unwrap();
            std::fs::create_dir(dir.path().join("dst")).unwrap();
            std::fs::write(dir.path().join("src/f"), "x").unwrap();
            TestTree { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn abs(&self, name: &str) -> AbsPath {
            let real = std::fs::canonicalize(self.dir.path()).unwrap().join(name);
            AbsPath::new(real.as_os_str().as_bytes()).unwrap()
        }

        fn exit_code(&self, source: &str, destination: &str) -> u8 {
            resolve_paths(&self.path(source), &self.path(destination)).unwrap_err().exit.code()
        }
    }

    #[test]
    fn storage_paths_are_the_source_and_the_nearest_directory_that_exists() {
        let p = TestTree::new();
        let paths = resolve_paths(&p.path("src"), &p.path("dst/new/deep")).unwrap();
        assert_eq!(paths.destination, p.abs("dst/new/deep"));
        assert_eq!(paths.storage_paths, [p.abs("src"), p.abs("dst")]);
        let paths = resolve_paths(&p.path("src"), &p.path("dst/")).unwrap();
        assert_eq!((paths.destination, &paths.storage_paths[1]), (p.abs("dst"), &p.abs("dst")));
    }

    #[test]
    fn a_file_is_copied_to_a_file() {
        let p = TestTree::new();
        let paths = resolve_paths(&p.path("src/f"), &p.path("dst/g")).unwrap();
        assert_eq!((paths.source, paths.destination), (p.abs("src/f"), p.abs("dst/g")));
        assert_eq!(paths.storage_paths, [p.abs("src"), p.abs("dst")]);
        std::fs::write(p.path("dst/g"), "old").unwrap();
        assert_eq!(
            resolve_paths(&p.path("src/f"), &p.path("dst/g")).unwrap().storage_paths[1],
            p.abs("dst")
        );
        assert_eq!(
            resolve_paths(&p.path("src/f"), &p.path("src/g")).unwrap().storage_paths,
            [p.abs("src")]
        );
        assert_eq!(p.exit_code("src/f", "dst"), 2);
        assert_eq!(p.exit_code("src", "dst/g"), 2);
        assert_eq!(p.exit_code("src", "dst/g/below"), 2);
    }

    #[test]
    fn a_device_or_socket_is_not_replaced_by_a_file() {
        let p = TestTree::new();
        let (file, null) = (p.path("src/f"), Path::new("/dev/null"));
        assert_eq!(resolve_paths(&file, null).unwrap_err().exit.code(), 2);
        let _socket = std::os::unix::net::UnixListener::bind(p.path("dst/s")).unwrap();
        assert_eq!(p.exit_code("src/f", "dst/s"), 2);
        // What is none itself finds its like there when it is copied again.
        let _other = std::os::unix::net::UnixListener::bind(p.path("src/s")).unwrap();
        assert!(resolve_paths(&p.path("src/s"), &p.path("dst/s")).is_ok());
    }

    #[test]
    fn a_file_is_not_copied_to_a_path_that_ends_like_a_directory() {
        let p = TestTree::new();
        std::fs::write(p.path("old"), "x").unwrap();
        for new in ["none/", "none/below/", "none/.", "old/"] {
            let failure = resolve_paths(&p.path("src/f"), &p.path(new)).unwrap_err();
            assert_eq!(failure.exit.code(), 2, "{new}");
            let into = format!("{}", p.path(new).join("f").display());
            assert!(failure.render().contains(&into), "{into} in {}", failure.render());
        }
        assert_eq!(
            resolve_paths(&p.path("src"), &p.path("none/")).unwrap().destination,
            p.abs("none")
        );
    }

    #[test]
    fn symbolic_links_in_the_arguments_are_followed() {
        let p = TestTree::new();
        symlink(p.path("src"), p.path("s")).unwrap();
        symlink(p.path("dst"), p.path("d")).unwrap();
        let paths = resolve_paths(&p.path("s"), &p.path("d/new")).unwrap();
        assert_eq!((paths.source, paths.destination), (p.abs("src"), p.abs("dst/new")));
        symlink("nowhere", p.path("dangling")).unwrap();
        assert_eq!(p.exit_code("src", "dangling"), 2);
        assert_eq!(p.exit_code("dangling", "dst"), 3);
    }

    #[test]
    fn a_source_that_does_not_exist_is_not_found() {
        let p = TestTree::new();
        assert_eq!(p.exit_code("none", "dst"), 3);
    }

    #[test]
    fn a_copy_onto_itself_into_itself_or_over_itself_is_refused() {
        let p = TestTree::new();
        symlink(p.path("src"), p.path("s")).unwrap();
        for (source, destination) in [
            ("src", "src"),
            ("src", "s"),
            ("src", "src/new"),
            ("src", "s/new"),
            ("src", ""),
            ("src/f", "src/f"),
        ] {
            assert_eq!(p.exit_code(source, destination), 2, "{source} {destination}");
        }
    }
}
