//! The connection to the Redis server that leads, made again when it broke, and what its errors mean. Where
//! sentinels watch it they are asked for it each time; the nodes of a cluster are found by the `redis` crate.

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

/// Between attempts to connect, so that no loop above this one can flood a server that is down.
const RECONNECT_BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// How often a call whose connection broke is tried. The calls are safe to repeat.
const MAX_ATTEMPTS: u32 = 3;

/// One connection, shared by all calls. `redis::aio::ConnectionManager` is not used: it keeps a connection
/// whose answers time out, which a host that vanished leaves behind for a quarter of an hour.
#[derive(Debug)]
pub(super) struct RedisClient {
    topology: RedisClients,
    /// A key of ours: all that is asked goes to the node of a cluster that holds it.
    key: String,
    /// The server's address without the password, for messages.
    pub(super) address: String,
    config: AsyncConnectionConfig,
    connection: Mutex<ConnectionSlot>,
}

#[derive(Debug)]
struct ConnectionSlot {
    connection: Option<Connection>,
    /// Counts connections, so that only the one that broke is given up.
    generation: u64,
    /// Failed attempts in a row, and when the last one was.
    failures: u32,
    last_failure: Instant,
}

impl RedisClient {
    /// A link to the Redis at `url`, or where `setup` says; `key` is a key of ours.
    pub(super) fn new(
        url: &str,
        setup: &RedisOptions,
        key: &str,
        patience: Timeouts,
    ) -> Result<Self, StoreError> {
        let servers = RedisClients::new(url, setup, patience)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience.connect))
            .set_response_timeout(Some(patience.response));
        let slot = ConnectionSlot {
            connection: None,
            generation: 0,
            failures: 0,
            last_failure: Instant::now(),
        };
        let (address, key) = (servers.display_address(), key.to_owned());
        Ok(RedisClient { topology: servers, key, address, config, connection: Mutex::new(slot) })
    }

    /// The connection; made if there is none, by one caller while the others wait for it.
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

    async fn discard_connection(&self, number: u64) {
        let mut slot = self.connection.lock().await;
        if slot.generation == number {
            slot.connection = None;
        }
    }

    /// Asks, again with a new connection when the old one broke.
    async fn execute<T: FromRedisValue>(&self, question: RedisCall<'_>) -> Result<T, StoreError> {
        let mut attempt = 1;
        loop {
            let failed = match self.connection().await {
                Ok((number, mut connection)) => {
                    match question.execute_on(&mut connection, &self.key).await {
                        Ok(value) => return Ok(value),
                        Err(error) => {
                            // After a time-out the answer may still come; a server that became a replica
                            // or is loading may not be the one to talk to: begin anew in any case.
                            if !is_unusable(&error) {
                                self.discard_connection(number).await;
                            }
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            let broken = failed.is_connection_dropped() && !failed.is_timeout();
            if !broken || attempt >= MAX_ATTEMPTS {
                return Err(self.store_error(&failed));
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
    /// By its hash; sent whole when the server does not know it (any more).
    Script(&'a redis::ScriptInvocation<'a>),
}

impl RedisCall<'_> {
    async fn execute_on<T: FromRedisValue>(
        self,
        connection: &mut Connection,
        key: &str,
    ) -> Result<T, RedisError> {
        match (self, connection) {
            (RedisCall::Command(command), Connection::Single(one)) => {
                command.query_async(one).await
            }
            (RedisCall::Script(call), Connection::Single(one)) => call.invoke_async(one).await,
            (RedisCall::Command(command), Connection::Cluster(all)) => {
                let route = Route::with_slot(Slot::for_key(key), SlotAddr::Master);
                let route = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(route));
                Ok(from_redis_value(all.route_command(command.clone(), route).await?)?)
            }
            (RedisCall::Script(call), Connection::Cluster(all)) => call.invoke_async(all).await,
        }
    }
}

/// Whether only an operator can help. What is not known to be so is worth another try: a full disk
/// (MISCONF), a fail-over (READONLY, MASTERDOWN, LOADING), too many clients, a broken network.
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
