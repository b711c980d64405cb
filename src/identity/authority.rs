//! The certificate authority (CA) of an installation.
//!
//! Its key and certificate are two files of the `data_dir`. The store keeps a copy for the other masters of the
//! installation ([`SealedAuthority`](super::SealedAuthority)): a master with another authority is refused by all clients.

use super::{Identity, IdentityError, PublicKey, Role};
use crate::util::private_files;
use crate::wire::WorkerId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use x509_parser::time::ASN1Time;

/// The CA's certificate in the `data_dir`, for clients.
const CERTIFICATE_FILE: &str = "ca.pem";
/// The CA's key in the `data_dir`. Its owner can make an identity of any program of the installation.
const KEY_FILE: &str = "ca.key";
/// Larger files are not read.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// The CA is replaced by operators, so it lasts for longer than the hardware.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// Certificates are valid from this long before they are issued: clocks of hosts differ.
pub(super) const CLOCK_SKEW: Duration = Duration::from_secs(600);

/// A name by which clients reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostName {
    /// An address.
    Address(IpAddr),
    /// A host name.
    Dns(String),
}

/// A CA that issues certificates.
pub struct CertificateAuthority {
    installation: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// Replaces both files. A crash leaves no certificate beside the key of another one: the next start then has no authority
/// and takes that of the store.
fn write_files(data_dir: &Path, certificate: &[u8], key: &[u8]) -> Result<(), IdentityError> {
    let failed = |file: &Path, e: &io::Error| {
        let file = file.display();
        IdentityError(format!("the certificate authority of this installation, {file}: {e}"))
    };
    let former = data_dir.join(CERTIFICATE_FILE);
    private_files::remove_file(&former).map_err(|e| failed(&former, &e))?;
    for (name, bytes) in [(KEY_FILE, key), (CERTIFICATE_FILE, certificate)] {
        let file = data_dir.join(name);
        private_files::replace_file(&file, bytes).map_err(|e| failed(&file, &e))?;
    }
    Ok(())
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = self.hash().to_hex();
        write!(f, "CertificateAuthority({}, {hash})", self.installation)
    }
}

