//! Which servers there are, and how the one that leads is found.

use crate::config::{RedisOptions, RedisTopology};
use crate::store::StoreError;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, RedisError, TlsCertificates,
};
use std::time::Duration;

/// How long to wait for the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    /// For one answer, including the time that it takes to send what was asked.
    pub(super) response: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: Duration::from_secs(3), response: Duration::from_secs(10) }
    }
}

/// See the [module](self).
pub(super) enum RedisClients {
    Single(Client),
    /// The client names everything but the address.
    Sentinel {
        sentinels: Vec<Client>,
        name: String,
        template: Client,
    },
    Cluster(Box<ClusterClient>, String),
}

/// A connection to the server that leads.
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl std::fmt::Debug for RedisClients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.display_address())
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl RedisClients {
    /// # Errors
    /// A URL or a file of certificates that can't be used.
    pub(super) fn new(
        url: &str,
        setup: &RedisOptions,
        patience: Timeouts,
    ) -> Result<Self, StoreError> {
        let certs = match &setup.ca_file {
            None => None,
            Some(path) => {
                let root_cert = Some(std::fs::read(path).map_err(|e| {
                    StoreError::Unusable(format!(
                        "redis.ca_file: cannot read {}: {e}",
                        path.display()
                    ))
                })?);
                Some(TlsCertificates { client_tls: None, root_cert })
            }
        };
        // The text of this error never holds the URL, which may hold a password.
        let invalid = |e: RedisError| {
            StoreError::Unusable(format!(
                "the Redis URL or its certificates are not valid: {e}; write redis://[user:password@]host:6379/0, \
                 rediss:// for TLS, or redis+unix:///path"
            ))
        };
        let client = |url: &str| match &certs {
            Some(certs) if url.starts_with("rediss:") => {
                Client::build_with_tls(url, certs.clone()).map_err(invalid)
            }
            _ => Client::open(url).map_err(invalid),
        };
        match &setup.topology {
            RedisTopology::Single => client(url).map(RedisClients::Single),
            RedisTopology::Sentinel { master, nodes } => {
                let sentinels = nodes.iter().map(|node| client(node.expose()));
                let sentinels = sentinels.collect::<Result<_, _>>()?;
                Ok(RedisClients::Sentinel {
                    sentinels,
                    name: master.clone(),
                    template: client(url)?,
                })
            }
            RedisTopology::Cluster(nodes) => {
                let shown: Vec<String> = nodes.iter().map(ToString::to_string).collect();
                let mut builder = ClusterClient::builder(nodes.iter().map(|node| node.expose()))
                    .connection_timeout(patience.connect)
                    .response_timeout(patience.response)
                    .overall_response_timeout(Some(patience.response * 2))
                    .retries(3);
                if let Some(certs) = certs {
                    builder = builder.certs(certs);
                }
                let cluster = Box::new(builder.build().map_err(invalid)?);
                Ok(RedisClients::Cluster(cluster, format!("cluster {}", shown.join(","))))
            }
        }
    }

    /// Where they are, without passwords.
    pub(super) fn display_address(&self) -> String {
        match self {
            RedisClients::Single(client) => client.get_connection_info().addr().to_string(),
            RedisClients::Sentinel { name, .. } => format!("sentinel {name}"),
            RedisClients::Cluster(_, shown) => shown.clone(),
        }
    }

    /// A new connection to the server that leads.
    pub(super) async fn connect(
        &self,
        config: &AsyncConnectionConfig,
    ) -> Result<Connection, RedisError> {
        match self {
            RedisClients::Single(client) => client
                .get_multiplexed_async_connection_with_config(config)
                .await
                .map(Connection::Single),
            RedisClients::Sentinel { sentinels, name, template: any } => {
                let client = sentinel_master(sentinels, name, any, config).await?;
                client
                    .get_multiplexed_async_connection_with_config(config)
                    .await
                    .map(Connection::Single)
            }
            RedisClients::Cluster(client, _) => {
                client.get_async_connection().await.map(Connection::Cluster)
            }
        }
    }
}

/// The server that leads, as the first sentinel says that knows it. A server that they have deposed refuses
/// writes (READONLY), and they are asked again.
async fn sentinel_master(
    sentinels: &[Client],
    name: &str,
    any: &Client,
    config: &AsyncConnectionConfig,
) -> Result<Client, RedisError> {
    let mut failed = None;
    for sentinel in sentinels {
        let asked = async {
            let mut connection =
                sentinel.get_multiplexed_async_connection_with_config(config).await?;
            let mut question = redis::cmd("SENTINEL");
            question.arg("get-master-addr-by-name").arg(name);
            question.query_async::<Option<(String, u16)>>(&mut connection).await
        };
        match asked.await {
            Ok(Some((host, port))) => {
                let info = any.get_connection_info().clone();
                let addr = match info.addr() {
                    ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                        host,
                        port,
                        insecure: *insecure,
                        tls_params: tls_params.clone(),
                    },
                    _ => ConnectionAddr::Tcp(host, port),
                };
                return Client::open(info.set_addr(addr));
            }
            Ok(None) => {
                failed = Some(RedisError::from((
                    ErrorKind::InvalidClientConfig,
                    "the sentinels watch no server of this name; see redis.sentinel.master",
                    name.to_owned(),
                )));
            }
            Err(error) => failed = Some(failed.unwrap_or(error)),
        }
    }
    Err(failed.unwrap_or_else(|| (ErrorKind::InvalidClientConfig, "no sentinel is named").into()))
}
