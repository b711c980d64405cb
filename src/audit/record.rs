//! A line of the audit log.

use crate::wire::Digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The digest that the first line of an installation has in place of that of a line before it.
pub(super) const NO_LINE: Digest = Digest([0; 32]);

/// The actions of lines that the log itself writes. Requests have those of the API, such as `sync.submit`.
pub struct AuditAction;

impl AuditAction {
    /// The log was opened by a master that started.
    pub const STARTED: &str = "audit.started";
    /// The first line of a file after the one before it was full, or was moved away.
    pub const CONTINUED: &str = "audit.continued";
    /// The end of the file was not a line: it was removed, and is described in the line.
    pub const REPAIRED: &str = "audit.repaired";
    /// The file is not the one that was written: it was cut, replaced or changed.
    pub const DAMAGED: &str = "audit.damaged";
    /// Denials that could not be written one by one.
    pub const UNWRITTEN: &str = "audit.unwritten";
}

/// What a line says. Absent fields do not apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// What was requested, e.g. `sync.submit`; `request` for a denied request that would have changed nothing.
    pub action: String,
    /// From where it came: `uid:UID`, a user of this host over loopback; `token:ID`; `worker:ID`, an agent with a certificate;
    /// `nobody`, from an address at which no credentials are asked for. Absent for a request that was denied before that was found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// The IP address of the connection: that of a proxy, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The client that a proxy names. Anybody can send this header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarded_for: Option<String>,
    /// The HTTP method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The route of the API, e.g. `/sync/{id}/cancel`; absent for a request that matches none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The `X-Request-Id` of the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<String>,
    /// The sync that a retry created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_sync: Option<String>,
    /// The source path of a new sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The destination path of a new sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// The worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The token of an operator or for a join that was created, used or revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The HTTP status of the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The problem code of a reply that refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The line stands for so many equal denials after the one that has a line of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeats: Option<u64>,
    /// The name of the installation, in the first line of each file and at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<String>,
    /// The host of the master, in the same lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The version of the program, in the same lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// An explanation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl AuditEntry {
    /// An entry of the log itself.
    pub(super) fn of_log(action: &str) -> Self {
        AuditEntry { action: action.to_owned(), ..AuditEntry::default() }
    }

    /// The maximum length of the line, in bytes, whatever its number and time are.
    pub fn max_line_bytes(&self) -> u64 {
        const NUMBER_TIME_AND_DIGEST: u64 = 256;
        let entry = serde_json::to_vec(self).map_or(0, |text| text.len() as u64);
        entry + NUMBER_TIME_AND_DIGEST
    }
}

/// A line: an entry with its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The number of the line, from 1, without gaps over all files.
    pub seq: u64,
    /// When it was written, by the clock of the master.
    pub time: Timestamp,
    /// The BLAKE3 digest of the line before it, without its line end; zeros in the first line.
    pub prev: Digest,
    /// What it says.
    #[serde(flatten)]
    pub entry: AuditEntry,
}

/// The end of the chain: the number and the digest of its last line. Written as `SEQ:DIGEST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number of the line; 0: there is none.
    pub seq: u64,
    /// Its BLAKE3 digest, without the line end.
    pub digest: Digest,
}

impl Head {
    /// Before the first line.
    pub(super) const START: Head = Head { seq: 0, digest: NO_LINE };

    /// Appends the line that follows with its line end, and is then its head.
    pub(super) fn append(&mut self, entry: &AuditEntry, time: Timestamp, text: &mut Vec<u8>) {
        let record =
            AuditRecord { seq: self.seq + 1, time, prev: self.digest, entry: entry.clone() };
        let start = text.len();
        // Strings and numbers: it cannot fail.
        text.extend(serde_json::to_vec(&record).unwrap_or_default());
        *self = Head { seq: record.seq, digest: line_digest(&text[start..]) };
        text.push(b'\n');
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, self.digest)
    }
}

impl std::str::FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':');
        let head = parts.and_then(|(seq, digest)| {
            Some(Head { seq: seq.parse().ok()?, digest: digest.parse().ok()? })
        });
        head.ok_or_else(|| "must be SEQ:DIGEST, as `ctl audit verify` prints it".to_owned())
    }
}

/// The digest of a line without its line end.
pub(super) fn line_digest(line: &[u8]) -> Digest {
    Digest(*blake3::hash(line).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_no_byte_that_ends_it_or_controls_a_terminal() {
        let entry = AuditEntry {
            action: "sync.submit".into(),
            source: Some("/a\n{\"seq\":1}\u{1b}[31m\r\"".into()),
            ..AuditEntry::default()
        };
        let (mut head, mut text) = (Head::START, Vec::new());
        head.append(&entry, Timestamp::UNIX_EPOCH, &mut text);
        let line = text.strip_suffix(b"\n").unwrap();
        assert!(line.iter().all(|b| !b.is_ascii_control()), "{}", line.escape_ascii());
        let record: AuditRecord = serde_json::from_slice(line).unwrap();
        assert_eq!((record.seq, record.prev, record.entry), (1, NO_LINE, entry.clone()));
        assert_eq!(head, Head { seq: 1, digest: line_digest(line) });
        assert_eq!(head.to_string().parse(), Ok(head));
        for wrong in ["", "1", "1:", "x:00", ":", "1:zz"] {
            assert!(wrong.parse::<Head>().is_err(), "{wrong}");
        }
        let largest = AuditRecord { seq: u64::MAX, time: Timestamp::MAX, prev: NO_LINE, entry };
        let length = serde_json::to_vec(&largest).unwrap().len() as u64 + 1;
        assert!(length <= largest.entry.max_line_bytes());
    }
}
