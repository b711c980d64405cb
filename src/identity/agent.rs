//! The key of an agent and its current certificate.
//!
//! | file in the `data_dir` | contents |
//! |---|---|
//! | `joining-WORKER.json` | the key of a join that has no reply yet: a repeat must have the same key |
//! | `identity-WORKER.json` | the key, the certificate, and the authorities of the installation |
//!
//! The key lasts until the next join; the certificate is replaced several times a day.

use super::authority::{CLOCK_SKEW, to_pem};
use super::{Identity, IdentityError, PublicKey, Role, ServerTrust, crypto_provider};
use crate::util::private_files;
use crate::wire::join::{IssuedCertificate, JoinToken};
use crate::wire::token::TokenId;
use crate::wire::{Digest, WorkerId};
use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Larger files are not read.
const MAX_FILE_BYTES: u64 = 256 << 10;

/// The documents of both files.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredIdentity {
    /// The token of the join.
    token: TokenId,
    /// The private key, in PEM.
    key: String,
    /// The certificate, in PEM, and those that it is presented with. `None`: the join has no reply yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    /// The certificates of authorities of masters, in PEM; first the one that issued the certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    authorities: Vec<String>,
}

/// The validity of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateTimes {
    /// From when on the next one is requested: two thirds of the lifetime are over.
    pub renewal: UnixTime,
    /// From when on it is refused.
    pub expiry: UnixTime,
}

impl CertificateTimes {
    /// Those of a certificate that the CA of an installation issued.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|e| IdentityError(format!("the certificate cannot be read: {e}")))?;
        let validity = parsed.validity();
        let seconds = |time: x509_parser::time::ASN1Time| time.timestamp().max(0).unsigned_abs();
        let (begin, end) = (seconds(validity.not_before), seconds(validity.not_after));
        let lifetime = end.saturating_sub(begin.saturating_add(CLOCK_SKEW.as_secs()));
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        Ok(CertificateTimes { renewal: at(end.saturating_sub(lifetime / 3)), expiry: at(end) })
    }
}

/// A certificate of an agent with its key.
#[derive(Debug, Clone)]
pub struct AgentCertificate {
    /// For TLS, as a client and as a server.
    pub key: Arc<CertifiedKey>,
    /// Its validity.
    pub times: CertificateTimes,
}

/// The key and the certificate of an agent, kept in its `data_dir` and renewed. As a resolver of rustls it presents the
/// current certificate in each handshake.
pub struct AgentIdentity {
    worker: WorkerId,
    data_dir: PathBuf,
    stored: Mutex<StoredIdentity>,
    current: watch::Sender<Option<AgentCertificate>>,
    /// The master has another authority than those that are stored.
    renewal_request: Notify,
}

impl fmt::Debug for AgentIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentIdentity({})", self.worker)
    }
}

fn joined_file(data_dir: &Path, worker: &WorkerId) -> PathBuf {
    data_dir.join(format!("identity-{worker}.json"))
}

fn joining_file(data_dir: &Path, worker: &WorkerId) -> PathBuf {
    data_dir.join(format!("joining-{worker}.json"))
}

fn file_error(file: &Path, e: &dyn fmt::Display) -> IdentityError {
    IdentityError(format!("the identity of this agent, {}: {e}", file.display()))
}

impl AgentIdentity {
    /// The identity of an agent that has joined. `None`: it has not. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, is not private, or was not written by this program.
    pub fn load(data_dir: &Path, worker: &WorkerId) -> Result<Option<Self>, IdentityError> {
        Self::load_file(data_dir, worker, &joined_file(data_dir, worker))
    }

    /// The identity for a join with `token`: that of an earlier attempt, or one with a new key, which is stored. Blocks.
    ///
    /// # Errors
    /// The file cannot be read or written, or no key can be made.
    pub fn for_join(
        data_dir: &Path,
        worker: &WorkerId,
        token: &JoinToken,
    ) -> Result<Self, IdentityError> {
        let file = joining_file(data_dir, worker);
        if let Some(known) = Self::load_file(data_dir, worker, &file)?
            && known.token() == token.id
        {
            return Ok(known);
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|e| IdentityError(format!("cannot make a key: {e}")))?;
        let stored = StoredIdentity {
            token: token.id.clone(),
            key: key.serialize_pem(),
            certificate: None,
            authorities: Vec::new(),
        };
        write_file(&file, &stored)?;
        Self::new(data_dir, worker, stored).map_err(|e| file_error(&file, &e))
    }

    fn load_file(
        data_dir: &Path,
        worker: &WorkerId,
        file: &Path,
    ) -> Result<Option<Self>, IdentityError> {
        let bytes = match private_files::read_file(file, MAX_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(file_error(file, &e)),
        };
        let damaged = |e: &dyn fmt::Display| {
            let advice = format!("it is damaged ({e}); remove it, and join with a new token");
            file_error(file, &advice)
        };
        let stored = serde_json::from_slice(&bytes).map_err(|e| damaged(&e))?;
        Self::new(data_dir, worker, stored).map(Some).map_err(|e| damaged(&e))
    }

    fn new(
        data_dir: &Path,
        worker: &WorkerId,
        stored: StoredIdentity,
    ) -> Result<Self, IdentityError> {
        let certificate = stored.certificate.as_deref();
        let certificate = certificate.map(|pem| read_certificate(pem, &stored, worker));
        Ok(AgentIdentity {
            worker: worker.clone(),
            data_dir: data_dir.to_owned(),
            current: watch::Sender::new(certificate.transpose()?),
            stored: Mutex::new(stored),
            renewal_request: Notify::new(),
        })
    }

    /// The worker of the agent.
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// The token of the join.
    pub fn token(&self) -> TokenId {
        self.stored.lock().token.clone()
    }

