use super::super::testing::*;
use super::*;
use crate::wire::options::WriteRules;
use crate::wire::outcome::ErrorClass;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

fn chmod(site: &TestSite, path: &str, mode: u32) {
    fs::set_permissions(site.path(path), fs::Permissions::from_mode(mode)).unwrap();
}

/// The text of an error, with `/` for the storage root.
fn error_text<T: std::fmt::Debug>(site: &TestSite, checked: Result<T>) -> String {
    let report = checked.unwrap_err().to_entry_error();
    assert!(report.path.0.is_empty(), "it is an error of the root: {report:?}");
    report.message.replace(site.dir.path().to_str().unwrap(), "")
}

fn target_at(site: &TestSite, base: &str, rules: WriteRules) -> Target {
    Target { tree: site.tree(base).as_destination(), ..site.target_with_rules(rules) }
}

#[test]
fn the_kind_of_a_source_root_is_detected() {
    let site = TestSite::new();
    site.write_file("src/file", "x");
    assert_eq!(site.source().check_readable(), Ok(RootKind::Directory));
    assert_eq!(site.tree("").check_readable(), Ok(RootKind::Directory));
    assert_eq!(site.tree("src/file").check_readable(), Ok(RootKind::File));
    let _socket = std::os::unix::net::UnixListener::bind(site.path("src/socket")).unwrap();
    assert_eq!(site.tree("src/socket").check_readable(), Ok(RootKind::Other));
    for base in ["none", "none/below", "src/file/below"] {
        let error = site.tree(base).check_readable();
        assert_eq!(error.as_ref().unwrap_err().errno_name(), Some("ENOENT"));
        assert_eq!(error.as_ref().unwrap_err().class(), ErrorClass::Permanent, "{base}");
        assert_eq!(error_text(&site, error), format!("SRC /{base} does not exist"));
    }
}

#[test]
fn an_unreadable_source_root_is_rejected_with_its_path() {
    let site = TestSite::new();
    site.write_file("src/file", "x");
    site.write_file("src/shut/file", "x");
    site.write_file("src/blind/file", "x");
    chmod(&site, "src/file", 0o200);
    chmod(&site, "src/shut", 0o000);
    chmod(&site, "src/blind", 0o400);
    site.run_with_all_owned_by_nobody(|| {
        for base in ["src/file", "src/shut", "src/blind", "src/shut/file"] {
            assert_eq!(
                error_text(&site, site.tree(base).check_readable()),
                format!("cannot read `/{base}`: Permission denied (EACCES)")
            );
        }
    });
}

#[test]
fn links_in_the_path_of_a_source_are_followed_within_the_storage_root() {
    let site = TestSite::new();
    site.write_file("src/dir/file", "x");
    symlink("src", site.path("link")).unwrap();
    symlink(site.path("src/dir"), site.path("absolute")).unwrap();
    symlink("dir/file", site.path("src/to-file")).unwrap();
    for (given, real) in [
        ("src/dir", "src/dir"),
        ("src/dir/file", "src/dir/file"),
        ("link", "src"),
        ("link/dir", "src/dir"),
        ("link/to-file", "src/dir/file"),
        ("absolute/file", "src/dir/file"),
        ("none", "none"),
    ] {
        let resolved = site.tree(given).resolve_base_links().unwrap();
        assert_eq!(resolved.path(), site.tree(real).path(), "{given}");
    }
    symlink("nowhere", site.path("dangling")).unwrap();
    symlink("circle", site.path("circle")).unwrap();
    symlink("/etc", site.path("outside")).unwrap();
    for (given, message) in [
        ("dangling", "SRC /dangling does not exist"),
        ("dangling/x", "SRC /dangling/x does not exist"),
    ] {
        assert_eq!(error_text(&site, site.tree(given).resolve_base_links()), message);
    }
    for given in ["circle", "outside", "outside/passwd"] {
        let error = site.tree(given).resolve_base_links().unwrap_err();
        assert_eq!((error.errno_name(), error.class()), (Some("ELOOP"), ErrorClass::Permanent));
    }
}

