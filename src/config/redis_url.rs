//! The URL of a Redis, with a password that is not printed.

use crate::wire::path::quote;
use crate::wire::worker::is_malformed_ipv4;
use std::borrow::Cow;
use std::fmt;
use url::Url;

/// The URL of a `redis:` block without keys.
const DEFAULT_REDIS_URL: &str = "redis://localhost:6379/0";

/// A checked Redis URL. `Debug` and `Display` print `***` for the password; only
/// [`RedisUrl::expose`] returns the complete text.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(Url);

/// The credentials of a URL that is made of parts.
#[derive(Clone, Default)]
pub(super) struct RedisLogin<'a> {
    pub(super) username: Option<&'a str>,
    pub(super) password: Option<Cow<'a, str>>,
    pub(super) tls: bool,
}

impl RedisUrl {
    /// The URL with its password, for the connection. Never print it.
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }

    /// The URL of the parts of a `redis:` block. An invalid host is an error.
    pub(super) fn from_parts(
        host: &str,
        port: u16,
        db: u32,
        login: &RedisLogin<'_>,
    ) -> Result<Self, String> {
        let invalid = || format!("{} is not a host name", quote(host));
        let mut url = Url::parse(DEFAULT_REDIS_URL).map_err(|e| e.to_string())?;
        let bracketed = match host.parse::<std::net::Ipv6Addr>() {
            Ok(_) => format!("[{host}]"),
            Err(_) => host.to_owned(),
        };
        if is_malformed_ipv4(host) {
            return Err(not_an_address(host));
        }
        if host.contains(['/', '@', ' ', '?', '#']) || (host.contains(':') && bracketed == host) {
            return Err(invalid());
        }
        url.set_host(Some(&bracketed)).map_err(|_| invalid())?;
        url.set_port(Some(port)).map_err(|()| invalid())?;
        url.set_path(&format!("/{db}"));
        url.set_username(login.username.unwrap_or_default()).map_err(|()| invalid())?;
        url.set_password(login.password.as_deref()).map_err(|()| invalid())?;
        if login.tls { RedisUrl(url).with_tls() } else { Ok(RedisUrl(url)) }
    }

    /// The URL with TLS. A socket is an error.
    pub(super) fn with_tls(mut self) -> Result<Self, String> {
        self.0.set_scheme("rediss").map_err(|()| "TLS is for hosts, not for sockets".to_owned())?;
        Ok(self)
    }

    /// The URL with a password from a file.
    pub(super) fn with_password(mut self, password: &str) -> Result<Self, String> {
        if self.has_password() {
            return Err("has a password — give it in `password_file` only".to_owned());
        }
        if self.0.has_host() {
            let refused = |()| "takes no password".to_owned();
            self.0.set_password(Some(password)).map_err(refused)?;
        } else {
            self.0.query_pairs_mut().append_pair("pass", password);
        }
        Ok(self)
    }

    pub(super) fn is_tls(&self) -> bool {
        self.0.scheme() == "rediss"
    }

    pub(super) fn has_password(&self) -> bool {
        self.0.password().is_some() || self.0.query_pairs().any(|(key, _)| key == "pass")
    }
}

impl std::str::FromStr for RedisUrl {
    type Err = String;

    /// The error message never repeats the text: it may contain a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let url = Url::parse(text.trim()).map_err(|cause| {
            format!("is not a URL ({cause}) — write `redis://HOST:PORT/DB` or `unix:///PATH`")
        })?;
        if url.fragment().is_some() {
            // The fragment may be a part of a password.
            return Err("has a `#`: write `%23` for one in a password".into());
        }
        match url.scheme() {
            "redis" | "rediss" => check_tcp(&url)?,
            "unix" | "redis+unix" => {
                if url.has_host() || url.path().len() < 2 {
                    return Err("names no socket — write `unix:///PATH`".into());
                }
            }
            other => {
                return Err(format!(
                    "`{other}://` is not a scheme for Redis — write `redis://HOST:PORT/DB` or `unix:///PATH`"
                ));
            }
        }
        Ok(RedisUrl(url))
    }
}

