//! Connections that send no valid request: peers are served all the same.

use super::streams::read_reply;
use super::*;
use crate::data::frame::REPLY;
use crate::data::server::CONNECTIONS;
use std::io::ErrorKind;

#[tokio::test]
async fn idle_connections_are_closed_for_new_ones_of_their_address_and_peers_stay() {
    let world = TestBed::new().await;
    let request = frame::ask(&ContentRequest { verb: PACK.to_owned(), ticket: world.ticket() });
    let mut peer = world.stream().await;
    let send_pack = async |peer: &mut TcpStream, name: &str| {
        let mut pack = [request.clone(), frame::dirs(vec![])].concat();
        pack.extend(file_frames(&file_entry(name, 3), b"abc", &blake3::hash(b"abc").into()));
        pack.extend(frame::end(1));
        peer.write_all(&pack).await.unwrap();
        assert_eq!(read_reply(peer).await.0, REPLY);
    };
    send_pack(&mut peer, "before").await;
    let address = format!("{}:{}", world.endpoint.address, world.endpoint.port.unwrap());
    let mut flood = Vec::new();
    for _ in 0..200 {
        let mut idle = TcpStream::connect(&address).await.unwrap();
        idle.write_all(b"G").await.unwrap();
        flood.push(idle);
    }
    // Those that were opened first end now and not after the time-out for a request.
    let newest = flood.split_off(flood.len() - CONNECTIONS.max_unverified_per_address);
    for mut idle in flood {
        let mut byte = [0];
        assert!(matches!(idle.read(&mut byte).await, Ok(0) | Err(_)));
    }
    for idle in &newest {
        let read = idle.try_read(&mut [0]);
        assert!(read.is_err_and(|e| e.kind() == ErrorKind::WouldBlock));
    }
    send_pack(&mut peer, "connected before").await;
    let mut another = world.stream().await;
    send_pack(&mut another, "connected in the flood").await;
    assert_eq!(world.names(), ["before", "connected before", "connected in the flood"]);
    drop(newest);
    world.shut_down().await;
}