    /// The current certificate, and each that replaces it. `None`: the join has no reply yet.
    pub fn certificates(&self) -> watch::Receiver<Option<AgentCertificate>> {
        self.current.subscribe()
    }

    /// The masters of the installation.
    pub fn trust(&self) -> ServerTrust {
        let authorities = self.stored.lock().authorities.clone();
        let read = authorities
            .iter()
            .filter_map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok());
        ServerTrust::of_authorities(read.collect())
    }

    /// The authorities that issue certificates of agents, each with the name of its installation.
    pub(super) fn installations(&self) -> Vec<(CertificateDer<'static>, String)> {
        let stored = self.stored.lock();
        let read = stored.authorities.iter().filter_map(|pem| {
            let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
            match Identity::of_certificate(&certificate)? {
                Identity { installation, role: Role::Authority } => {
                    Some((certificate, installation))
                }
                _ => None,
            }
        });
        read.collect()
    }

    /// Compares the authorities that the master accepts, the one that issues certificates first, with those of this agent.
    /// If they differ, the certificate is to be renewed now ([`wait_for_renewal_request`](Self::wait_for_renewal_request)).
    pub fn compare_authorities(&self, accepted: &[Digest]) {
        let own = self.installations();
        let own = own.iter().map(|(certificate, _)| Digest::from(blake3::hash(certificate)));
        if !accepted.is_empty() && !own.eq(accepted.iter().copied()) {
            self.renewal_request.notify_one();
        }
    }

    /// Resolves when the certificate is to be renewed before its time.
    pub async fn wait_for_renewal_request(&self) {
        self.renewal_request.notified().await;
    }

    /// A certificate signing request in PEM.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn signing_request(&self) -> Result<String, IdentityError> {
        let failed = |e| IdentityError(format!("cannot request a certificate: {e}"));
        let key = KeyPair::from_pem(&self.stored.lock().key).map_err(failed)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(failed)?;
        request.pem().map_err(failed)
    }

    /// Stores a certificate and presents it from now on. The authorities of the installation are those of the reply, and
    /// no others. `api_authority`: that of the master's TLS. Blocks.
    ///
    /// # Errors
    /// It is not one of this agent and its key, or the file cannot be written.
    pub fn install(
        &self,
        issued: &IssuedCertificate,
        api_authority: Option<&CertificateDer<'_>>,
    ) -> Result<CertificateTimes, IdentityError> {
        let mut stored = self.stored.lock();
        let certificate = read_certificate(&issued.certificate, &stored, &self.worker)?;
        let mut next = stored.clone();
        next.certificate = Some(issued.certificate.clone());
        let others = stored.authorities.iter().cloned().chain(api_authority.map(to_pem));
        let others = others.filter(|pem| !is_of_installation(pem));
        let accepted = [Some(&issued.authority), issued.previous_authority.as_ref()];
        next.authorities = accepted.into_iter().flatten().cloned().collect();
        for authority in others {
            if !next.authorities.contains(&authority) {
                next.authorities.push(authority);
            }
        }
        write_file(&joined_file(&self.data_dir, &self.worker), &next)?;
        let joining = joining_file(&self.data_dir, &self.worker);
        private_files::remove_file(&joining).map_err(|e| file_error(&joining, &e))?;
        *stored = next;
        let times = certificate.times;
        self.current.send_replace(Some(certificate));
        Ok(times)
    }
}

/// Whether it is the authority of an installation, and not one from an operator.
fn is_of_installation(pem: &str) -> bool {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok();
    let identity = certificate.and_then(|certificate| Identity::of_certificate(&certificate));
    identity.is_some_and(|identity| identity.role == Role::Authority)
}

fn write_file(file: &Path, stored: &StoredIdentity) -> Result<(), IdentityError> {
    let bytes = serde_json::to_vec(stored).map_err(|e| file_error(file, &e))?;
    private_files::replace_file(file, &bytes).map_err(|e| {
        let advice = format!("{e}; let the user of the agent write there, or set another data_dir");
        file_error(file, &advice)
    })
}

fn read_certificate(
    pem: &str,
    stored: &StoredIdentity,
    worker: &WorkerId,
) -> Result<AgentCertificate, IdentityError> {
    let failed = |e: &dyn fmt::Display| IdentityError(format!("the certificate of the agent: {e}"));
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| failed(&e))?;
    let Some(certificate) = chain.first() else {
        return Err(failed(&"it has no certificate in PEM"));
    };
    let found = Identity::of_certificate(certificate).map(|identity| identity.role);
    if found != Some(Role::Agent(worker.clone())) {
        return Err(failed(&format_args!("it is not one of worker `{worker}`")));
    }
    let own = KeyPair::from_pem(&stored.key).map_err(|e| failed(&e))?;
    let own = PublicKey::from_der(&own.subject_public_key_info())?;
    if PublicKey::of_certificate(certificate)?.digest() != own.digest() {
        return Err(failed(&"it is one of another key"));
    }
    let times = CertificateTimes::of_certificate(certificate)?;
    let private = PrivateKeyDer::from_pem_slice(stored.key.as_bytes()).map_err(|e| failed(&e))?;
    let key = CertifiedKey::from_der(chain, private, &crypto_provider()).map_err(|e| failed(&e))?;
    Ok(AgentCertificate { key: Arc::new(key), times })
}

impl ResolvesClientCert for AgentIdentity {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.current.borrow().as_ref().map(|certificate| Arc::clone(&certificate.key))
    }

    fn has_certs(&self) -> bool {
        self.current.borrow().is_some()
    }
}

impl ResolvesServerCert for AgentIdentity {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.borrow().as_ref().map(|certificate| Arc::clone(&certificate.key))
    }
}
