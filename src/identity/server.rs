//! TLS of the API of a master.

use super::authority::HostName;
use super::authority_set::{AuthoritySet, SharedAuthorities};
use super::client::verify_signatures;
use super::{IdentityError, crypto_provider};
use crate::util::private_files;
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
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

/// TLS of a server with a certificate. Clients may present one of the own CA. Each handshake uses the authorities of its
/// time. Blocks for a few file operations.
///
/// # Errors
/// The files of the operator's certificate cannot be used.
pub fn server_config(
    authorities: &Arc<SharedAuthorities>,
    certificate: ApiCertificate,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let failed = |e: &dyn std::fmt::Display| IdentityError(format!("cannot set up TLS: {e}"));
    let verifier = Arc::new(AgentVerifier(Arc::clone(authorities)));
    let resolver: Arc<dyn ResolvesServerCert> = match certificate {
        ApiCertificate::Own(hosts) => {
            let own = OwnCertificate::new(Arc::clone(authorities), hosts, UnixTime::now())?;
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

/// Accepts clients without a certificate, and agents of the installation.
#[derive(Debug)]
struct AgentVerifier(Arc<SharedAuthorities>);

impl ClientCertVerifier for AgentVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

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
        self.0.current().verify_agent(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    verify_signatures!();
}

/// A certificate of the own CA. It is issued again by the first handshake after two thirds of its lifetime, or after
/// another CA replaced this one.
#[derive(Debug)]
struct OwnCertificate {
    authorities: Arc<SharedAuthorities>,
    hosts: Vec<HostName>,
    current: Mutex<IssuedToMaster>,
}

#[derive(Debug)]
struct IssuedToMaster {
    key: Arc<CertifiedKey>,
    by: Arc<AuthoritySet>,
    renewal: UnixTime,
}

impl OwnCertificate {
    fn new(
        authorities: Arc<SharedAuthorities>,
        hosts: Vec<HostName>,
        now: UnixTime,
    ) -> Result<Self, IdentityError> {
        let current = Mutex::new(issue(authorities.current(), &hosts, now)?);
        Ok(OwnCertificate { authorities, hosts, current })
    }

    fn at(&self, now: UnixTime) -> Arc<CertifiedKey> {
        let mut current = self.current.lock();
        let by = self.authorities.current();
        if now >= current.renewal || !Arc::ptr_eq(&by, &current.by) {
            match issue(by, &self.hosts, now) {
                Ok(next) => *current = next,
                Err(error) => tracing::error!(%error, "the certificate of the API is not renewed"),
            }
        }
        Arc::clone(&current.key)
    }
}

fn issue(
    by: Arc<AuthoritySet>,
    hosts: &[HostName],
    now: UnixTime,
) -> Result<IssuedToMaster, IdentityError> {
    let (certificate, key) = by.issuer().issue_master(hosts, MASTER_CERTIFICATE_LIFETIME, now)?;
    let chain = [vec![certificate], by.master_chain()].concat();
    let key = CertifiedKey::from_der(chain, key, &crypto_provider())
        .map_err(|e| IdentityError(format!("cannot use the certificate of the API: {e}")))?;
    let renewal = MASTER_CERTIFICATE_LIFETIME.as_secs() / 3 * 2;
    let renewal = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + renewal));
    Ok(IssuedToMaster { key: Arc::new(key), by, renewal })
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
