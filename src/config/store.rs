//! The store of a master: Redis or one file.

use super::RedisUrl;
use super::reader::{Fields, Item};
use super::redis_url::RedisLogin;
use crate::util::private_files;
use crate::wire::path::quote;
use std::borrow::Cow;
use std::path::PathBuf;

const DEFAULT_NAMESPACE: &str = "default";
/// A longer file holds no password.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// The store of the state of a master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// A Redis.
    Redis {
        /// The server.
        url: RedisUrl,
        /// Further settings.
        options: RedisOptions,
        /// Part of every key; distinguishes several installations in one Redis.
        namespace: String,
        /// Whether a Redis that loses its data at a restart (no AOF) is accepted.
        allow_volatile: bool,
    },
    /// One file, for one master.
    Embedded {
        /// The directory of the file.
        dir: PathBuf,
    },
}

/// Settings of a Redis in addition to its URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisOptions {
    /// The file with the trusted certificates (PEM); `None`: those of this host.
    pub ca_file: Option<PathBuf>,
    /// The servers.
    pub topology: RedisTopology,
}

/// The servers of a Redis.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RedisTopology {
    /// One server, at the URL.
    #[default]
    Single,
    /// Sentinels provide the address of the current master.
    Sentinel {
        /// The name of the master in the sentinels.
        master: String,
        /// The addresses of the sentinels.
        nodes: Vec<RedisUrl>,
    },
    /// A Redis Cluster, with some of its nodes.
    Cluster(Vec<RedisUrl>),
}

impl StoreConfig {
    /// URL, nodes or directory, without passwords.
    pub fn location(&self) -> String {
        match self {
            StoreConfig::Redis { url, options, .. } => match &options.topology {
                RedisTopology::Single => url.to_string(),
                RedisTopology::Sentinel { master, .. } => format!("sentinel {master}"),
                RedisTopology::Cluster(nodes) => {
                    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
                    format!("cluster {}", nodes.join(","))
                }
            },
            StoreConfig::Embedded { dir } => dir.display().to_string(),
        }
    }

    /// Applies `REDIS_URL`.
    pub(super) fn override_url(&mut self, new: RedisUrl) {
        match self {
            StoreConfig::Redis { url, .. } => *url = new,
            StoreConfig::Embedded { .. } => {
                *self = StoreConfig::Redis {
                    url: new,
                    options: RedisOptions::default(),
                    namespace: DEFAULT_NAMESPACE.to_owned(),
                    allow_volatile: false,
                };
            }
        }
    }

    /// Reads a `redis:` block; `None` after an error in its URL.
    pub(super) fn read_redis(fields: &Fields<'_>) -> Option<Self> {
        let login = read_login(fields, fields.get("tls").and_then(|i| i.flag()).unwrap_or(false));
        let url = read_url(fields, &login);
        let tls = url.as_ref().map_or(login.tls, RedisUrl::is_tls);
        let options = RedisOptions::read(fields, &RedisLogin { tls, ..login.clone() });
        let (mut namespace, mut allow_volatile) = (DEFAULT_NAMESPACE.to_owned(), false);
        fields.set("namespace", &mut namespace, |i| i.parse("a name", check_name));
        fields.set("allow_volatile", &mut allow_volatile, |i| i.flag());
        // The password of a file is not in this one.
        if fields.get("password_file").is_none() && url.as_ref().is_some_and(RedisUrl::has_password)
        {
            fields.item.mark_secret();
        }
        Some(StoreConfig::Redis { url: url?, options, namespace, allow_volatile })
    }
}

