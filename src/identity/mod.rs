//! Identities of the programs of an installation, by certificates of its own certificate authority (CA), and TLS 1.3
//! that checks them.
//!
//! - `name`: `longhaul://INSTALLATION/master` and its like, which a certificate carries as a URI
//! - `authority`: the CA: its files, and the certificates that it issues
//! - `sealed_authority`, `authority_set`: the CA in the store, and its replacement by another one while all goes on
//! - `agent`, `public_key`: the key and the certificate of an agent
//! - `server`, `client`: TLS of the API of a master, and of its clients; `trust`: the masters that those accept; `peer`: TLS between agents
//! - `sealing`: secrets are sealed before they go to a store
//!
//! A certificate of the own CA is checked by its URI, not by the name of a host. TLS has one crypto provider
//! (aws-lc-rs), one version (1.3) and no resumption: each handshake checks the certificates of both sides again.

mod agent;
mod authority;
mod authority_set;
mod client;
mod name;
mod peer;
mod public_key;
mod sealed_authority;
pub mod sealing;
mod server;
mod trust;

pub use agent::{AgentCertificate, AgentIdentity, CertificateTimes};
pub use authority::{CertificateAuthority, HostName};
pub use authority_set::{AuthoritySet, SharedAuthorities};
pub use client::{client_config, describe_tls_error};
pub use name::{Identity, Role};
pub use peer::{PeerConfigs, peer_worker};
pub use public_key::PublicKey;
pub use sealed_authority::{ReplacedAuthority, SealedAuthority};
pub use sealing::{Sealer, SealingError};
pub use server::{ApiCertificate, OperatorCertificate, server_config};
pub use trust::ServerTrust;

use rustls::crypto::CryptoProvider;
use std::sync::{Arc, OnceLock};

/// A reason for which identities or TLS cannot be used before an operator changes something. The message names what to
/// change.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IdentityError(pub String);

/// The crypto provider of all TLS connections.
fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
