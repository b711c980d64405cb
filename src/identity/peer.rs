//! TLS between agents: both sides present the certificate of an agent of their installation.

use super::client::verify_signatures;
use super::{AgentIdentity, Identity, IdentityError, Role, crypto_provider};
use crate::wire::{Digest, WorkerId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use std::sync::Arc;

/// The protocol in the handshake: a server of another protocol refuses it, and so does this one.
const PROTOCOL: &[u8] = b"longhaul-data/1";

/// Both ends of TLS between agents. Each handshake presents the current certificate of this agent, and checks that of the
/// other one against the authorities that this agent has by then.
#[derive(Debug, Clone)]
pub struct PeerConfigs {
    /// For connections to other agents. The worker of the server is to be compared afterwards ([`peer_worker`]).
    pub client: Arc<ClientConfig>,
    /// For connections of other agents, which have to present a certificate.
    pub server: Arc<ServerConfig>,
}

impl PeerConfigs {
    /// Those of the agent with this identity.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(identity: &Arc<AgentIdentity>) -> Result<Self, IdentityError> {
        let failed = |e| IdentityError(format!("cannot set up TLS between agents: {e}"));
        let verifier = Arc::new(PeerVerifier(Arc::clone(identity)));
        let mut client = ClientConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(identity.clone());
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let mut server = ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(identity.clone());
        // A resumed session would not check the certificate of the client again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(PeerConfigs { client: Arc::new(client), server: Arc::new(server) })
    }
}

/// The worker of the agent at the other end of a connection, by the certificates that it presented and that were accepted.
pub fn peer_worker(presented: Option<&[CertificateDer<'_>]>) -> Option<WorkerId> {
    match Identity::of_certificate(presented?.first()?)?.role {
        Role::Agent(worker) => Some(worker),
        Role::Master | Role::Authority => None,
    }
}

/// Accepts agents of the own installation.
#[derive(Debug)]
struct PeerVerifier(Arc<AgentIdentity>);

/// The certificate is one of the installation, but not of an agent.
#[derive(Debug, thiserror::Error)]
#[error("the other side is {0} and not an agent of this installation")]
struct NotAnAgent(String);

impl PeerVerifier {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        verify_agent(self.0.installations(), end_entity, intermediates, now).map(drop)
    }
}

/// Checks the certificate of an agent against authorities, each with the name of its installation. Returns the hash of
/// the one that it leads to.
///
/// # Errors
/// It is not one of an agent of such an installation, or not valid at `now`.
pub(super) fn verify_agent(
    authorities: impl IntoIterator<Item = (CertificateDer<'static>, String)>,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Digest, rustls::Error> {
    let parsed = ParsedCertificate::try_from(end_entity)?;
    let algorithms = crypto_provider().signature_verification_algorithms.all;
    let mut refusal = rustls::Error::from(CertificateError::UnknownIssuer);
    for (authority, installation) in authorities {
        let hash = blake3::hash(&authority).into();
        let mut roots = RootCertStore::empty();
        roots.add(authority)?;
        // Certificates of agents are for both ends, so the one check is enough: those of masters are refused by their
        // name.
        let chain = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            intermediates,
            now,
            algorithms,
        );
        match chain {
            Ok(()) => {
                let found = Identity::of_certificate(end_entity);
                let is_agent = found.as_ref().is_some_and(|found| {
                    found.installation == installation && matches!(found.role, Role::Agent(_))
                });
                if is_agent {
                    return Ok(hash);
                }
                let found = found.map_or("without a name".to_owned(), |i| i.to_string());
                refusal = CertificateError::Other(OtherError(Arc::new(NotAnAgent(found)))).into();
            }
            // Another authority; its signature is wrong if both installations have one name.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => {}
            Err(e) => refusal = e,
        }
    }
    Err(refusal)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    verify_signatures!();
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Each agent has one certificate: there is nothing to choose by.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    verify_signatures!();
}
