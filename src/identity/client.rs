//! TLS of clients of a master.

use super::{Identity, IdentityError, Role, crypto_provider};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use std::path::Path;
use std::sync::Arc;

/// The certificates by which a client recognises its master.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerTrust {
    /// Certificates of authorities. That of a Longhaul installation stands for its masters, another one for the hosts
    /// that it issues certificates for. Empty: no server is trusted.
    authorities: Vec<CertificateDer<'static>>,
}

impl ServerTrust {
    /// The certificates of a file in PEM. Blocks.
    ///
    /// # Errors
    /// The file cannot be read or has no certificate.
    pub fn from_file(file: &Path) -> Result<Self, IdentityError> {
        let failed = |e: &dyn std::fmt::Display| {
            IdentityError(format!(
                "the certificate of the master's authority, {}: {e}; copy ca.pem of the master's data_dir there",
                file.display()
            ))
        };
        let authorities = CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| failed(&e))?;
        if authorities.is_empty() {
            return Err(failed(&"it has no certificate in PEM"));
        }
        Ok(ServerTrust { authorities })
    }

    /// Whether no server is trusted.
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }
}

/// TLS for a client that trusts such servers.
///
/// # Errors
/// A certificate cannot be used as an authority.
pub fn client_config(trust: &ServerTrust) -> Result<ClientConfig, IdentityError> {
    let failed = |e: &dyn std::fmt::Display| IdentityError(format!("cannot set up TLS: {e}"));
    let verifier = MasterVerifier::new(trust)?;
    let mut config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(&e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

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
}

/// The cause of a failed TLS connection and the next step, for operators.
pub fn describe_tls_error(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the certificate of the server is of another authority: it is not this master, or ca_file (CTL_CA_FILE) is \
             not the ca.pem of this installation"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.to_string(),
        rustls::Error::InvalidCertificate(reason) => {
            format!("the certificate of the server is not valid: {reason}; compare the clocks of both hosts")
        }
        rustls::Error::InvalidMessage(_) => {
            "the server does not speak TLS on this port; is its URL http:// ?".to_owned()
        }
        other => other.to_string(),
    }
}
