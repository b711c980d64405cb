//! TLS of clients of a master.

use super::trust::{PinnedAuthority, ServerTrust};
use super::{AgentIdentity, Identity, IdentityError, Role, crypto_provider};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError,
    RootCertStore, SignatureScheme,
};
use std::sync::Arc;

/// TLS for a client that trusts such servers. `identity`: that of an agent, of which it presents the certificate, and
/// also trusts the masters that the agent has learned of by each handshake.
///
/// # Errors
/// A certificate cannot be used as an authority.
pub fn client_config(
    trust: &ServerTrust,
    identity: Option<Arc<AgentIdentity>>,
) -> Result<ClientConfig, IdentityError> {
    let failed = |e: &dyn std::fmt::Display| IdentityError(format!("cannot set up TLS: {e}"));
    let verifier: Arc<dyn ServerCertVerifier> = match (&trust.pinned, &identity) {
        (Some(pinned), _) => Arc::new(PinnedVerifier(pinned.clone())),
        (None, None) => Arc::new(MasterVerifier::new(trust)?),
        (None, Some(identity)) => {
            let agent = AgentTrust { fixed: trust.clone(), identity: Arc::clone(identity) };
            agent.verifier()?;
            Arc::new(agent)
        }
    };
    let config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(&e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => config.with_client_cert_resolver(identity),
        None => config.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The checks of signatures, for TLS 1.3 only.
macro_rules! verify_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            // Not reached: the configuration has TLS 1.3 only.
            Err(rustls::PeerIncompatible::Tls12NotOffered.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = crypto_provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            crypto_provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

pub(super) use verify_signatures;

/// Accepts masters: of installations by their identity, of other authorities by the name of the host.
#[derive(Debug)]
struct MasterVerifier {
    installations: Vec<(RootCertStore, Identity)>,
    by_host: Option<Arc<WebPkiServerVerifier>>,
}

/// The certificate is one of the installation, but not of a master.
#[derive(Debug, thiserror::Error)]
#[error("the server is {0} and not a master of this installation")]
struct NotMaster(String);

impl MasterVerifier {
    fn new(trust: &ServerTrust) -> Result<Self, IdentityError> {
        let failed = |e: &dyn std::fmt::Display| {
            IdentityError(format!("a certificate cannot be used as an authority: {e}"))
        };
        let mut installations = Vec::new();
        let mut others = RootCertStore::empty();
        for authority in &trust.authorities {
            match Identity::of_certificate(authority) {
                Some(Identity { installation, role: Role::Authority }) => {
                    let mut roots = RootCertStore::empty();
                    roots.add(authority.clone()).map_err(|e| failed(&e))?;
                    let master = Identity { installation, role: Role::Master };
                    installations.push((roots, master));
                }
                _ => others.add(authority.clone()).map_err(|e| failed(&e))?,
            }
        }
        let by_host = match others.is_empty() {
            true => None,
            false => {
                let builder = WebPkiServerVerifier::builder_with_provider(
                    Arc::new(others),
                    crypto_provider(),
                );
                Some(builder.build().map_err(|e| failed(&e))?)
            }
        };
        Ok(MasterVerifier { installations, by_host })
    }
}

impl ServerCertVerifier for MasterVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = crypto_provider().signature_verification_algorithms.all;
        let mut refusal = rustls::Error::from(CertificateError::UnknownIssuer);
        for (roots, master) in &self.installations {
            let chain = verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                algorithms,
            );
            match chain {
                Ok(()) => {
                    let found = Identity::of_certificate(end_entity);
                    if found.as_ref() == Some(master) {
                        return Ok(ServerCertVerified::assertion());
                    }
                    let found = found.map_or("without a name".to_owned(), |i| i.to_string());
                    let error = OtherError(Arc::new(NotMaster(found)));
                    refusal = CertificateError::Other(error).into();
                }
                // Another authority; its signature is wrong if both installations have one name.
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature,
                )) => {}
                Err(e) => refusal = e,
            }
        }
        match &self.by_host {
            None => Err(refusal),
            Some(by_host) => by_host.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
        }
    }

    verify_signatures!();
}

/// Accepts masters of the authorities that an agent has at the time of the handshake: a rotation replaces them.
#[derive(Debug)]
struct AgentTrust {
    fixed: ServerTrust,
    identity: Arc<AgentIdentity>,
}

impl AgentTrust {
    fn verifier(&self) -> Result<MasterVerifier, IdentityError> {
        let mut trust = self.fixed.clone();
        trust.extend(self.identity.trust());
        MasterVerifier::new(&trust)
    }
}

impl ServerCertVerifier for AgentTrust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = self.verifier().map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    verify_signatures!();
}

/// Accepts masters that present the authority with the hash. What they present is then checked as by [`MasterVerifier`].
#[derive(Debug)]
struct PinnedVerifier(PinnedAuthority);

/// No certificate of the server has the hash.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server does not present the authority of the join token, so the token was not sent: it is not this master, or \
     the token is one of another installation"
)]
struct NotPinned;

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let PinnedAuthority { hash, found } = &self.0;
        let is_pinned = |certificate: &&CertificateDer<'_>| {
            blake3::hash(certificate) == blake3::Hash::from_bytes(hash.0)
        };
        let authority = intermediates.iter().find(is_pinned).ok_or_else(|| {
            rustls::Error::from(CertificateError::Other(OtherError(Arc::new(NotPinned))))
        })?;
        let authority = authority.clone().into_owned();
        let trust = ServerTrust::of_authorities(vec![authority.clone()]);
        let verifier =
            MasterVerifier::new(&trust).map_err(|e| rustls::Error::General(e.to_string()))?;
        let accepted = verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let _ = found.set(authority);
        Ok(accepted)
    }

    verify_signatures!();
}

/// The cause of a failed TLS connection and the next step, for operators.
pub fn describe_tls_error(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the certificate of the server is of another authority: it is not this master, or ca_file (CTL_CA_FILE) is \
             not the present ca.pem of this installation: copy it from the master's data_dir; an agent has to join \
             again: ctl token create --join --worker ID --path DIR"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.to_string(),
        rustls::Error::InvalidCertificate(reason) => {
            format!("the certificate of the server is not valid: {reason}; compare the clocks of both hosts")
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "the master refused the certificate of this agent: it has expired".to_owned()
        }
        rustls::Error::AlertReceived(AlertDescription::UnknownCA) => {
            "the master refused the certificate of this agent: an authority issued it that the installation does not \
             use any more (ctl admin rotate ca), or one of another installation; create a token: ctl token create --join \
             --worker ID --path DIR, and start the agent with it: --join-token-file FILE"
                .to_owned()
        }
        rustls::Error::InvalidMessage(_) => {
            "the server does not speak TLS on this port; is its URL http:// ?".to_owned()
        }
        other => other.to_string(),
    }
}
