//! The check of both roots before a scan.

use super::super::preflight::check_roots;
use super::*;

/// A link in the source path leads to the path of the destination. On another host that is another storage.
#[tokio::test]
async fn a_source_link_to_the_destination_path_is_an_error_only_at_a_worker_of_the_destination() {
    let fleet = AgentFleet::new(1).await;
    let link = fleet.src().join("link");
    std::os::unix::fs::symlink("data", &link).unwrap();
    fs::create_dir(fleet.src().join("data")).unwrap();
    let cx = fleet.context(&["src"]);
    for below in [false, true] {
        let destination = fleet.src().join(if below { "data/below" } else { "data" });
        let others = fleet.members.clone();
        for (is_named, members) in
            [(true, [others.clone(), vec![itself()]].concat()), (false, others)]
        {
            let assignment = Assignment {
                source_path: abs(&link),
                destination_path: abs(&destination),
                destination_workers: members,
                ..fleet.assignment(TaskSpec::Scan { dir: RelPath::root(), cursor: None })
            };
            let job = Job {
                cx: &cx,
                assignment: &assignment,
                writers: &Writers::default(),
                deadline: &Deadline::default(),
                ticket: &(&*assignment.ticket).into(),
                byte_counter: &Arc::default(),
            };
            let source = job.open_source().await.unwrap();
            assert_eq!(source.path(), abs(&fleet.src().join("data")), "the link is followed");
            let checked = check_roots(job, &source).await;
            let class = checked.as_ref().err().map(|error| error.class);
            let expected = is_named.then_some(ErrorClass::InvalidRequest);
            assert_eq!(class, expected, "{destination:?}: {checked:?}");
        }
    }
    fleet.shut_down().await;
}
