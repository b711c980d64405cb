//! Users of the master's host: what they may do over loopback.

use super::*;
use support::process::is_root;

#[test]
fn another_user_of_the_host_may_run_agents_if_it_is_listed_and_is_refused_else() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let list = || cluster.ctl(["sync", "list"]).user(User::Ordinary, cluster.home()).run();
    if !is_root() {
        // The user of the master itself.
        list().assert_exit_code(0);
        return;
    }
    // The clusters of tests list the user for agents.
    let refused = list().assert_exit_code(4);
    assert!(
        refused.stderr_text().contains("the routes of agents only"),
        "{}",
        refused.stderr_text()
    );
    let file = cluster.home().join("master.yml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace("local_agent_uids: [65534]\n", "")).unwrap();
    cluster.master.process.signal(Signal::HUP);
    await_true("the master serves root only", || {
        list().assert_exit_code(4).stderr_text().contains("this request is from uid 65534")
    });
    assert!(list().stderr_text().contains("sudo ctl"));
    cluster.ctl(["sync", "list"]).run().assert_exit_code(0);
}