fn not_an_address(host: &str) -> String {
    format!("{} is not an IPv4 address", quote(host))
}

fn check_tcp(url: &Url) -> Result<(), String> {
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host — write `redis://HOST:PORT/DB`".into());
    }
    if let Some(host) = url.host_str().filter(|host| is_malformed_ipv4(host)) {
        return Err(not_an_address(host));
    }
    let db = url.path().trim_start_matches('/');
    if !db.is_empty() && db.parse::<u32>().is_err() {
        // The path may be a part of a password with a slash.
        return Err("the database is not a number — write `redis://HOST:PORT/DB`, and `%2F` for a `/` in a password".into());
    }
    Ok(())
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        if shown.password().is_some() && shown.set_password(Some("***")).is_err() {
            return f.write_str("redis://***");
        }
        if shown.query().is_some() {
            let pairs: Vec<(String, String)> = shown.query_pairs().into_owned().collect();
            shown.query_pairs_mut().clear().extend_pairs(pairs.into_iter().map(|(key, value)| {
                let value = if key == "pass" { "***".to_owned() } else { value };
                (key, value)
            }));
        }
        f.write_str(shown.as_str())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_in_debug_and_display() {
        for (text, shown) in [
            ("redis://:hunter2@db:6380/3", "redis://:***@db:6380/3"),
            ("redis://me:hunter2@[::1]/0", "redis://me:***@[::1]/0"),
            (
                "redis+unix:///run/r.sock?db=1&pass=hunter2",
                "redis+unix:///run/r.sock?db=1&pass=***",
            ),
        ] {
            let url: RedisUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("hunter2"));
            assert_eq!(url.expose(), text);
            assert!(url.has_password());
        }
        assert!(!DEFAULT_REDIS_URL.parse::<RedisUrl>().unwrap().has_password());
    }

    #[test]
    fn a_rejected_url_does_not_leak_its_password() {
        for bad in [
            "http://:hunter2@h",
            "redis://:hunter2@h/x",
            "redis://me:1/hunter2@h/0",
            "hunter2",
            "redis://",
            "unix://x/y",
            // The password is in the fragment, which is not a part of the address.
            "redis://user:x@a#redis://user:hunter2@db:6379/2",
        ] {
            let message = bad.parse::<RedisUrl>().unwrap_err();
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn parts_make_a_url() {
        let url = |host, username, password| {
            RedisUrl::from_parts(host, 6379, 2, &RedisLogin { username, password, tls: false })
        };
        assert_eq!(url("localhost", None, None).unwrap().expose(), "redis://localhost:6379/2");
        assert_eq!(url("fe80::1", None, None).unwrap().expose(), "redis://[fe80::1]:6379/2");
        let with = url("db", Some("me"), Some("p@ss/word".into())).unwrap();
        assert_eq!(with.expose(), "redis://me:p%40ss%2Fword@db:6379/2");
        for bad in ["a b", "h:1", "u@h", "h/0", "", "300.1.1.1", "1.2.3"] {
            assert!(url(bad, None, None).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_url_or_rejected_without_its_password(
            edits in crate::wire::fuzz::any_edits(),
            text: String,
        ) {
            let _ = text.parse::<RedisUrl>();
            let right = b"redis://user:hunter2@db.example:6379/2";
            let other = crate::wire::fuzz::apply_edits(right, &edits);
            let other = String::from_utf8_lossy(&other);
            // At another position it is not a password.
            proptest::prop_assume!(other.matches("hunter2").count() == 1 && other.contains(":hunter2@"));
            match other.parse::<RedisUrl>() {
                Err(reason) => proptest::prop_assert!(!reason.contains("hunter2"), "{}", reason),
                Ok(url) if url.0.password().is_some() => {
                    proptest::prop_assert!(!url.to_string().contains("hunter2"), "{}", url);
                }
                Ok(_) => {}
            }
        }
    }
}