#[test]
fn a_matching_destination_is_accepted_and_nothing_is_created() {
    use RootKind::{Directory, File, Other};
    let site = TestSite::new();
    site.write_file("dst/file", "x");
    symlink("file", site.path("dst/link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(site.path("dst/socket")).unwrap();
    let before = fs::read_dir(site.path("dst")).unwrap().count();
    for dry_run in [false, true] {
        for (base, source, refusal) in [
            ("dst", Directory, None),
            ("dst/new/deep", Directory, None),
            ("dst/new", File, None),
            ("dst/file", File, None),
            ("dst/link", File, None),
            ("dst/socket", Other, None),
            ("dst", File, Some("SRC is a file, but DST /dst is a directory")),
            ("", File, Some("SRC is a file, but DST  is a directory")),
            ("dst/file", Directory, Some("SRC is a directory, but DST /dst/file is not")),
            ("dst/socket", Directory, Some("SRC is a directory, but DST /dst/socket is not")),
            (
                "dst/socket",
                File,
                Some(
                    "SRC is a file, but DST /dst/socket is a device, FIFO or socket, which the copy would replace",
                ),
            ),
            (
                "dst/file/x",
                Directory,
                Some("cannot write to `/dst/file/x`: Not a directory (ENOTDIR)"),
            ),
            (
                "dst/link",
                Directory,
                Some(
                    "cannot write to `/dst/link`: A symbolic link in the path, which is not followed (ELOOP)",
                ),
            ),
        ] {
            let rules = WriteRules { dry_run, ..WriteRules::default() };
            let checked = target_at(&site, base, rules).check_writable(source);
            match refusal {
                None => assert_eq!(checked, Ok(()), "{base} {source:?}"),
                Some(refusal) => assert_eq!(error_text(&site, checked), refusal),
            }
        }
    }
    assert_eq!(fs::read_dir(site.path("dst")).unwrap().count(), before);
    site.assert_canary_unchanged();
}

#[test]
fn an_unwritable_destination_is_rejected_before_anything_is_created() {
    let site = TestSite::new();
    site.write_file("dst/foreign/x/file", "x");
    site.write_file("dst/shut/file", "x");
    fs::create_dir(site.path("dst/own")).unwrap();
    site.chown_all_to_nobody();
    for foreign in ["dst/foreign", "dst/foreign/x", "dst/shut"] {
        std::os::unix::fs::chown(site.path(foreign), Some(0), Some(0)).unwrap();
    }
    chmod(&site, "dst/shut", 0o700);
    // Widened while it is written to, as the mode of every directory of ours is.
    chmod(&site, "dst/own", 0o500);
    let check =
        |base: &str, rules| target_at(&site, base, rules).check_writable(RootKind::Directory);
    site.run_as_nobody(|| {
        for base in ["dst/foreign", "dst/foreign/new", "dst/foreign/new/deep", "dst/shut/new"] {
            assert_eq!(
                error_text(&site, check(base, WriteRules::default())),
                format!("cannot write to `/{base}`: Permission denied (EACCES)")
            );
            let dry_run = WriteRules { dry_run: true, ..WriteRules::default() };
            assert_eq!(check(base, dry_run), Ok(()), "{base}: a dry run writes nothing");
        }
        let existing = WriteRules { existing: true, ..WriteRules::default() };
        assert_eq!(check("dst/foreign/new", existing), Ok(()), "nothing new is wanted");
        for base in ["dst", "dst/own", "dst/own/new"] {
            assert_eq!(check(base, WriteRules::default()), Ok(()), "{base}");
        }
    });
    // What is changed may lie in a directory below: each entry has its own outcome.
    std::os::unix::fs::chown(site.path("dst/foreign/x"), Some(65534), None).unwrap();
    site.run_as_nobody(|| assert_eq!(check("dst/foreign", WriteRules::default()), Ok(())));
}

#[test]
fn root_state_reports_an_empty_root_and_the_file_system() {
    let site = TestSite::new();
    let state = |base: &str| site.tree(base).root_state().unwrap();
    assert!(state("src").empty);
    assert!(!state("canary").empty && !state("canary/file").empty);
    assert_eq!(state("src").file_system, state("canary/file").file_system);
    assert!(site.tree("none").root_state().is_err());
    let proc = super::super::RootDir::open(&crate::wire::AbsPath::new("/proc").unwrap()).unwrap();
    let other = Tree::new(proc, RelPath::root()).root_state().unwrap();
    assert_ne!(other.file_system, state("src").file_system);
}
