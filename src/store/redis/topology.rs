//! The servers of a Redis setup, and the search for the primary.

use crate::config::{RedisOptions, RedisTopology};
use crate::store::StoreError;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, RedisError, TlsCertificates,
};
use std::time::Duration;

/// Time limits for the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    /// From the start of the request to the end of the reply.
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
    Sentinel {
        sentinels: Vec<Client>,
        /// The name of the primary.
        name: String,
        /// All parameters of the primary except its address.
        template: Client,
    },
    Cluster {
        client: Box<ClusterClient>,
        /// The addresses of its nodes, without passwords.
        address: String,
    },
}

/// A connection to the primary.
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl RedisClients {
    /// # Errors
    /// The URL or the file of certificates is not valid.
    pub(super) fn new(
        url: &str,
        options: &RedisOptions,
        timeouts: Timeouts,
    ) -> Result<Self, StoreError> {
        let certs = match &options.ca_file {
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
        // The text of this error does not contain the URL, which may contain a password.
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
        match &options.topology {
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
                let addresses: Vec<String> = nodes.iter().map(ToString::to_string).collect();
                let mut builder = ClusterClient::builder(nodes.iter().map(|node| node.expose()))
                    .connection_timeout(timeouts.connect)
                    .response_timeout(timeouts.response)
                    .overall_response_timeout(Some(timeouts.response * 2))
                    .retries(3);
                if let Some(certs) = certs {
                    builder = builder.certs(certs);
                }
                let client = Box::new(builder.build().map_err(invalid)?);
                let address = format!("cluster {}", addresses.join(","));
                Ok(RedisClients::Cluster { client, address })
            }
        }
    }

    /// The address for messages, without passwords.
    pub(super) fn display_address(&self) -> String {
        match self {
            RedisClients::Single(client) => client.get_connection_info().addr().to_string(),
            RedisClients::Sentinel { name, .. } => format!("sentinel {name}"),
            RedisClients::Cluster { address, .. } => address.clone(),
        }
    }

    pub(super) async fn connect(
        &self,
        config: &AsyncConnectionConfig,
    ) -> Result<Connection, RedisError> {
        let client = match self {
            RedisClients::Single(client) => client,
            RedisClients::Sentinel { sentinels, name, template } => {
                &find_primary(sentinels, name, template, config).await?
            }
            RedisClients::Cluster { client, .. } => {
                return client.get_async_connection().await.map(Connection::Cluster);
            }
        };
        let connection = client.get_multiplexed_async_connection_with_config(config).await?;
        Ok(Connection::Single(connection))
    }
}

/// Asks the sentinels for the primary; the first reply counts. A former primary refuses writes (READONLY), and the next
/// connection asks again.
async fn find_primary(
    sentinels: &[Client],
    name: &str,
    template: &Client,
    config: &AsyncConnectionConfig,
) -> Result<Client, RedisError> {
    let mut first_error = None;
    for sentinel in sentinels {
        let reply = async {
            let mut connection =
                sentinel.get_multiplexed_async_connection_with_config(config).await?;
            let mut command = redis::cmd("SENTINEL");
            command.arg("get-master-addr-by-name").arg(name);
            command.query_async::<Option<(String, u16)>>(&mut connection).await
        };
        match reply.await {
            Ok(Some((host, port))) => {
                let info = template.get_connection_info().clone();
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
                first_error = Some(RedisError::from((
                    ErrorKind::InvalidClientConfig,
                    "the sentinels watch no server of this name; see redis.sentinel.master",
                    name.to_owned(),
                )));
            }
            Err(error) => first_error = Some(first_error.unwrap_or(error)),
        }
    }
    Err(first_error
        .unwrap_or_else(|| (ErrorKind::InvalidClientConfig, "no sentinel is configured").into()))
}
