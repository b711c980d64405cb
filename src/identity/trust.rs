//! Which masters a client accepts.

use super::IdentityError;
use crate::wire::Digest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The certificates by which a client recognises its master.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerTrust {
    /// Certificates of authorities. That of a Longhaul installation stands for its masters, another one for the hosts
    /// that it issues certificates for. Empty: no server is trusted.
    pub(super) authorities: Vec<CertificateDer<'static>>,
    /// Instead of them: an authority that is found in the first handshake.
    pub(super) pinned: Option<PinnedAuthority>,
}

/// An authority of which only the hash is known.
#[derive(Debug, Clone)]
pub(super) struct PinnedAuthority {
    pub(super) hash: Digest,
    pub(super) found: Arc<OnceLock<CertificateDer<'static>>>,
}

impl PartialEq for PinnedAuthority {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for PinnedAuthority {}

impl ServerTrust {
    /// Masters with certificates of these authorities.
    pub fn of_authorities(authorities: Vec<CertificateDer<'static>>) -> Self {
        ServerTrust { authorities, pinned: None }
    }

    /// Masters that present an authority with this BLAKE3 hash, and a certificate of it.
    pub fn of_hash(hash: Digest) -> Self {
        let pinned = PinnedAuthority { hash, found: Arc::default() };
        ServerTrust { authorities: Vec::new(), pinned: Some(pinned) }
    }

    /// The authority with the hash, after a handshake.
    pub fn found_authority(&self) -> Option<&CertificateDer<'static>> {
        self.pinned.as_ref()?.found.get()
    }

    /// Adds the servers of `other`.
    pub fn extend(&mut self, other: ServerTrust) {
        for authority in other.authorities {
            if !self.authorities.contains(&authority) {
                self.authorities.push(authority);
            }
        }
    }

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
        Ok(ServerTrust::of_authorities(authorities))
    }

    /// Whether no server is trusted.
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty() && self.pinned.is_none()
    }
}
