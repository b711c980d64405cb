//! The public key of an agent, in its requests for certificates and in the certificates.

use super::IdentityError;
use crate::wire::Digest;
use rcgen::{
    CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use std::fmt;

/// A key on the curve P-256.
#[derive(Clone)]
pub struct PublicKey(SubjectPublicKeyInfo);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.digest())
    }
}

impl PublicKey {
    pub(super) fn from_der(info: &[u8]) -> Result<Self, IdentityError> {
        let failed = |e: &dyn fmt::Display| IdentityError(format!("the public key: {e}"));
        let key = SubjectPublicKeyInfo::from_der(info).map_err(|e| failed(&e))?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(failed(&"it is not one for ECDSA on the curve P-256"));
        }
        Ok(PublicKey(key))
    }

    /// The key of a certificate signing request in PEM, the signature of which shows that the sender has the private key.
    /// The names in the request are not used.
    ///
    /// # Errors
    /// The request cannot be read, its signature is wrong, or its key is of another kind.
    pub fn of_signing_request(pem: &str) -> Result<Self, IdentityError> {
        let request = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|e| IdentityError(format!("the certificate signing request: {e}")))?;
        Self::from_der(&request.public_key.subject_public_key_info())
    }

    /// The key of a certificate.
    ///
    /// # Errors
    /// The certificate cannot be read, or its key is of another kind.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|e| IdentityError(format!("the certificate cannot be read: {e}")))?;
        Self::from_der(parsed.public_key().raw)
    }

    /// BLAKE3 of the key as X.509 encodes it (`SubjectPublicKeyInfo`).
    pub fn digest(&self) -> Digest {
        blake3::hash(&self.0.subject_public_key_info()).into()
    }

    pub(super) fn data(&self) -> &impl PublicKeyData {
        &self.0
    }
}
