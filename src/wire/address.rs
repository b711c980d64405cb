//! Addresses as operators write them: `[WORKERS:]/absolute/path`.

use super::AbsPath;
use super::path::PathError;
use super::worker_selector::WorkerSelector;
use std::fmt;

/// A path, and the workers that see what is meant there. Without workers it is the only storage of that path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Empty: any worker that serves the path.
    pub workers: Vec<WorkerSelector>,
    /// The path that requests name.
    pub path: AbsPath,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing before the colon.
    #[error("names no worker before the colon")]
    NoWorkers,
    /// `scheme://…`, with the path of a `file://` URL.
    #[error("is a URL")]
    Url(Option<Vec<u8>>),
    /// `WORKERS:path`.
    #[error("must have an absolute path after the colon (start with `/`)")]
    RelativePath,
    /// A selector is wrong.
    #[error("{0}")]
    Selector(String),
    /// The path is wrong.
    #[error("{0}")]
    Path(#[from] PathError),
}

impl Address {
    /// Reads `[WORKERS:]/path`. The first `:/` ends the workers, so that a path may contain more of them.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse(text: &[u8]) -> Result<Address, AddressError> {
        let first = text.split(|byte| *byte == b'/').next().unwrap_or(text);
        let Some(workers) = first.strip_suffix(b":").filter(|rest| rest.len() + 1 < text.len())
        else {
            return match first.contains(&b':') {
                true => Err(AddressError::RelativePath),
                false => Ok(Address { workers: Vec::new(), path: AbsPath::new(text)? }),
            };
        };
        let path = &text[first.len()..];
        if path.starts_with(b"//") {
            let is_file = workers == b"file" && path.starts_with(b"///");
            return Err(AddressError::Url(is_file.then(|| path[2..].to_vec())));
        }
        if workers.is_empty() {
            return Err(AddressError::NoWorkers);
        }
        let selectors = WorkerSelector::parse_list(&String::from_utf8_lossy(workers));
        let workers = selectors.map_err(AddressError::Selector)?;
        Ok(Address { workers, path: AbsPath::new(path)? })
    }

    /// The text that [`parse`](Self::parse) reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        [format_workers(&self.workers).as_bytes(), self.path.as_bytes()].concat()
    }
}

/// `WORKERS:`, or nothing where no worker is named.
fn format_workers(workers: &[WorkerSelector]) -> String {
    if workers.is_empty() {
        return String::new();
    }
    workers.iter().map(WorkerSelector::to_string).collect::<Vec<_>>().join(",") + ":"
}

/// The text with the path as messages display it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", format_workers(&self.workers), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_colon_before_a_slash_ends_the_workers() {
        for (text, workers, path) in [
            ("/a/b", &[][..], "/a/b"),
            ("/a:/b", &[], "/a:/b"),
            ("gpu-1:/a", &["gpu-1"], "/a"),
            ("gpu-1,gpu-2:/a//b/", &["gpu-1", "gpu-2"], "/a/b"),
            ("gpu-*,@rack=3:/a:/b", &["gpu-*", "@rack=3"], "/a:/b"),
            ("rack:1:/a", &["rack:1"], "/a"),
            ("user@host:/a", &["user@host"], "/a"),
        ] {
            let address = Address::parse(text.as_bytes()).unwrap();
            let found: Vec<String> = address.workers.iter().map(ToString::to_string).collect();
            assert_eq!(
                (found, address.path.as_bytes()),
                (workers.iter().map(|one| (*one).to_owned()).collect(), path.as_bytes())
            );
            assert_eq!(Address::parse(&address.to_bytes()), Ok(address), "{text}");
        }
    }

    #[test]
    fn a_path_that_is_not_utf8_is_kept() {
        let address = Address::parse(b"gpu-1:/\xff\n").unwrap();
        assert_eq!(address.path.as_bytes(), b"/\xff\n");
        assert_eq!(address.to_bytes(), b"gpu-1:/\xff\n");
        assert_eq!(address.to_string(), format!("gpu-1:{}", address.path));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, reason) in [
            (&b""[..], "must not be empty"),
            (b"a/b", "must be absolute"),
            (b"a/b:/c", "must be absolute"),
            (b"./gpu-1:/a", "must be absolute"),
            (b"/a/../b", "must not contain `..`"),
            (b"gpu-1:/a/../b", "must not contain `..`"),
            (b":/a", "names no worker before the colon"),
            (b"gpu-1:", "absolute path after the colon"),
            (b"gpu-1:a/b", "absolute path after the colon"),
            (b"gpu-1::module/a", "absolute path after the colon"),
            (b"@rack:/a", "`@rack` has no value"),
            (b"gpu-1,:/a", "`` is no worker id"),
            (b"gpu 1:/a", "`gpu 1` is no worker id"),
            (b"\xff:/a", "is no worker id"),
            (b"s3://bucket/a", "is a URL"),
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{}: {error}", String::from_utf8_lossy(text));
        }
        let local = Address::parse(b"file:///a").unwrap_err();
        assert_eq!(local, AddressError::Url(Some(b"/a".to_vec())));
    }
}
