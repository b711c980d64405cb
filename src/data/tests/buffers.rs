//! Little memory and much to move; and sources that are read past the page cache.

use super::*;
use crate::config::agent::MIN_BUFFER_MEMORY_BYTES;
use crate::data::buffer_pool::SEND_BUFFER_BYTES;
use crate::data::{BufferPools, hash_source};
use crate::wire::content::BLOCK_BYTES;
use crate::wire::content::HashMode;
use crate::wire::preserve::Preserve;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Everything of `world`'s source to `to`, all files at the same time: the large ones as ranges of
/// 1 MiB (all of them at once, too) that are compared first, the others whole.
async fn transfer_all(world: &TestBed, to: &Destination) {
    let source = tree(&world.src());
    let manifest = world.manifest();
    let alone = |entry: &Entry| Manifest { entries: vec![entry.clone()], ..manifest.clone() };
    let files = manifest.entries.iter().filter(|entry| !entry.is_dir());
    let each = files.map(|entry| {
        let (source, manifest) = (&source, alone(entry));
        async move {
            if !entry.path.as_bytes().starts_with(b"large") {
                let files = vec![entry.clone()];
                let packed = to.transfer_pack(source, manifest.dirs.clone(), files).await.unwrap();
                assert!(packed.files[0].is_ok(), "{packed:?}");
                return;
            }
            let ranges = (0..entry.size().div_ceil(MIB)).map(|n| {
                let range = (n * MIB, MIB.min(entry.size() - n * MIB));
                to.transfer_range(source, &manifest, entry, range, RangeMode::Delta)
            });
            for sent in futures_util::future::join_all(ranges).await {
                assert!(sent.is_ok(), "{sent:?}");
            }
        }
    });
    futures_util::future::join_all(each).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_minimum_memory_agents_that_send_to_each_other_do_not_deadlock() {
    let memory =
        [BufferPools::new(MIN_BUFFER_MEMORY_BYTES), BufferPools::new(MIN_BUFFER_MEMORY_BYTES)];
    let worlds = [
        TestBed::with_pool(memory[0].receiving.clone()).await,
        TestBed::with_pool(memory[1].receiving.clone()).await,
    ];
    for (world, seed) in worlds.iter().zip([100, 200]) {
        // More than the sockets take, so that senders wait for receivers.
        for n in 0..9 {
            world.write(&format!("f{n}"), &content(16 * MIB + n, seed + n));
        }
        for n in 0..2 {
            world.write(&format!("large{n}"), &content(12 * MIB - 5, seed + 50 + n));
            // A quarter of its blocks is there.
            let mut old = content(12 * MIB - 5, seed + 50 + n);
            old.chunks_mut(4 * BLOCK_BYTES as usize).for_each(|blocks| {
                let from = blocks.len().min(BLOCK_BYTES as usize);
                blocks[from..].fill(7);
            });
            let existing = world.dst().join(format!("large{n}"));
            fs::write(&existing, old).unwrap();
            let file = fs::File::options().write(true).open(existing).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
    }
    // What worlds[0] has is sent by the agent that receives in worlds[1], and the other way round.
    let rules = WriteRules::default();
    let to = |to: usize| {
        let peers = Peers::new(&[], memory[1 - to].sending.clone());
        Destination::Remote(peers.peer(&worlds[to].member(), &worlds[to].ticket(), &rules))
    };
    let (existing, back) = (to(0), to(1));
    let both = async {
        tokio::join!(transfer_all(&worlds[0], &existing), transfer_all(&worlds[1], &back))
    };
    tokio::time::timeout(Duration::from_secs(120), both).await.expect("they wait for each other");
    for (world, memory) in worlds.into_iter().zip(&memory) {
        for n in 0..2 {
            let entry = tree(&world.src()).entry(&rel(&format!("large{n}"))).unwrap();
            world.target().publish_part_file(&entry, None).unwrap();
        }
        for name in fs::read_dir(world.src()).unwrap().map(|e| e.unwrap().file_name()) {
            let (sent, existing) = (world.src().join(&name), world.dst().join(&name));
            assert!(fs::read(sent).unwrap() == fs::read(existing).unwrap(), "{name:?}");
        }
        let (half, most) = (MIN_BUFFER_MEMORY_BYTES as usize / 2, memory.peak_bytes());
        for pool in [&memory.sending, &memory.receiving] {
            assert!(
                (SEND_BUFFER_BYTES..=half).contains(&pool.peak_bytes()),
                "{} of {half}",
                pool.peak_bytes()
            );
        }
        assert!(most as u64 <= MIN_BUFFER_MEMORY_BYTES);
        world.shut_down().await;
    }
}

/// Large files of lengths that are no whole pages, some with holes, on a disk with a page cache.
fn large_files(world: &TestBed) -> Vec<&'static str> {
    let names = ["even", "odd", "page", "holes"];
    for (name, size) in names.into_iter().zip([16 * MIB, 17 * MIB - 1, 16 * MIB + 12_289, 18 * MIB])
    {
        let data = content(size, size);
        if name == "holes" {
            let file = fs::File::create(world.src().join(name)).unwrap();
            file.set_len(size + 4097).unwrap();
            file.write_all_at(&data[..3 * MIB as usize + 77], 2 * MIB).unwrap();
            file.write_all_at(&data[..4096], 9 * MIB + 4096).unwrap();
            file.write_all_at(b"end", size + 4000).unwrap();
        } else {
            world.write(name, &data);
        }
    }
    names.to_vec()
}

#[tokio::test]
async fn files_read_past_the_page_cache_arrive_whole_whatever_their_length_and_holes() {
    let world = TestBed::in_dir("/var/tmp", test_pool()).await;
    for name in large_files(&world) {
        let source = tree(&world.src()).preserving(Preserve::all()).with_direct_io(true);
        let mut manifest = world.manifest();
        manifest.entries = vec![source.entry(&rel(name)).unwrap()];
        let entry = manifest.entries[0].clone();
        assert!(source.open_source(&entry).unwrap().is_direct(), "/var/tmp must be on a disk");
        let expected = fs::read(world.src().join(name)).unwrap();
        let digest =
            hash_source(&source, &entry, HashMode::Full, &mut test_buffer(&test_pool())).unwrap();
        assert_eq!(digest, blake3::hash(&expected).into());
        for to in world.both_destinations(&WriteRules::default()) {
            let existing = world.dst().join(name);
            let files = vec![entry.clone()];
            let packed = to.transfer_pack(&source, manifest.dirs.clone(), files).await.unwrap();
            assert!(packed.files[0].is_ok(), "{packed:?}");
            assert!(fs::read(&existing).unwrap() == expected, "{name} as a file");
            for mode in [RangeMode::Whole, RangeMode::Delta] {
                let file = fs::File::options().write(true).open(&existing).unwrap();
                file.write_all_at(b"other", 5 * MIB + 5).unwrap();
                file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
                for (at, length) in [(0, 16 * MIB), (16 * MIB, entry.size() - 16 * MIB)] {
                    if length > 0 {
                        let range = (at, length);
                        let sent = to.transfer_range(&source, &manifest, &entry, range, mode).await;
                        assert!(sent.is_ok(), "{sent:?}");
                    }
                }
                world.target().publish_part_file(&entry, None).unwrap();
                assert!(fs::read(&existing).unwrap() == expected, "{name} {mode:?}");
            }
            fs::remove_file(&existing).unwrap();
        }
    }
    world.shut_down().await;
}
