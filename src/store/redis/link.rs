//! The connection to one Redis server, made again when it broke, and what its errors mean.

use crate::store::StoreError;
use crate::util::backoff::Backoff;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, RedisError, ServerErrorKind,
};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Between attempts to connect, so that no loop above this one can flood a server that is down.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// How often a call whose connection broke is tried. The calls are safe to repeat.
const ATTEMPTS: u32 = 3;

/// How long to wait for the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) connect: Duration,
    /// For one answer, including the time that it takes to send what was asked.
    pub(super) answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { connect: Duration::from_secs(3), answer: Duration::from_secs(10) }
    }
}

/// One connection, shared by all calls. `redis::aio::ConnectionManager` is not used: it keeps a connection
/// whose answers time out, which a host that vanished leaves behind for a quarter of an hour.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    /// The server's address without the password, for messages.
    pub(super) address: String,
    config: AsyncConnectionConfig,
    slot: Mutex<Slot>,
}

#[derive(Debug)]
struct Slot {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that only the one that broke is given up.
    number: u64,
    /// Failed attempts in a row, and when the last one was.
    failures: u32,
    last_failure: Instant,
}

impl Link {
    pub(super) fn new(url: &str, patience: Patience) -> Result<Self, StoreError> {
        // The text of this error never holds the URL, which may hold a password.
        let client = Client::open(url).map_err(|e| {
            StoreError::Unusable(format!(
                "the Redis URL is not valid: {e}; write redis://[user:password@]host:6379/0 or redis+unix:///path"
            ))
        })?;
        let address = client.get_connection_info().addr().to_string();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience.connect))
            .set_response_timeout(Some(patience.answer));
        let slot = Slot { connection: None, number: 0, failures: 0, last_failure: Instant::now() };
        Ok(Link { client, address, config, slot: Mutex::new(slot) })
    }

    /// The connection; made if there is none, by one caller while the others wait for it.
    async fn connection(&self) -> Result<(u64, MultiplexedConnection), RedisError> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.number, connection.clone()));
        }
        tokio::time::sleep_until(slot.last_failure + RECONNECT.delay(slot.failures)).await;
        match self.client.get_multiplexed_async_connection_with_config(&self.config).await {
            Ok(connection) => {
                slot.number += 1;
                slot.failures = 0;
                slot.connection = Some(connection.clone());
                tracing::debug!(server = %self.address, "connected to Redis");
                Ok((slot.number, connection))
            }
            Err(error) => {
                slot.failures = slot.failures.saturating_add(1);
                slot.last_failure = Instant::now();
                Err(error)
            }
        }
    }

    async fn give_up(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.number == number {
            slot.connection = None;
        }
    }

    /// Asks, again with a new connection when the old one broke.
    async fn ask<T: FromRedisValue>(&self, question: Question<'_>) -> Result<T, StoreError> {
        let mut attempt = 1;
        loop {
            let failed = match self.connection().await {
                Ok((number, mut connection)) => match question.put(&mut connection).await {
                    Ok(value) => return Ok(value),
                    Err(error) => {
                        // After a time-out the answer may still come; a server that became a replica
                        // or is loading may not be the one to talk to: begin anew in any case.
                        if !is_unusable(&error) {
                            self.give_up(number).await;
                        }
                        error
                    }
                },
                Err(error) => error,
            };
            let broken = failed.is_connection_dropped() && !failed.is_timeout();
            if !broken || attempt >= ATTEMPTS {
                return Err(self.error(&failed));
            }
            attempt += 1;
        }
    }

    pub(super) async fn run<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> Result<T, StoreError> {
        self.ask(Question::Command(command)).await
    }

    pub(super) async fn script<T: FromRedisValue>(
        &self,
        call: &redis::ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        self.ask(Question::Script(call)).await
    }

    fn error(&self, error: &RedisError) -> StoreError {
        let text = format!("Redis at {}: {error}", self.address);
        if is_unusable(error) { StoreError::Unusable(text) } else { StoreError::Unavailable(text) }
    }
}

#[derive(Clone, Copy)]
enum Question<'a> {
    Command(&'a redis::Cmd),
    /// By its hash; sent whole when the server does not know it (any more).
    Script(&'a redis::ScriptInvocation<'a>),
}

impl Question<'_> {
    async fn put<T: FromRedisValue>(
        self,
        connection: &mut MultiplexedConnection,
    ) -> Result<T, RedisError> {
        match self {
            Question::Command(command) => command.query_async(connection).await,
            Question::Script(call) => call.invoke_async(connection).await,
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
            ["unknown command", "compiling script", "db index", "shebang"]
                .iter()
                .any(|sign| text.contains(sign))
        }
        _ => matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "WRONGTYPE" | "NOPROTO")),
    }
}
