//! What the sending end hands on, and what it does when its source changes meanwhile.

use super::*;

/// Hands on what is sent, piece by piece.
struct Pieces(mpsc::Sender<Bytes>);

impl Outlet for Pieces {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.0.blocking_send(Bytes::copy_from_slice(bytes)).map_err(|_| Gone)
    }

    fn go_on(&self) -> Result<(), Gone> {
        if self.0.is_closed() { Err(Gone) } else { Ok(()) }
    }
}

/// A source file being sent, of which the first piece has left.
fn being_sent(world: &World, name: &str) -> (mpsc::Receiver<Bytes>, Sending) {
    let (to, mut from) = mpsc::channel(1);
    let source = tree(&world.src());
    let entry = source.entry(&rel(name)).unwrap();
    let sending = std::thread::spawn(move || {
        let mut to = Pieces(to);
        let mut feed = Feed::new(&mut to, (one(&plenty()), None), Arc::default());
        feed_pack(&source, &[], &[entry], true, &mut feed)
    });
    from.blocking_recv().unwrap();
    (from, sending)
}

type Sending = std::thread::JoinHandle<Result<Vec<Fed>, Gone>>;

#[test]
fn a_source_that_changes_while_it_is_sent_is_taken_back() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::new());
    type Change = fn(&Path);
    let changes: [(&str, Change); 3] = [
        ("grown", |p| {
            use std::io::Write as _;
            fs::OpenOptions::new().append(true).open(p).unwrap().write_all(b"x").unwrap();
        }),
        ("cut", |p| fs::OpenOptions::new().write(true).open(p).unwrap().set_len(10).unwrap()),
        ("rewritten", |p| {
            use std::os::unix::fs::FileExt as _;
            let file = fs::OpenOptions::new().write(true).open(p).unwrap();
            file.write_at(b"other", 7 << 20).unwrap();
        }),
    ];
    for (name, change) in changes {
        world.write(name, &vec![1; 8 << 20]);
        let (mut from, sending) = being_sent(&world, name);
        change(&world.src().join(name));
        let mut all = Vec::new();
        while let Some(piece) = from.blocking_recv() {
            all.extend(piece);
        }
        let fed = sending.join().unwrap().unwrap();
        let [Fed::TakenBack(error)] = fed.as_slice() else { panic!("{name}: {fed:?}") };
        assert_eq!(error.class, ErrorClass::Changed, "{name}");
        assert!(all.ends_with(&[&frame::abort()[..], &frame::end(1)].concat()), "{name}");
    }
    runtime.block_on(world.end());
}

#[test]
fn sending_holds_one_buffer_however_much_is_sent() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::new());
    fs::write(world.src().join("long"), vec![3; 64 << 20]).unwrap();
    let (to, mut from) = mpsc::channel(1);
    let pool = plenty();
    let (source, buffers) = (tree(&world.src()), pool.clone());
    let entry = source.entry(&rel("long")).unwrap();
    let sending = std::thread::spawn(move || {
        let mut to = Pieces(to);
        let mut feed = Feed::new(&mut to, (one(&buffers), None), Arc::default());
        feed_pack(&source, &[], &[entry], true, &mut feed).unwrap()
    });
    let mut bytes = 0;
    while let Some(piece) = from.blocking_recv() {
        bytes += piece.len();
    }
    assert_eq!(sending.join().unwrap(), [Fed::Sent(written(&vec![3; 64 << 20], true))]);
    assert!(bytes > 64 << 20);
    assert!(pool.most() < 2 * BUFFER);
    runtime.block_on(world.end());
}
