//! The ticket sets what is allowed; a request for more is refused and changes nothing.

use super::*;
use crate::data::control_messages::{BlockDigestsRequest, CleanUpRequest};
use crate::data::prune_messages::PruneRequest;
use crate::wire::content::BLOCK_BYTES;
use crate::wire::content::HashMode;
use crate::wire::manifest::{ManifestDir, Meta};
use crate::wire::options::{FilterSpec, MAX_FILTER_BYTES};
use crate::wire::ticket::{DeleteGrant, PrunePermit};

fn rules(change: impl FnOnce(&mut WriteRules)) -> WriteRules {
    let mut rules = WriteRules::default();
    change(&mut rules);
    rules
}

fn prune(apply: bool, names: &[&str]) -> PruneRequest {
    let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime_sec: 5, mtime_nsec: 0 };
    PruneRequest {
        dir: RelPath::root(),
        after: None,
        through: None,
        names: names.iter().map(|n| n.as_bytes().to_vec().into()).collect(),
        filter: FilterSpec::default(),
        delete_excluded: false,
        apply,
        dirs: vec![ManifestDir { path: RelPath::root(), meta }],
        resume: None,
        replacing_dirs: Vec::new(),
    }
}

fn cbor<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).unwrap()
}

fn assert_refused(reply: &str, status: u16, code: &str) {
    assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{reply}");
    assert!(reply.contains(&format!("\"{code}\"")), "{reply}");
}

#[tokio::test]
async fn a_ticket_of_a_dry_run_compares_and_writes_nothing() {
    let world = TestBed::new().await;
    world.write("new", b"new");
    world.write("sub/f", b"abc");
    fs::write(world.dst().join("extra"), b"x").unwrap();
    let before = fs::metadata(world.dst()).unwrap().modified().unwrap();
    let dry = rules(|r| (r.dry_run, r.delete) = (true, true));
    let ticket = world.ticket_with(&dry);
    let (pack, range) = planted_bodies();
    for (path, body) in [
        ("/v1/pack", pack),
        ("/v1/range", range),
        ("/v1/clean-up", cbor(&CleanUpRequest::default())),
        ("/v1/prune", cbor(&prune(true, &["new"]))),
    ] {
        assert_refused(&world.post(path, &ticket, &body).await, 403, "dry_run");
    }
    let manifest = world.manifest();
    let source = tree(&world.src());
    for to in world.both_destinations(&dry) {
        let offered = to.offer(&manifest).await.unwrap();
        let wanted: Vec<_> = entries_needing_content(&manifest, &offered.results);
        assert_eq!(wanted.len(), 2);
        assert_eq!(offered.dir_errors, []);
        let counted = to.request(prune(false, &["new", "sub"])).await.unwrap();
        assert_eq!((counted.pruned.extraneous, counted.pruned.bytes), (1, 1));
        assert!(to.transfer_pack(&source, manifest.dirs.clone(), wanted).await.is_err());
        assert!(to.request(prune(true, &[])).await.is_err());
        assert!(to.request(CleanUpRequest::default()).await.is_err());
    }
    assert_eq!(world.names(), ["extra"]);
    assert_eq!(fs::metadata(world.dst()).unwrap().modified().unwrap(), before);
    world.shut_down().await;
}

