//! What submitters learn of addresses at which no agent answers. Time is virtual here.

use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A word that only the programs at these addresses send.
const PEER_TEXT: &str = "xyzzy";

/// What happens at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Refuses,
    NeverAnswers,
    /// It closes with unread bytes, which is a reset.
    Resets,
    /// It sends bytes first, as SSH and SMTP do.
    Greets,
    /// It answers as this, as other servers of HTTP do.
    Answers(&'static str),
}

/// An address with that behaviour, and what holds it.
async fn listen(behaviour: Behaviour) -> (Endpoint, Option<TcpSocket>) {
    if behaviour == Behaviour::Refuses {
        let closed = TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        return (closed.local_addr().unwrap().to_string().parse().unwrap(), Some(closed));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, behaviour));
        }
    });
    (endpoint, None)
}

async fn serve(mut stream: TcpStream, behaviour: Behaviour) {
    match behaviour {
        Behaviour::NeverAnswers | Behaviour::Refuses => std::future::pending().await,
        Behaviour::Resets => drop(stream.read_u8().await),
        Behaviour::Greets => {
            let _ = stream.write_all(format!("220 {PEER_TEXT} ready\r\n").as_bytes()).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        Behaviour::Answers(answer) => {
            let mut head = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    let _ = stream.write_all(answer.as_bytes()).await;
                    head.clear();
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_says_the_same_whatever_is_at_the_address_of_a_worker() {
    let mut fleet = AgentFleet::new(0).await;
    write_sample_tree(&fleet);
    let manifest = fleet.manifest(None);
    let all = [
        Behaviour::Refuses,
        Behaviour::NeverAnswers,
        Behaviour::Resets,
        Behaviour::Greets,
        Behaviour::Answers("HTTP/1.1 404 xyzzy\r\ncontent-length: 5\r\n\r\nxyzzy"),
        Behaviour::Answers("HTTP/1.1 200 xyzzy\r\ncontent-length: 5\r\n\r\nxyzzy"),
        // The code is one of the API of a master, and one that no program of this project has.
        Behaviour::Answers(
            "HTTP/1.1 403 no\r\ncontent-length: 80\r\n\r\n{\"type\":\"about:blank\",\"title\":\"\",\"status\":403,\"code\":\"role_missing\",\"detail\":\"\"}",
        ),
        Behaviour::Answers(
            "HTTP/1.1 403 no\r\ncontent-length: 78\r\n\r\n{\"type\":\"about:blank\",\"title\":\"\",\"status\":403,\"code\":\"xyzzy\",\"detail\":\"xyzzy\"}",
        ),
        Behaviour::Answers(
            "HTTP/1.1 302 Found\r\nlocation: http://xyzzy/\r\ncontent-length: 0\r\n\r\n",
        ),
    ];
    for behaviour in all {
        let (endpoint, _held) = listen(behaviour).await;
        let authority = endpoint.authority();
        fleet.members.clear();
        fleet.add_member("away", vec![endpoint]);
        let (done, _) = copy_entries(&fleet, &fleet.context(&["src"]), &manifest).await;
        let expected =
            format!("cannot exchange data with worker away at {authority}; see the log of agent a");
        assert!(!done.success, "{behaviour:?}");
        assert_eq!(done.message.as_deref(), Some(&*expected), "{behaviour:?}");
        assert!(!format!("{:?}", done.report).contains(PEER_TEXT), "{behaviour:?}: {done:?}");
    }
    // An agent that refuses a request does say why: this one has another key.
    let other = AgentFleet::new(1).await;
    let (done, _) = {
        fleet.members = other.members.clone();
        copy_entries(&fleet, &fleet.context(&["src"]), &manifest).await
    };
    let message = done.message.unwrap();
    assert!(message.contains("worker r0 refused (403 ticket_refused)"), "{message}");
    other.shut_down().await;
    fleet.shut_down().await;
}
