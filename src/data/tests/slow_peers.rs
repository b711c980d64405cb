//! Peers that read or answer next to nothing: requests to them fail, others go on.

use super::*;
use crate::data::frame::REPLY;
use tokio::net::TcpListener;

/// How a peer is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlowKind {
    /// It takes a byte now and then.
    Taking,
    /// It takes all, and answers a byte now and then.
    Answering,
}

/// Between two bytes.
const BYTE_INTERVAL: Duration = Duration::from_millis(20);
/// How long it is borne with.
const REPLY_TIMEOUT: Duration = Duration::from_millis(700);

/// A peer that is slow with every connection; where it listens. It ends with the runtime.
async fn slow_peer(how: SlowKind) -> Endpoint {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // What waits in the kernel is little.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(accept_all(listener, how));
    endpoint
}

async fn accept_all(listener: TcpListener, how: SlowKind) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve_slowly(stream, how));
    }
}

async fn serve_slowly(mut stream: TcpStream, how: SlowKind) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let answer = if head.starts_with(b"GET /v1/stream ") {
        let upgrade = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {UPGRADE_PROTOCOL}\r\n\r\n"
        );
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        // A header that announces a reply of a mebibyte.
        [&[REPLY, 0, 0, 16, 0][..], &[0; 10_000]].concat()
    } else {
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n".repeat(1000)
    };
    let (mut from, mut to) = stream.split();
    if how == SlowKind::Taking {
        while from.read_u8().await.is_ok() {
            tokio::time::sleep(BYTE_INTERVAL).await;
        }
        return;
    }
    // A peer that sends before the first request is refused.
    if head.starts_with(b"GET ") && from.read_u8().await.is_err() {
        return;
    }
    let receiver = async {
        let mut room = vec![0; 64 << 10];
        while from.read(&mut room).await.is_ok_and(|n| n > 0) {}
    };
    let answering = async {
        for byte in answer {
            if to.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(BYTE_INTERVAL).await;
        }
    };
    tokio::join!(receiver, answering);
}

#[tokio::test]
async fn a_peer_that_reads_or_answers_too_slowly_fails_and_delays_no_other() {
    let world = TestBed::new().await;
    world.write("large", &vec![7; 16 << 20]);
    let (manifest, entry) = world.only_file();
    let source = tree(&world.src());
    // Memory for one exchange: all others wait for it.
    let peers = Peers::new(
        &[],
        BufferPool::new(GATHER_BUFFER_BYTES + 2 * super::super::buffer_pool::RECEIVE_BUFFER_BYTES),
    );
    let rules = WriteRules::default();
    for how in [SlowKind::Taking, SlowKind::Answering] {
        let member =
            PoolMember { data_plane_endpoints: vec![slow_peer(how).await], ..world.member() };
        let peer = || {
            let peer = peers.peer(&member, &world.ticket(), &rules);
            Destination::Remote(peer.with_reply_timeout(REPLY_TIMEOUT))
        };
        let started = std::time::Instant::now();
        let packed =
            peer().transfer_pack(&source, manifest.dirs.clone(), vec![entry.clone()]).await;
        let Err(SendError::ConnectionFailed { message, .. }) = packed else {
            panic!("{how:?}: {packed:?}")
        };
        assert!(message.contains("accepted less than 4096 bytes in 700ms"), "{how:?}: {message}");
        if how == SlowKind::Answering {
            // A sender that has not met it yet asks at once; where its route is marked, a probe comes first.
            let unmet = Peers::new(&[], test_pool()).peer(&member, &world.ticket(), &rules);
            let unmet = Destination::Remote(unmet.with_reply_timeout(REPLY_TIMEOUT));
            let offered = unmet.offer(&Manifest::default()).await;
            let Err(SendError::ConnectionFailed { message, .. }) = offered else {
                panic!("{offered:?}")
            };
            assert!(message.contains("no reply in "), "{message}");
            let offered = peer().offer(&Manifest::default()).await;
            assert!(matches!(offered, Err(SendError::Unreachable { .. })), "{offered:?}");
        }
        assert!(started.elapsed() < 100 * REPLY_TIMEOUT, "{how:?}: {:?}", started.elapsed());
        // What it held is free: another peer gets all of it.
        let other = Destination::Remote(peers.peer(&world.member(), &world.ticket(), &rules));
        let packed =
            other.transfer_pack(&source, manifest.dirs.clone(), vec![entry.clone()]).await.unwrap();
        assert!(packed.files.iter().all(Result::is_ok), "{packed:?}");
    }
    assert_eq!(world.names(), ["large"]);
    world.shut_down().await;
}
