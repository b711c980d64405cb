//! The connection to the primary Redis server, and the classification of its errors. A broken connection is replaced.
//! With sentinels each new connection first asks them for the primary; the `redis` crate finds the nodes of a cluster.

use super::topology::{Connection, RedisClients, Timeouts};
use crate::config::RedisOptions;
use crate::store::StoreError;
use crate::util::backoff::Backoff;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr};
use redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, from_redis_value,
};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Between attempts to connect, so that no loop of a caller can flood a server that is down.
const RECONNECT_BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// Attempts of a call if the connection breaks. All calls are safe to repeat.
const MAX_ATTEMPTS: u32 = 3;

/// One connection, shared by all calls. `redis::aio::ConnectionManager` is not used: it keeps a connection after
/// timeouts of replies, and after the loss of a host that lasts 15 minutes.
pub(super) struct RedisClient {
    topology: RedisClients,
    /// In a cluster all calls go to the node that holds this key.
    key: String,
    /// The address of the server for messages, without the password.
    pub(super) address: String,
    config: AsyncConnectionConfig,
    connection: Mutex<ConnectionSlot>,
}

struct ConnectionSlot {
    connection: Option<Connection>,
    /// The number of this connection: only the connection that broke is discarded.
    generation: u64,
    /// Consecutive failed attempts to connect.
    failures: u32,
    last_failure: Instant,
}

impl RedisClient {
    /// Does not connect yet. `key`: a key of the store.
    pub(super) fn new(
        url: &str,
        options: &RedisOptions,
        key: &str,
        timeouts: Timeouts,
    ) -> Result<Self, StoreError> {
        let topology = RedisClients::new(url, options, timeouts)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeouts.connect))
            .set_response_timeout(Some(timeouts.response));
        let slot = ConnectionSlot {
            connection: None,
            generation: 0,
            failures: 0,
            last_failure: Instant::now(),
        };
        let (address, key) = (topology.display_address(), key.to_owned());
        Ok(RedisClient { topology, key, address, config, connection: Mutex::new(slot) })
    }

    /// The connection and its generation. If there is none, one caller connects while the others wait.
    async fn connection(&self) -> Result<(u64, Connection), RedisError> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.generation, connection.clone()));
        }
        tokio::time::sleep_until(slot.last_failure + RECONNECT_BACKOFF.delay(slot.failures)).await;
        match self.topology.connect(&self.config).await {
            Ok(connection) => {
                slot.generation += 1;
                slot.failures = 0;
                slot.connection = Some(connection.clone());
                tracing::debug!(server = %self.address, "connected to Redis");
                Ok((slot.generation, connection))
            }
            Err(error) => {
                slot.failures = slot.failures.saturating_add(1);
                slot.last_failure = Instant::now();
                Err(error)
            }
        }
    }

    async fn discard_connection(&self, generation: u64) {
        let mut slot = self.connection.lock().await;
        if slot.generation == generation {
            slot.connection = None;
        }
    }

    /// Repeats the call on a new connection if the connection breaks.
    async fn execute<T: FromRedisValue>(&self, call: RedisCall<'_>) -> Result<T, StoreError> {
        let mut attempt = 1;
        loop {
            let error = match self.connection().await {
                Ok((generation, mut connection)) => {
                    match call.execute_on(&mut connection, &self.key).await {
                        Ok(value) => return Ok(value),
                        Err(error) => {
                            // After a timeout the reply may still arrive, and a server that became a replica or
                            // is loading may not be the primary: the next call needs a new connection.
                            if !is_unusable(&error) {
                                self.discard_connection(generation).await;
                            }
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            let broken = error.is_connection_dropped() && !error.is_timeout();
            if !broken || attempt >= MAX_ATTEMPTS {
                return Err(self.store_error(&error));
            }
            attempt += 1;
        }
    }

    pub(super) async fn run_command<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> Result<T, StoreError> {
        self.execute(RedisCall::Command(command)).await
    }

    pub(super) async fn run_script<T: FromRedisValue>(
        &self,
        call: &redis::ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        self.execute(RedisCall::Script(call)).await
    }

    pub(super) fn store_error(&self, error: &RedisError) -> StoreError {
        let hint = match error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => {
                "; it is a node of a Redis Cluster: name its nodes in `redis.cluster`"
            }
            ErrorKind::Server(ServerErrorKind::NoPerm) => {
                "; give the user of the master the permissions that docs/operations.md lists (ACL SETUSER)"
            }
            _ if error.to_string().contains("cluster support disabled") => {
                "; it is not a cluster: give its `host` or `url` instead of `redis.cluster`"
            }
            _ => "",
        };
        let text = format!("Redis at {}: {error}{hint}", self.address);
        if is_unusable(error) { StoreError::Unusable(text) } else { StoreError::Unavailable(text) }
    }
}

#[derive(Clone, Copy)]
enum RedisCall<'a> {
    Command(&'a redis::Cmd),
    /// Sent as its hash, and as its text if the server does not know the hash.
    Script(&'a redis::ScriptInvocation<'a>),
}

impl RedisCall<'_> {
    async fn execute_on<T: FromRedisValue>(
        self,
        connection: &mut Connection,
        key: &str,
    ) -> Result<T, RedisError> {
        match (self, connection) {
            (RedisCall::Command(command), Connection::Single(single)) => {
                command.query_async(single).await
            }
            (RedisCall::Script(call), Connection::Single(single)) => {
                call.invoke_async(single).await
            }
            (RedisCall::Command(command), Connection::Cluster(cluster)) => {
                let route = Route::with_slot(Slot::for_key(key), SlotAddr::Master);
                let route = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(route));
                Ok(from_redis_value(cluster.route_command(command.clone(), route).await?)?)
            }
            (RedisCall::Script(call), Connection::Cluster(cluster)) => {
                call.invoke_async(cluster).await
            }
        }
    }
}

/// Whether only an operator can remove the cause. After any other error the call is repeated: a full disk (MISCONF), a
/// fail-over (READONLY, MASTERDOWN, LOADING), too many clients, a broken network.
fn is_unusable(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::RESP3NotSupported
        | ErrorKind::Server(
            ServerErrorKind::NoPerm
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::CrossSlot,
        ) => true,
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            let text = error.detail().unwrap_or_default().to_ascii_lowercase();
            let signs = [
                "unknown command",
                "compiling script",
                "db index",
                "shebang",
                "cluster support disabled",
            ];
            signs.iter().any(|sign| text.contains(sign))
        }
        _ => matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "WRONGTYPE" | "NOPROTO")),
    }
}