#[tokio::test]
async fn only_the_ticket_of_a_task_that_deletes_deletes_and_no_more_than_it_allows() {
    let world = TestBed::new().await;
    for n in 0..6 {
        fs::write(world.dst().join(format!("extra{n}")), b"x").unwrap();
    }
    let mirror = rules(|r| r.delete = true);
    let ticket = |prune: Option<PrunePermit>| {
        world.signer.sign(&Claims { prune, ..world.claims_with(&mirror) })
    };
    let permit = |grant, allowance, receiver: &str| {
        let receiver = receiver.to_owned();
        Some(PrunePermit::Delete(DeleteGrant {
            grant_id: grant,
            max_entries: allowance,
            incarnation: receiver,
        }))
    };
    // A scan or a copy of the same mirror, a task that counts, and one that deletes elsewhere.
    for (prune_permit, apply) in [
        (None, false),
        (None, true),
        (Some(PrunePermit::Count), true),
        (permit(1, 9, "another process"), true),
        (permit(1, 9, "another process"), false),
    ] {
        let reply = world.post("/v1/prune", &ticket(prune_permit), &cbor(&prune(apply, &[]))).await;
        assert_refused(&reply, 403, "deletion_not_allowed");
    }
    let peers = Peers::new(&[], test_pool());
    let request = async |ticket: &str, apply| {
        let peer = peers.peer(&world.member(), ticket, &mirror);
        let page = Destination::Remote(peer).request(prune(apply, &[])).await.unwrap();
        (page.pruned.extraneous, page.allowance_exhausted, world.names().len())
    };
    assert_eq!(request(&ticket(Some(PrunePermit::Count)), false).await, (6, false, 6));
    // Two tickets of one grant, as of two tasks or of a retry, share what it allows.
    assert_eq!(request(&ticket(permit(7, 2, "")), true).await, (2, true, 4));
    assert_eq!(request(&ticket(permit(7, 2, "")), true).await, (0, true, 4));
    assert_eq!(request(&ticket(permit(7, 3, "")), true).await, (1, true, 3));
    assert_eq!(request(&ticket(permit(8, 0, "")), true).await, (0, true, 3));
    // Exactly enough is enough, also for a repeat.
    assert_eq!(request(&ticket(permit(8, 3, "")), true).await, (3, false, 0));
    assert_eq!(request(&ticket(permit(8, 3, "")), true).await, (0, false, 0));
    world.shut_down().await;
}

#[tokio::test]
async fn only_the_ticket_of_a_mirror_allows_deletion() {
    let world = TestBed::new().await;
    fs::create_dir_all(world.dst().join("extra/deep")).unwrap();
    fs::write(world.dst().join("extra/deep/f"), b"12345").unwrap();
    fs::write(world.dst().join("kept"), b"k").unwrap();
    for apply in [false, true] {
        let reply = world.post("/v1/prune", &world.ticket(), &cbor(&prune(apply, &[]))).await;
        assert_refused(&reply, 403, "deletion_not_allowed");
        let local = world.local().request(prune(apply, &[])).await;
        assert!(matches!(local, Err(SendError::Internal(_))), "{local:?}");
    }
    // The rules are signed: the same ticket with one claim swapped is invalid.
    let mirror = world.ticket_with(&rules(|r| r.delete = true));
    let (claims, _) = mirror.rsplit_once('.').unwrap();
    let plain = world.ticket();
    let (_, signature) = plain.rsplit_once('.').unwrap();
    let forged = format!("{claims}.{signature}");
    let reply = world.post("/v1/prune", &forged, &cbor(&prune(true, &[]))).await;
    assert_refused(&reply, 403, "ticket_refused");
    assert_eq!(world.names(), ["extra", "extra/deep", "extra/deep/f", "kept"]);
    for to in world.both_destinations(&rules(|r| r.delete = true)) {
        fs::create_dir_all(world.dst().join("extra/deep")).unwrap();
        fs::write(world.dst().join("extra/deep/f"), b"12345").unwrap();
        let done = to.request(prune(true, &["kept"])).await.unwrap();
        assert_eq!((done.pruned.extraneous, done.pruned.bytes), (3, 5));
        let mut removed = done.removed;
        removed.sort();
        let expected = [("extra", 0), ("extra/deep", 0), ("extra/deep/f", 5)];
        assert_eq!(removed, expected.map(|(path, bytes)| (rel(path), bytes)));
        assert_eq!((done.errors, done.resume), (vec![], None));
        assert_eq!(world.names(), ["kept"]);
        assert_eq!(to.request(CleanUpRequest::default()).await.unwrap(), Ok(()));
    }
    world.shut_down().await;
}

