//! The recorded samples of messages between agents (`tests/formats`).

use super::control_messages::{BlockDigestsRequest, CleanUpRequest, RootCheckRequest};
use super::protocol::{
    ContentRequest, DirTable, EntryDigest, IndexedDirError, IndexedWarning, OfferReply, PackReply,
    RangeHead, RangeReply, WriteOutcome,
};
use super::prune_messages::{PruneError, PruneReply, PruneRequest, RemovedEntry};
use crate::fs::{BlockHashes, OfferDecision, PruneResume, RootKind};
use crate::wire::entry_report::EntryAction;
use crate::wire::formats::manifest;
use crate::wire::options::FilterSpec;
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::samples::Samples;
use crate::wire::{Digest, RelPath};

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

#[test]
fn requests_are_read_and_written_as_recorded() {
    let mut requests = Samples::open("requests");
    let verb = "/v1/pack".to_owned();
    requests.check_cbor("content", &ContentRequest { verb, ticket: "AAEC.AAEC".to_owned() });
    let head = RangeHead { manifest: manifest(), offset: 1024, length: 2048, is_dense: true };
    requests.check_cbor("range_head", &head);
    requests.check_cbor("dir_table", &DirTable { dirs: manifest().dirs });
    let digests =
        BlockDigestsRequest { manifest: manifest(), offset: 1, length: 2, block_bytes: 3 };
    requests.check_cbor("block_digests", &digests);
    let name = |text: &str| text.as_bytes().to_vec().into();
    let prune = PruneRequest {
        dir: path("dir"),
        after: Some(name("b")),
        through: Some(name("m")),
        names: vec![name("c"), name("d\n")],
        filter: FilterSpec {
            rules: vec!["*.tmp".to_owned(), "!a.tmp".to_owned()],
            min_size: Some(1),
            max_size: Some(2),
            newer_than: Some(-5),
            older_than: Some(5),
        },
        delete_excluded: true,
        apply: true,
        dirs: manifest().dirs,
        resume: Some(PruneResume { after: path("dir/c"), kept_dirs: 4 }),
        replacing_dirs: vec![1],
    };
    requests.check_cbor("prune", &prune);
    let root = manifest().dirs.pop();
    requests.check_cbor("clean_up", &CleanUpRequest { root });
    for (kind, name) in
        [(RootKind::Directory, "dir"), (RootKind::File, "file"), (RootKind::Other, "other")]
    {
        let request = RootCheckRequest { source_kind: kind };
        requests.check_cbor(&format!("root_check_{name}"), &request);
    }
    requests.finish();
}

#[test]
fn replies_are_read_and_written_as_recorded() {
    let mut replies = Samples::open("replies");
    let error = |class| EntryError {
        errno: Some("EACCES".to_owned()),
        hint: Some("run the agent as root".to_owned()),
        class,
        ..EntryError::new(
            b"",
            Side::Source,
            "open",
            "cannot open `file`: Permission denied (EACCES)",
        )
    };
    let classes = [
        ErrorClass::Transient,
        ErrorClass::Permanent,
        ErrorClass::Changed,
        ErrorClass::Vanished,
        ErrorClass::StorageGone,
        ErrorClass::InvalidRequest,
        ErrorClass::Damaged,
    ];
    let actions = [
        EntryAction::Create,
        EntryAction::Update,
        EntryAction::Metadata,
        EntryAction::Skip,
        EntryAction::Delete,
    ];
    let done = actions.map(|action| Ok(OfferDecision::Done(action)));
    let warning = IndexedWarning {
        cause: "owner not set (EPERM)".to_owned(),
        count: 12,
        entries: vec![2],
        dirs: vec![0],
    };
    let dir_error = IndexedDirError { dir: 3, error: error(ErrorClass::Transient) };
    let offer = OfferReply {
        results: done
            .into_iter()
            .chain([
                Ok(OfferDecision::NeedsContent { action: EntryAction::Update, has_basis: true }),
                Ok(OfferDecision::NeedsDigest),
            ])
            .chain(classes.map(|class| Err(error(class))))
            .collect(),
        dir_errors: vec![dir_error.clone()],
        digests: vec![EntryDigest { entry: 1, digest: Digest([1; 32]) }],
        warnings: vec![warning.clone()],
        needs_clean_up: true,
        created_dirs: vec![0, 2],
    };
    replies.check_cbor("offer", &offer);
    let outcomes = [
        WriteOutcome::Written,
        WriteOutcome::Mismatch,
        WriteOutcome::Aborted,
        WriteOutcome::Failed(error(ErrorClass::Changed)),
    ];
    let pack = PackReply {
        files: outcomes.to_vec(),
        dir_errors: vec![dir_error],
        warnings: vec![warning],
        needs_clean_up: true,
    };
    replies.check_cbor("pack", &pack);
    replies.check_cbor("range", &RangeReply { outcome: WriteOutcome::Written });
    let digests: Result<Vec<BlockHashes>, EntryError> =
        Ok(vec![BlockHashes { part: Some(Digest([2; 32])), basis: Some(Digest([3; 32])) }]);
    replies.check_cbor("block_digests", &digests);
    let prune = PruneReply {
        examined: 1,
        extraneous: 2,
        bytes: 3,
        removed: vec![RemovedEntry { path: path("f/g"), bytes: 4 }],
        errors: vec![PruneError { path: path("k"), error: error(ErrorClass::Permanent) }],
        resume: Some(PruneResume { after: path("dir/c"), kept_dirs: 5 }),
        allowance_exhausted: true,
        old_trash: 6,
        old_trash_paths: vec![path("bin")],
    };
    replies.check_cbor("prune", &prune);
    replies.check_cbor::<Result<(), EntryError>>("done", &Ok(()));
    replies.check_cbor::<Result<(), EntryError>>("failed", &Err(error(ErrorClass::StorageGone)));
    replies.finish();
}