impl RedisOptions {
    /// Reads the certificates, and the nodes of sentinels or of a cluster.
    fn read(fields: &Fields<'_>, login: &RedisLogin<'_>) -> Self {
        let mut options = RedisOptions::default();
        if let Some(item) = fields.get("ca_file") {
            options.ca_file = item.absolute_path();
            if !login.tls {
                item.error("is for TLS only — set `tls: true`, or a `rediss://` URL");
            }
        }
        if let Some(item) = &fields.get("cluster") {
            if fields.get("sentinel").is_some() {
                item.error("give either `sentinel` or `cluster`");
            }
            if fields.get("url").is_some() {
                item.error(
                    "is not for use with `url` — give `username`, `password` and `tls` beside it",
                );
            }
            options.topology = RedisTopology::Cluster(read_nodes(item, 6379, login));
        }
        fields.read_map("sentinel", |sentinel| {
            let master = sentinel.require("master", ": the name of the master in the sentinels");
            let nodes = sentinel.require("nodes", ": the sentinels, e.g. `[host-a:26379]`");
            let login = read_login(sentinel, login.tls);
            if let (Some(master), Some(nodes)) = (master.and_then(|i| i.text()), nodes) {
                let nodes = read_nodes(&nodes, 26_379, &login);
                options.topology = RedisTopology::Sentinel { master: master.to_owned(), nodes };
            }
        });
        options
    }
}

fn read_login<'a>(fields: &Fields<'a>, tls: bool) -> RedisLogin<'a> {
    let username = fields.get("username").and_then(|i| i.text());
    let password = fields.get("password").and_then(|i| i.secret()).map(Cow::Borrowed);
    let file = fields.get("password_file").and_then(|item| {
        if password.is_some() {
            item.error("give either `password` or `password_file`");
        }
        read_password_file(&item)
    });
    RedisLogin { username, password: password.or(file.map(Cow::Owned)), tls }
}

/// The first line of a file that no other user may read.
fn read_password_file(item: &Item<'_>) -> Option<String> {
    let file = item.absolute_path()?;
    let text = private_files::read_file(&file, MAX_PASSWORD_BYTES).map_err(|e| e.to_string());
    let text = text.and_then(|bytes| {
        let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
        let password = text.lines().next().unwrap_or_default();
        if password.is_empty() { Err("it is empty".to_owned()) } else { Ok(password.to_owned()) }
    });
    let shown = file.display();
    text.map_err(|e| item.error(format!("the password cannot be read from {shown}: {e}"))).ok()
}

/// `url`, or the URL of `host`, `port` and `db`.
fn read_url(fields: &Fields<'_>, login: &RedisLogin<'_>) -> Option<RedisUrl> {
    let host = fields.get("host");
    let port = fields.get("port").and_then(|i| i.number(1..=65_535)).unwrap_or(6379);
    let db = fields.get("db").and_then(|i| i.number(0..=u64::from(u32::MAX))).unwrap_or(0);
    let url = match fields.get("url") {
        Some(item) => {
            let parts = ["host", "port", "db", "username", "password"];
            if parts.iter().any(|key| fields.get(key).is_some()) {
                item.error("give either `url` or `host`, `port`, `db`, not both");
            }
            let mut url = item.parse("a Redis URL", str::parse::<RedisUrl>)?;
            if let Some(password) = login.password.as_deref() {
                url = url.with_password(password).map_err(|e| item.error(e)).ok()?;
            }
            if login.tls { url.with_tls().map_err(|e| fields.item.error(e)) } else { Ok(url) }
        }
        None => {
            let name = host.as_ref().and_then(|i| i.text()).unwrap_or("localhost");
            RedisUrl::from_parts(name, port, db, login)
                .map_err(|message| host.as_ref().unwrap_or(&fields.item).error(message))
        }
    };
    url.ok()
}

/// `[host:port, …]`.
fn read_nodes(item: &Item<'_>, default_port: u16, login: &RedisLogin<'_>) -> Vec<RedisUrl> {
    let items = item.items().unwrap_or_default();
    if items.is_empty() {
        item.error("must name at least one node");
    }
    let read = |item: Item<'_>| {
        item.parse("a host and port such as `host-a:6379`", |text| {
            let (host, port) = match text.rsplit_once(':') {
                Some((host, port)) => {
                    (host, port.parse().map_err(|_| format!("{} is not a port", quote(port)))?)
                }
                None => (text, default_port),
            };
            RedisUrl::from_parts(host.trim_matches(['[', ']']), port, 0, login)
        })
    };
    items.into_iter().filter_map(read).collect()
}

/// The name of a namespace or installation. A namespace is part of every key, inside the braces of the hash tag of Redis
/// Cluster.
pub(super) fn check_name(text: &str) -> Result<String, String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 characters out of A-Z a-z 0-9 . _ -".into())
    }
}
