//! TLS of the API of a master.

use super::authority::{CertificateAuthority, HostName};
use super::{IdentityError, crypto_provider};
use crate::util::private_files;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The lifetime of the certificates that a master issues to itself, at two thirds of which it issues the next one.
const MASTER_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(86_400);

/// A certificate from an operator, for the API only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorCertificate {
    /// PEM: the certificate, and those between it and its authority.
    pub cert_file: PathBuf,
    /// PEM: its private key.
    pub key_file: PathBuf,
    /// PEM: the certificate of its authority, which clients trust.
    pub ca_file: PathBuf,
}

/// The certificate of a TLS server.
#[derive(Debug)]
pub enum ApiCertificate {
    /// Issued by the own CA for these hosts, and renewed.
    Own(Vec<HostName>),
    /// From an operator.
    Operator(OperatorCertificate),
}

/// TLS of a server with a certificate. Clients may present one of the own CA. Blocks for a few file operations.
///
/// # Errors
/// The files of the operator's certificate cannot be used.
pub fn server_config(
    authority: &Arc<CertificateAuthority>,
    certificate: ApiCertificate,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let failed = |e: &dyn std::fmt::Display| IdentityError(format!("cannot set up TLS: {e}"));
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).map_err(|e| failed(&e))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| failed(&e))?;
    let resolver: Arc<dyn ResolvesServerCert> = match certificate {
        ApiCertificate::Own(hosts) => {
            let own = OwnCertificate::new(Arc::clone(authority), hosts, UnixTime::now())?;
            Arc::new(own)
        }
        ApiCertificate::Operator(files) => Arc::new(FixedCertificate(files.load()?)),
    };
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(&e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    // A resumed session would not check the certificate of the client again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A certificate of the own CA. It is renewed by the first handshake after two thirds of its lifetime.
#[derive(Debug)]
struct OwnCertificate {
    authority: Arc<CertificateAuthority>,
    hosts: Vec<HostName>,
    current: Mutex<(Arc<CertifiedKey>, UnixTime)>,
}

impl OwnCertificate {
    fn new(
        authority: Arc<CertificateAuthority>,
        hosts: Vec<HostName>,
        now: UnixTime,
    ) -> Result<Self, IdentityError> {
        let current = Mutex::new(issue(&authority, &hosts, now)?);
        Ok(OwnCertificate { authority, hosts, current })
    }

    fn at(&self, now: UnixTime) -> Arc<CertifiedKey> {
        let mut current = self.current.lock();
        if now >= current.1 {
            match issue(&self.authority, &self.hosts, now) {
                Ok(next) => *current = next,
                Err(error) => tracing::error!(%error, "the certificate of the API is not renewed"),
            }
        }
        Arc::clone(&current.0)
    }
}

/// A certificate, and when it is to be renewed.
fn issue(
    authority: &CertificateAuthority,
    hosts: &[HostName],
    now: UnixTime,
) -> Result<(Arc<CertifiedKey>, UnixTime), IdentityError> {
    let (certificate, key) = authority.issue_master(hosts, MASTER_CERTIFICATE_LIFETIME, now)?;
    // Clients that have only the hash of the CA's certificate find it here.
    let chain = vec![certificate, authority.certificate().clone()];
    let key = CertifiedKey::from_der(chain, key, &crypto_provider())
        .map_err(|e| IdentityError(format!("cannot use the certificate of the API: {e}")))?;
    let renewal = MASTER_CERTIFICATE_LIFETIME.as_secs() / 3 * 2;
    let renewal = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + renewal));
    Ok((Arc::new(key), renewal))
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(UnixTime::now()))
    }
}

#[derive(Debug)]
struct FixedCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for FixedCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl OperatorCertificate {
    /// The BLAKE3 hash of the certificate of its authority. Blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn authority_hash(&self) -> Result<blake3::Hash, IdentityError> {
        let authority = CertificateDer::from_pem_file(&self.ca_file).map_err(|e| {
            let file = self.ca_file.display();
            IdentityError(format!("the authority of the certificate of the API, {file}: {e}"))
        })?;
        Ok(blake3::hash(&authority))
    }

    fn load(&self) -> Result<Arc<CertifiedKey>, IdentityError> {
        let failed = |file: &PathBuf, e: &dyn std::fmt::Display| {
            IdentityError(format!("the certificate of the API, {}: {e}", file.display()))
        };
        let chain = CertificateDer::pem_file_iter(&self.cert_file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| failed(&self.cert_file, &e))?;
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(failed(&self.cert_file, &"the file has no certificate in PEM"));
        };
        private_files::check_closed_to_others(&self.key_file)
            .map_err(|e| failed(&self.key_file, &e))?;
        let key =
            PrivateKeyDer::from_pem_file(&self.key_file).map_err(|e| failed(&self.key_file, &e))?;
        let mut roots = RootCertStore::empty();
        let authority =
            CertificateDer::from_pem_file(&self.ca_file).map_err(|e| failed(&self.ca_file, &e))?;
        roots.add(authority.clone()).map_err(|e| failed(&self.ca_file, &e))?;
        let algorithms = crypto_provider().signature_verification_algorithms.all;
        ParsedCertificate::try_from(leaf)
            .and_then(|leaf| {
                let now = UnixTime::now();
                verify_server_cert_signed_by_trust_anchor(
                    &leaf,
                    &roots,
                    intermediates,
                    now,
                    algorithms,
                )
            })
            .map_err(|e| {
                let why = format!("not valid under {}: {e}", self.ca_file.display());
                failed(&self.cert_file, &why)
            })?;
        let mut presented = chain.clone();
        if !presented.contains(&authority) {
            // Clients that have only the hash of the authority's certificate find it here.
            presented.push(authority);
        }
        let key = CertifiedKey::from_der(presented, key, &crypto_provider())
            .map_err(|e| failed(&self.key_file, &e))?;
        Ok(Arc::new(key))
    }
}
