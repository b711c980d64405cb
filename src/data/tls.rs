//! TLS of the data plane. An agent with a certificate uses nothing else, whatever a peer says: a connection without TLS is
//! refused with a reason, in both directions.

use super::data_stream::DataStream;
use super::meter::CountedStream;
use super::ticket_verifier::TicketVerifier;
use crate::identity::{PeerConfigs, peer_worker};
use crate::wire::WorkerId;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The first byte of a connection in TLS: the type of a record with a message of the handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// Why an agent that has no certificate is refused by one that has.
pub const TLS_REQUIRED: &str = "the agent at this endpoint uses TLS, and the agent that sends has no certificate: create a \
                                token for it (ctl token create --join --worker ID --path DIR), and start it with \
                                --join-token-file FILE";

/// The certificate of this agent, and those that it accepts.
pub struct DataTls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    verifier: Arc<TicketVerifier>,
    allows_clear: bool,
}

/// An accepted connection.
pub enum Accepted {
    /// One in TLS of the agent of this worker.
    Tls(DataStream, WorkerId),
    /// One without TLS, which is to be refused.
    Plain(DataStream),
}

impl DataTls {
    /// TLS with these configurations. Workers that `verifier` has as revoked are not connected to.
    /// With `allows_clear` the content of large files is not encrypted where the peer allows it too.
    pub fn new(
        configs: PeerConfigs,
        verifier: Arc<TicketVerifier>,
        allows_clear: bool,
    ) -> Arc<Self> {
        let (connector, acceptor) = (configs.client.into(), configs.server.into());
        Arc::new(DataTls { connector, acceptor, verifier, allows_clear })
    }

    /// See [`new`](Self::new).
    pub(super) fn allows_clear(&self) -> bool {
        self.allows_clear
    }

    /// Makes the handshake with `worker`. Nothing else is sent before it is certain that the server is that.
    ///
    /// # Errors
    /// The connection failed, or the server is not this worker.
    pub(super) async fn connect(
        &self,
        stream: CountedStream,
        worker: &WorkerId,
    ) -> Result<DataStream, Error> {
        // Agents are recognised by their names, whatever their addresses.
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        let stream = self.connector.connect(name, stream).await.map_err(describe_tls_error)?;
        let found = peer_worker(stream.get_ref().1.peer_certificates());
        if found.as_ref() != Some(worker) {
            let found = found.map_or("no agent".to_owned(), |found| format!("worker `{found}`"));
            return Err(Error::other(format!(
                "the certificate there is of {found}, and not of worker `{worker}`"
            )));
        }
        if self.verifier.is_revoked(worker) {
            return Err(Error::other(format!("worker `{worker}` was revoked")));
        }
        Ok(DataStream::Tls(Box::new(stream.into())))
    }

    /// Makes the handshake with a client, if it begins one.
    ///
    /// # Errors
    /// The connection failed, or the client is no agent of the installation.
    pub(super) async fn accept(&self, stream: CountedStream) -> Result<Accepted, Error> {
        match stream.peek_byte().await? {
            Some(HANDSHAKE_RECORD) => {}
            Some(_) => return Ok(Accepted::Plain(DataStream::Plain(stream))),
            None => return Err(ErrorKind::UnexpectedEof.into()),
        }
        let stream = self.acceptor.accept(stream).await?;
        let worker = peer_worker(stream.get_ref().1.peer_certificates())
            .ok_or_else(|| Error::other("the client presented no certificate of an agent"))?;
        Ok(Accepted::Tls(DataStream::Tls(Box::new(stream.into())), worker))
    }
}

/// The next step after a handshake with a server that failed.
fn describe_tls_error(error: Error) -> Error {
    if error.kind() == ErrorKind::UnexpectedEof {
        return Error::other("it ended the connection during the TLS handshake");
    }
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) else {
        return error;
    };
    Error::other(match tls {
        rustls::Error::InvalidMessage(_) => {
            "the agent there does not use TLS, and this one has a certificate: create a token for that worker (ctl \
             token create --join --worker ID --path DIR), and start its agent with --join-token-file FILE"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the certificate there is of another installation: let that agent join the master of this one".to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.to_string(),
        rustls::Error::InvalidCertificate(reason) => {
            format!("the certificate there is not valid: {reason}; compare the clocks of both hosts")
        }
        other => other.to_string(),
    })
}

/// An error with its causes. In TLS 1.3 the refusal of a certificate is the cause of the first error after the handshake.
pub(super) fn describe_error_chain(error: hyper::Error) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
