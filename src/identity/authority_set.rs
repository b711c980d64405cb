//! The authority of a master, and the one that it replaced. Both sides of a rotation recognise the certificates of both:
//! a side that trusts only the former authority gets, with each certificate of the other one, one of that authority which
//! the former one has signed.

use super::authority::to_pem;
use super::peer::verify_agent;
use super::{CertificateAuthority, IdentityError, SealedAuthority};
use crate::wire::Digest;
use parking_lot::RwLock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::fmt;
use std::sync::Arc;

/// The authority that issues certificates, and the one before it.
pub struct AuthoritySet {
    issuer: Arc<CertificateAuthority>,
    previous: Option<Previous>,
}

struct Previous {
    certificate: CertificateDer<'static>,
    /// That of the issuer, signed by this authority.
    successor: CertificateDer<'static>,
    /// Whether its certificates of agents are accepted.
    is_accepted: bool,
}

impl fmt::Debug for AuthoritySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let previous = self.previous.as_ref().map(|previous| previous.is_accepted);
        write!(f, "AuthoritySet({:?}, previous accepted: {previous:?})", self.issuer)
    }
}

impl AuthoritySet {
    /// Only this authority.
    pub fn of_issuer(issuer: Arc<CertificateAuthority>) -> Self {
        AuthoritySet { issuer, previous: None }
    }

    /// `issuer`, which is that of `stored`, with the one that it replaced.
    ///
    /// # Errors
    /// A certificate in the record is damaged.
    pub fn new(
        issuer: Arc<CertificateAuthority>,
        stored: &SealedAuthority,
    ) -> Result<Self, IdentityError> {
        let read = |pem: &str| {
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| {
                IdentityError(format!("the former certificate authority in the store: {e}"))
            })
        };
        let previous = stored.previous.as_ref().map(|previous| {
            Ok::<_, IdentityError>(Previous {
                certificate: read(&previous.certificate)?,
                successor: read(&previous.successor)?,
                is_accepted: previous.finished_at.is_none(),
            })
        });
        Ok(AuthoritySet { issuer, previous: previous.transpose()? })
    }

    /// The authority that issues certificates.
    pub fn issuer(&self) -> &Arc<CertificateAuthority> {
        &self.issuer
    }

    /// The other one of which certificates are accepted, in PEM.
    pub fn accepted_previous(&self) -> Option<String> {
        let previous = self.previous.as_ref().filter(|previous| previous.is_accepted);
        previous.map(|previous| to_pem(&previous.certificate))
    }

    /// What a master presents after its own certificate: for clients that trust the former authority only, and for those
    /// that have only the hash of the certificate of one of them.
    pub(super) fn master_chain(&self) -> Vec<CertificateDer<'static>> {
        let own = self.issuer.certificate().clone();
        match &self.previous {
            None => vec![own],
            Some(Previous { certificate, successor, .. }) => {
                vec![successor.clone(), own, certificate.clone()]
            }
        }
    }

    /// What an agent presents after its own certificate, in PEM: other agents may trust the former authority only.
    pub fn agent_chain(&self) -> String {
        let previous = self.previous.as_ref().filter(|previous| previous.is_accepted);
        previous.map(|previous| to_pem(&previous.successor)).unwrap_or_default()
    }

    /// Checks the certificate of an agent, which it presented with `intermediates`. Returns the hash of the authority
    /// that issued it.
    ///
    /// # Errors
    /// It is not one of an agent of this installation, or not valid at `now`.
    pub(super) fn verify_agent(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Digest, rustls::Error> {
        let installation = self.issuer.installation();
        let previous = self.previous.as_ref().filter(|previous| previous.is_accepted);
        let accepted = [self.issuer.certificate()].into_iter();
        let accepted = accepted.chain(previous.map(|previous| &previous.certificate));
        let accepted = accepted.map(|one| (one.clone(), installation.to_owned()));
        verify_agent(accepted, certificate, intermediates, now)
    }

    /// The hash of the authority that issued the certificate of an agent, which comes first in what it presented. `None`:
    /// it is no longer accepted.
    pub fn find_issuer(&self, presented: &[CertificateDer<'_>]) -> Option<Digest> {
        let (certificate, intermediates) = presented.split_first()?;
        self.verify_agent(certificate, intermediates, UnixTime::now()).ok()
    }

    /// Whether certificates of the authority with this hash are accepted.
    pub fn accepts(&self, hash: Digest) -> bool {
        let previous = self.previous.as_ref().filter(|previous| previous.is_accepted);
        let is_it = |one: &CertificateDer<'_>| Digest::from(blake3::hash(one)) == hash;
        is_it(self.issuer.certificate()) || previous.is_some_and(|one| is_it(&one.certificate))
    }
}

/// The authorities of a running master: each handshake uses those of its time.
#[derive(Debug)]
pub struct SharedAuthorities(RwLock<Arc<AuthoritySet>>);

impl SharedAuthorities {
    /// With `first` until they are replaced.
    pub fn new(first: AuthoritySet) -> Arc<Self> {
        Arc::new(SharedAuthorities(RwLock::new(Arc::new(first))))
    }

    /// Those of now.
    pub fn current(&self) -> Arc<AuthoritySet> {
        Arc::clone(&self.0.read())
    }

    /// Replaces them from the next handshake on.
    pub fn replace(&self, next: AuthoritySet) {
        *self.0.write() = Arc::new(next);
    }
}