impl CertificateAuthority {
    /// The CA in `data_dir`; made where there is none, for an installation with this name. Blocks.
    ///
    /// # Errors
    /// The files cannot be read or written, are not private, or do not belong together.
    pub fn load_or_create(
        data_dir: &Path,
        installation: Option<&str>,
    ) -> Result<Self, IdentityError> {
        let (certificate, key) = (data_dir.join(CERTIFICATE_FILE), data_dir.join(KEY_FILE));
        let failed = |path: &Path, e: &dyn fmt::Display| {
            IdentityError(format!(
                "the certificate authority of this installation, {}: {e}",
                path.display()
            ))
        };
        match private_files::read_file(&certificate, MAX_FILE_BYTES) {
            Ok(pem) => {
                let key_pem = private_files::read_file(&key, MAX_FILE_BYTES);
                let key_pem = key_pem.map_err(|e| {
                    let advice = format!(
                        "{e}; restore it from a backup, or remove {} for a new authority: all agents must then join \
                         again",
                        certificate.display()
                    );
                    failed(&key, &advice)
                })?;
                Self::from_pem(&pem, &key_pem).map_err(|e| failed(&certificate, &e))
            }
            // A key without a certificate is what a crash during the first start leaves.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let installation = installation.map_or_else(random_name, str::to_owned);
                let (authority, key_pem) = Self::generate(&installation, UnixTime::now())?;
                write_files(data_dir, authority.pem().as_bytes(), key_pem.as_bytes())?;
                tracing::info!(
                    file = %certificate.display(), hash = %authority.hash().to_hex(),
                    "made the certificate authority of this installation"
                );
                Ok(authority)
            }
            Err(e) => Err(failed(&certificate, &e)),
        }
    }

    /// Whether `data_dir` has one. Blocks.
    pub fn exists_in(data_dir: &Path) -> bool {
        data_dir.join(CERTIFICATE_FILE).exists()
    }

    /// A new CA, and its key as PEM.
    pub(super) fn generate(
        installation: &str,
        now: UnixTime,
    ) -> Result<(Self, String), IdentityError> {
        let failed = |e| IdentityError(format!("cannot make a certificate authority: {e}"));
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let key_pem = key.serialize_pem();
        let identity = Identity { installation: installation.to_owned(), role: Role::Authority };
        let params = authority_params(&identity, 1, now)?;
        let certificate = params.self_signed(&key).map_err(failed)?.der().clone();
        let issuer = Issuer::new(params, key);
        Ok((Self { installation: identity.installation, certificate, issuer }, key_pem))
    }

    /// A certificate of the key of `successor`, by which those that trust this authority trust what that one issues.
    pub(super) fn sign_successor(
        &self,
        successor: &Self,
        now: UnixTime,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let identity = Identity { installation: self.installation.clone(), role: Role::Authority };
        let mut params = authority_params(&identity, 0, now)?;
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(successor.issuer.key(), &self.issuer);
        let failed = |e| IdentityError(format!("cannot sign the next authority: {e}"));
        Ok(signed.map_err(failed)?.der().clone())
    }

    /// Writes certificate and key to the files that [`load_or_create`](Self::load_or_create) reads. Blocks.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_files(&self, data_dir: &Path) -> Result<(), IdentityError> {
        write_files(data_dir, self.pem().as_bytes(), self.key_pem().as_bytes())
    }

    /// The private key in PEM.
    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The name of the installation.
    pub(super) fn installation(&self) -> &str {
        &self.installation
    }

    pub(super) fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, String> {
        let certificate = CertificateDer::from_pem_slice(certificate)
            .map_err(|e| format!("not a certificate in PEM: {e}"))?;
        let Some(Identity { installation, role: Role::Authority }) =
            Identity::of_certificate(&certificate)
        else {
            return Err("not the certificate of a Longhaul installation's authority".to_owned());
        };
        let not_a_key = |e: &dyn fmt::Display| format!("{KEY_FILE} is not a private key: {e}");
        let key = std::str::from_utf8(key).map_err(|e| not_a_key(&e))?;
        let key = KeyPair::from_pem(key).map_err(|e| not_a_key(&e))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|e| format!("cannot be read: {e}"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(format!(
                "{KEY_FILE} is the key of another certificate: copy both files from the same master"
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| format!("cannot issue certificates: {e}"))?;
        Ok(Self { installation, certificate, issuer })
    }

    /// The certificate of the CA, which clients trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The BLAKE3 hash of the certificate.
    pub fn hash(&self) -> blake3::Hash {
        blake3::hash(&self.certificate)
    }

    /// The certificate of the CA in PEM.
    pub fn pem(&self) -> String {
        to_pem(&self.certificate)
    }

    /// A certificate of a master with a new key, for TLS servers that are reached by `hosts`. It is valid for `lifetime`
    /// from `now`.
    ///
    /// # Errors
    /// A host name cannot be in a certificate.
    pub fn issue_master(
        &self,
        hosts: &[HostName],
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), IdentityError> {
        let failed = |e| IdentityError(format!("cannot issue a certificate: {e}"));
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = self.leaf_params(Role::Master, lifetime, now)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for host in hosts {
            params.subject_alt_names.push(match host {
                HostName::Address(address) => SanType::IpAddress(*address),
                HostName::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            });
        }
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?.der().clone();
        Ok((certificate, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }

    /// A certificate for the agent of `worker` with this key, in PEM. It is valid for `lifetime` from `now`.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn issue_agent(
        &self,
        worker: &WorkerId,
        key: &PublicKey,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<String, IdentityError> {
        let mut params = self.leaf_params(Role::Agent(worker.clone()), lifetime, now)?;
        // An agent is a client of masters, and client and server of other agents.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params
            .signed_by(key.data(), &self.issuer)
            .map_err(|e| IdentityError(format!("cannot issue a certificate: {e}")))?;
        Ok(to_pem(certificate.der()))
    }

    fn leaf_params(
        &self,
        role: Role,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<CertificateParams, IdentityError> {
        let identity = Identity { installation: self.installation.clone(), role };
        let mut params = new_params(&identity, lifetime, now)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// The parameters of every certificate.
fn new_params(
    identity: &Identity,
    lifetime: Duration,
    now: UnixTime,
) -> Result<CertificateParams, IdentityError> {
    let failed = |e: &dyn fmt::Display| IdentityError(format!("a certificate for {identity}: {e}"));
    let at = |seconds: u64| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        ASN1Time::from_timestamp(seconds).map(|time| time.to_datetime()).map_err(|e| failed(&e))
    };
    let mut params = CertificateParams::default();
    params.not_before = at(now.as_secs().saturating_sub(CLOCK_SKEW.as_secs()))?;
    params.not_after = at(now.as_secs().saturating_add(lifetime.as_secs()))?;
    // 16 random bytes; the first bit makes them a positive number.
    let mut serial = *uuid::Uuid::new_v4().as_bytes();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    // With the subject of its issuer a certificate would be a self-signed one to OpenSSL, and so to curl.
    let common_name = match identity.role {
        Role::Authority => format!("longhaul {}", identity.installation),
        Role::Master => "longhaul master".to_owned(),
        Role::Agent(_) => "longhaul agent".to_owned(),
    };
    params.distinguished_name.push(DnType::CommonName, common_name);
    let uri = identity.to_string().try_into().map_err(|e| failed(&e))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    Ok(params)
}

/// The parameters of the certificate of an authority with at most `below` other authorities between it and what is
/// issued: the next one, for which the authority vouches in a rotation.
fn authority_params(
    identity: &Identity,
    below: u8,
    now: UnixTime,
) -> Result<CertificateParams, IdentityError> {
    let mut params = new_params(identity, AUTHORITY_LIFETIME, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn random_name() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A certificate as PEM.
pub(super) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> =
        (0..text.len()).step_by(64).map(|start| &text[start..text.len().min(start + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