#[tokio::test]
async fn content_without_a_digest_is_accepted_only_where_the_ticket_allows_it() {
    let world = TestBed::new().await;
    let small = content(5000, 1);
    world.write("f", &small);
    let (manifest, entry) = world.only_file();
    let source = tree(&world.src());
    let unhashed = rules(|r| r.requires_digest = false);
    // A peer that does not hash, with a ticket that requires it.
    let strict = Peers::new(&[], test_pool()).peer(&world.member(), &world.ticket(), &unhashed);
    let strict = Destination::Remote(strict);
    let files = vec![entry.clone()];
    let refused =
        strict.transfer_pack(&source, manifest.dirs.clone(), files.clone()).await.unwrap_err();
    let SendError::Refused { status, code, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!((*status, code.as_str()), (403, "digest_required"));
    let range = (0, 5000);
    let refused = strict.transfer_range(&source, &manifest, &entry, range, RangeMode::Whole).await;
    assert!(
        matches!(refused, Err(RangeError::Send(SendError::Refused { status: 403, .. }))),
        "{refused:?}"
    );
    assert!(!world.dst().join("f").exists());
    world.target().remove_part_file(&entry).unwrap();
    for to in world.both_destinations(&unhashed) {
        let packed = to.transfer_pack(&source, manifest.dirs.clone(), files.clone()).await.unwrap();
        assert_eq!(packed.files, [Ok(written(&small, false))]);
        assert_eq!(fs::read(world.dst().join("f")).unwrap(), small);
        fs::remove_file(world.dst().join("f")).unwrap();
        for mode in [RangeMode::Whole, RangeMode::Delta] {
            let sent = to.transfer_range(&source, &manifest, &entry, range, mode).await.unwrap();
            assert_eq!(sent, WrittenRange { value: None, sent: 5000, kept: 0 });
            world.target().publish_part_file(&entry, None).unwrap();
            assert_eq!(fs::read(world.dst().join("f")).unwrap(), small);
            fs::remove_file(world.dst().join("f")).unwrap();
        }
    }
    world.shut_down().await;
}

#[tokio::test]
async fn digests_are_reported_also_where_content_is_not_verified() {
    let world = TestBed::new().await;
    world.write("f", b"abc");
    let (manifest, entry) = world.only_file();
    let source = tree(&world.src());
    for to in
        world.both_destinations(&rules(|r| (r.requires_digest, r.returns_digests) = (false, true)))
    {
        let files = vec![entry.clone()];
        let packed = to.transfer_pack(&source, manifest.dirs.clone(), files).await.unwrap();
        assert_eq!(packed.files, [Ok(written(b"abc", true))]);
        let offered = to.offer(&manifest).await.unwrap();
        assert_eq!(offered.results, [Ok(OfferDecision::Done(EntryAction::Skip))]);
        assert_eq!(offered.digests, [Some(blake3::hash(b"abc").into())]);
        fs::remove_file(world.dst().join("f")).unwrap();
    }
    world.shut_down().await;
}

#[tokio::test]
async fn equal_content_is_found_by_its_digest_and_only_its_metadata_is_repaired() {
    let world = TestBed::new().await;
    world.write("f", b"abc");
    let source = tree(&world.src());
    let checksum = rules(|r| r.compare = crate::wire::options::Compare::Checksum);
    for to in world.both_destinations(&checksum) {
        let existing = fs::File::create(world.dst().join("f")).unwrap();
        std::io::Write::write_all(&mut &existing, b"abc").unwrap();
        existing.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let (mut manifest, entry) = world.only_file();
        assert_eq!(to.offer(&manifest).await.unwrap().results, [Ok(OfferDecision::NeedsDigest)]);
        manifest.entries[0].digest = Some(
            crate::data::hash_source(
                &source,
                &entry,
                HashMode::Full,
                &mut test_buffer(&test_pool()),
            )
            .unwrap(),
        );
        let done = to.offer(&manifest).await.unwrap();
        assert_eq!(done.results, [Ok(OfferDecision::Done(EntryAction::Metadata))]);
        assert_eq!(tree(&world.dst()).entry(&entry.path).unwrap().meta, entry.meta);
        manifest.entries[0].digest = Some(Digest([0; 32]));
        let other = to.offer(&manifest).await.unwrap();
        let expected = OfferDecision::NeedsContent { action: EntryAction::Update, has_basis: true };
        assert_eq!(other.results, [Ok(expected)]);
    }
    world.shut_down().await;
}

#[tokio::test]
async fn inconsistent_documents_are_refused_by_every_handler() {
    let world = TestBed::new().await;
    let ticket = world.ticket_with(&rules(|r| r.delete = true));
    for path in ["/v1/block-digests", "/v1/prune", "/v1/clean-up"] {
        for body in [&b""[..], b"\xff\xff", b"{}", &[0x9f; 100]] {
            assert_refused(&world.post(path, &ticket, body).await, 400, "invalid_frame");
        }
    }
    let manifest = Manifest { dirs: vec![], entries: vec![file_entry("f", 10 * BLOCK_BYTES)] };
    for (offset, length, block) in
        [(0, 1 << 60, BLOCK_BYTES), (7, BLOCK_BYTES, BLOCK_BYTES), (0, BLOCK_BYTES, 0)]
    {
        let request =
            BlockDigestsRequest { manifest: manifest.clone(), offset, length, block_bytes: block };
        let reply = world.post("/v1/block-digests", &ticket, &cbor(&request)).await;
        assert_refused(&reply, 400, "invalid_frame");
    }
    let unsorted = prune(true, &["b", "a"]);
    assert_refused(&world.post("/v1/prune", &ticket, &cbor(&unsorted)).await, 400, "invalid_frame");
    fs::write(world.dst().join("a"), b"").unwrap();
    let endless_filter = PruneRequest {
        filter: FilterSpec { rules: vec!["x".repeat(MAX_FILTER_BYTES)], ..FilterSpec::default() },
        ..prune(true, &[])
    };
    let reply = world.post("/v1/prune", &ticket, &cbor(&endless_filter)).await;
    assert_refused(&reply, 400, "invalid_frame");
    assert_eq!(world.names(), ["a"]);
    world.shut_down().await;
}

#[tokio::test]
async fn metadata_warnings_are_reported_with_the_names_that_were_sent() {
    use crate::wire::preserve::Attribute;
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let world = TestBed::new().await;
    for name in ["plain", "set"] {
        world.write(name, b"abc");
    }
    let path = world.src().join("set");
    chown(&path, Some(1234), Some(1234)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    let manifest = world.manifest();
    let source = tree(&world.src());
    let files: Vec<Entry> = manifest.entries.iter().filter(|e| !e.is_dir()).cloned().collect();
    let ours = rules(|r| {
        r.preserve = r.preserve.without(Attribute::Owner).without(Attribute::Group);
    });
    for to in world.both_destinations(&ours) {
        let dirs = manifest.dirs.clone();
        let packed = to.transfer_pack(&source, dirs, files.clone()).await.unwrap();
        assert!(packed.files.iter().all(Result::is_ok), "{packed:?}");
        let warnings: Vec<_> = packed.warnings.into_iter().collect();
        let [(cause, warning)] = warnings.as_slice() else { panic!("{warnings:?}") };
        assert!(cause.contains("set-uid"), "{cause}");
        assert_eq!((warning.count, warning.paths[0].0.as_slice()), (1, &b"set"[..]));
    }
    world.shut_down().await;
}

#[tokio::test]
async fn directories_that_the_rules_do_not_create_get_no_metadata_and_cause_no_error() {
    let existing = rules(|r| r.existing = true);
    let ignore_existing = rules(|r| r.ignore_existing = true);
    let both = rules(|r| (r.existing, r.ignore_existing) = (true, true));
    // The rules, what the destination has before, and what it has afterwards.
    let cases: [(&WriteRules, &[&str], &[&str]); 5] = [
        (&existing, &[], &[]),
        (&existing, &["there"], &["there"]),
        (&ignore_existing, &["dir"], &["dir", "there"]),
        (&ignore_existing, &["dir", "there"], &["dir", "there"]),
        (&both, &["dir"], &["dir"]),
    ];
    for (rules, before, after) in cases {
        for remote in [true, false] {
            let world = TestBed::new().await;
            world.write("there", b"new");
            world.write("dir/f", b"abc");
            world.write("dir/deep/g", b"");
            for name in before {
                fs::write(world.dst().join(name), b"a file").unwrap();
            }
            let to = if remote { world.remote_with(rules) } else { world.local_with(rules) };
            let (manifest, source) = (world.manifest(), tree(&world.src()));
            let case = format!("{rules:?} {before:?}, remote: {remote}");
            let offered = to.offer(&manifest).await.unwrap();
            assert!(offered.results.iter().all(Result::is_ok), "{case}: {:?}", offered.results);
            assert_eq!(offered.dir_errors, [], "{case}");
            // The same again, with the directories' own entries in another batch.
            let files = Manifest {
                entries: manifest.entries.iter().filter(|e| !e.is_dir()).cloned().collect(),
                ..manifest.clone()
            };
            let offered = to.offer(&files).await.unwrap();
            assert_eq!(offered.dir_errors, [], "{case}");
            let wanted = entries_needing_content(&files, &offered.results);
            let packed = to.transfer_pack(&source, manifest.dirs.clone(), wanted).await.unwrap();
            assert!(packed.files.iter().all(Result::is_ok), "{case}: {:?}", packed.files);
            assert_eq!(packed.dir_errors, [], "{case}");
            assert_eq!(world.names(), after, "{case}");
            world.shut_down().await;
        }
    }
}
