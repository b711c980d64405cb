//! Tokens with the real program: another user of the master's host works with one.

use super::*;
use std::os::unix::fs::PermissionsExt as _;
use support::process::is_root;

#[test]
fn a_user_with_a_token_does_what_it_allows_until_it_is_revoked() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let admin_file = cluster.home().join("state/admin.token");
    assert_eq!(fs::metadata(&admin_file).unwrap().permissions().mode() & 0o7777, 0o600);
    let (src, dst) = (cluster.data_path("src"), cluster.data_path("dst"));
    let create =
        cluster.ctl(["token", "create", "--role", "operator", "--label", "nightly", "--scope"]);
    let created = create.arg(&src).arg(&dst).run().assert_exit_code(0);
    let token = created.stdout_text();
    let id = token.split('_').nth(1).unwrap().to_owned();
    assert!(token.starts_with("lh1_") && token.trim().len() == 81, "{token}");

    let home = home();
    let home = home.path();
    User::Ordinary.chown(home);
    let file = write_file(home.join("token"), &token);
    User::Ordinary.chown(&file);
    let user = |args: &[&str]| cluster.ctl(args).user(User::Ordinary, home);
    let login = user(&["auth", "login", "--token-file"]).arg(&file).run().assert_exit_code(0);
    assert!(
        login.stdout_text().contains(&format!("token {id}, role operator")),
        "{}",
        login.stdout_text()
    );
    assert!(!login.stdout_text().contains(token.trim()));
    let stored = home.join(".config/longhaul/credentials.json");
    assert_eq!(fs::metadata(&stored).unwrap().permissions().mode() & 0o7777, 0o600);

    let submit =
        |to: &Path, more: &[&str]| user(&["sync", "submit"]).arg(&src).arg(to).args(more).run();
    submit(&dst, &[]).assert_exit_code(0);
    for (refused, text) in [
        (submit(&cluster.data_path("dst2"), &[]), "does not allow syncs from"),
        (submit(&dst, &["--delete"]), "has not the right `delete`"),
        (user(&["token", "list"]).run(), "this request needs the role `admin`"),
        (user(&["workers", "drain", "a"]).run(), "this request needs the role `admin`"),
    ] {
        let refused = refused.assert_exit_code(4);
        assert!(refused.stderr_text().contains(text), "{}", refused.stderr_text());
    }
    // Another file overrides the stored token, which no other user may read.
    let other = write_file(home.join("other"), "lh1_000000000000_".to_owned() + &"0".repeat(64));
    User::Ordinary.chown(&other);
    let bad = user(&["sync", "list"]).env("CTL_TOKEN_FILE", &other).run().assert_exit_code(4);
    assert!(bad.stderr_text().contains("not one of this master"), "{}", bad.stderr_text());
    user(&["auth", "login", "--token-file"]).arg(&other).run().assert_exit_code(4);
    user(&["sync", "list"]).run().assert_exit_code(0);
    chmod(&stored, 0o644);
    user(&["sync", "list"]).run().assert_exit_code(78);
    chmod(&stored, 0o600);

    let list = cluster.ctl(["token", "list"]).run().assert_exit_code(0);
    assert!(list.stdout_text().contains("nightly") && !list.stdout_text().contains(token.trim()));
    cluster.ctl(["token", "revoke", &id]).run().assert_exit_code(0);
    let refused = user(&["sync", "list"]).run().assert_exit_code(4);
    assert!(
        refused.stderr_text().contains(&format!("the token {id} is revoked")),
        "{}",
        refused.stderr_text()
    );
    user(&["auth", "logout"]).run().assert_exit_code(0);
    // Without a token the user of the master is an administrator, and another user is none.
    user(&["sync", "list"]).run().assert_exit_code(if is_root() { 4 } else { 0 });
    cluster.ctl(["token", "revoke", "000000000000"]).run().assert_exit_code(3);
    // No option takes a token, and a token does not go to another host in clear.
    let remote = ctl(["sync", "list", "--master-url", "http://192.0.2.1:8888"]);
    let remote = remote.env("CTL_TOKEN_FILE", &admin_file).run().assert_exit_code(2);
    assert!(remote.stderr_text().contains("ssh -L"), "{}", remote.stderr_text());
}
