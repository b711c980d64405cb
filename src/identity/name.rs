//! The names in certificates: `longhaul://INSTALLATION/ROLE`, a URI in the subject alternative names.

use crate::wire::WorkerId;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;
use x509_parser::extensions::GeneralName;

const SCHEME: &str = "longhaul://";
const MAX_INSTALLATION_BYTES: usize = 64;

/// The name of a program of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name of the installation: 1 to 64 characters out of `A-Z a-z 0-9 . _ -`.
    pub installation: String,
    /// What the program is there.
    pub role: Role,
}

/// What a program is in its installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The certificate authority itself.
    Authority,
    /// A master.
    Master,
    /// The agent of this worker.
    Agent(WorkerId),
}

impl Identity {
    /// The only `longhaul://` name of a certificate. `None`: it has none, several, or one that is not valid.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Identity> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = &parsed.subject_alternative_name().ok()??.value.general_names;
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse().ok(),
            _ => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.installation)?;
        match &self.role {
            Role::Authority => f.write_str("ca"),
            Role::Master => f.write_str("master"),
            Role::Agent(worker) => write!(f, "agent/{worker}"),
        }
    }
}

/// The text is not the name of a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not of the form longhaul://INSTALLATION/master or longhaul://INSTALLATION/agent/WORKER_ID"
)]
pub struct InvalidIdentity;

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let rest = text.strip_prefix(SCHEME).ok_or(InvalidIdentity)?;
        let (installation, role) = rest.split_once('/').ok_or(InvalidIdentity)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let length = 1..=MAX_INSTALLATION_BYTES;
        if !length.contains(&installation.len()) || !installation.bytes().all(allowed) {
            return Err(InvalidIdentity);
        }
        let role = match role.split_once('/') {
            None if role == "ca" => Role::Authority,
            None if role == "master" => Role::Master,
            Some(("agent", worker)) => Role::Agent(worker.parse().map_err(|_| InvalidIdentity)?),
            _ => return Err(InvalidIdentity),
        };
        Ok(Identity { installation: installation.to_owned(), role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_as_it_was_written_and_others_are_refused() {
        for text in
            ["longhaul://a/ca", "longhaul://site-1.lan/master", "longhaul://a/agent/worker@host:1"]
        {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "longhaul://",
            "longhaul://a",
            "longhaul:///master",
            "longhaul://a/",
            "longhaul://a/masters",
            "longhaul://a/master/",
            "longhaul://a/agent",
            "longhaul://a/agent/",
            "longhaul://a/agent/b/c",
            "longhaul://a/agent/.b",
            "longhaul://a b/master",
            "longhaul://a@b/master",
            "https://a/master",
            "longhaul://a/agent/result",
        ] {
            assert_eq!(text.parse::<Identity>(), Err(InvalidIdentity), "{text}");
        }
    }
}
