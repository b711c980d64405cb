//! An authority that tests issue certificates of agents by.

use super::{AgentIdentity, CertificateAuthority, PublicKey};
use crate::wire::WorkerId;
use crate::wire::join::{IssuedCertificate, JoinToken};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;
use std::time::Duration;

/// An authority with its own directory, which also has the files of its agents.
pub(crate) struct TestAuthority {
    dir: tempfile::TempDir,
    pub(crate) authority: Arc<CertificateAuthority>,
}

impl TestAuthority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::load_or_create(dir.path(), Some("site")).unwrap();
        TestAuthority { dir, authority: Arc::new(authority) }
    }

    /// The identity of an agent that has joined.
    pub(crate) fn agent(&self, worker: &str) -> Arc<AgentIdentity> {
        self.agent_that_trusts(worker, None)
    }

    /// The same; it also trusts the agents of another authority.
    pub(crate) fn agent_that_trusts(
        &self,
        worker: &str,
        other: Option<&CertificateDer<'_>>,
    ) -> Arc<AgentIdentity> {
        let worker: WorkerId = worker.parse().unwrap();
        let token = format!("lhj1.{}.0123456789ab.{}", self.authority.hash(), "0".repeat(64));
        let token: JoinToken = token.parse().unwrap();
        let identity = AgentIdentity::for_join(self.dir.path(), &worker, &token).unwrap();
        self.issue(&identity, 0, other);
        Arc::new(identity)
    }

    /// Issues a certificate for 60 s that many seconds ago, and installs it.
    pub(crate) fn issue(
        &self,
        identity: &AgentIdentity,
        age_seconds: u64,
        other: Option<&CertificateDer<'_>>,
    ) {
        let key = PublicKey::of_signing_request(&identity.signing_request().unwrap()).unwrap();
        let now = UnixTime::now().as_secs() - age_seconds;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let lifetime = Duration::from_secs(60);
        let certificate =
            self.authority.issue_agent(identity.worker(), &key, lifetime, now).unwrap();
        let issued = IssuedCertificate {
            certificate,
            authority: self.authority.pem(),
            previous_authority: other.map(super::authority::to_pem),
            expires_at: jiff::Timestamp::UNIX_EPOCH,
            storage_paths: vec![],
        };
        identity.install(&issued, None).unwrap();
    }
}
