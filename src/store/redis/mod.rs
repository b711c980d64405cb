//! The store of several masters: a Redis server.
//!
//! Three hashes with one hash tag: `{longhaul:NAMESPACE}:meta` (the leader and the last commit), `:records` and
//! `:blobs`. Every call is one script, which is atomic. A batch that is too large for one script is staged in portions,
//! and one script moves them.
//!
//! The scripts have the flag `allow-oom`: when Redis has reached `maxmemory`, active syncs must still be recorded, or
//! no memory would ever become free.

mod client;
mod installation;
mod server_check;
mod topology;

#[cfg(test)]
mod tests;

pub use installation::Installation;

use super::{
    AcquireOutcome, AdmissionBlock, Batch, Candidate, Fence, SCHEMA, Store, StoreError,
    check_schema, lease_ms, new_session_id,
};
use crate::config::RedisOptions;
use client::RedisClient;
use parking_lot::Mutex;
use redis::{Script, ScriptInvocation};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use topology::Timeouts;

/// The maximum size of a batch in one script. It limits how long other clients of the server wait.
#[derive(Clone, Copy)]
struct BatchLimits {
    keys: usize,
    bytes: u64,
}

const SCRIPT_LIMITS: BatchLimits = BatchLimits { keys: 20_000, bytes: 16 << 20 };
const STAGE_LIMITS: BatchLimits = BatchLimits { keys: 5_000, bytes: 4 << 20 };
/// A staged batch that is never committed expires after this time.
const STAGE_TTL_MS: u64 = 600_000;

/// The server of a [`RedisStore`], and the masters that share it. Not `Debug`, because the URL may contain a password.
pub struct RedisStoreConfig {
    /// With the password.
    pub url: String,
    /// TLS and topology.
    pub options: RedisOptions,
    /// 1 to 64 of `A-Z a-z 0-9 . _ : -`.
    pub namespace: String,
    /// Accepts a server with `appendonly no`.
    pub allow_volatile: bool,
    /// Checked when leadership is requested.
    pub installation: Installation,
}

/// The store of several masters, in a Redis server. All calls share one connection, which is replaced when it breaks.
pub struct RedisStore {
    client: RedisClient,
    session_id: String,
    installation: Installation,
    allow_volatile: bool,
    /// Whether the user may read the settings of the server.
    settings_visible: bool,
    /// The keys of meta, records, blobs.
    keys: [String; 3],
    /// The keys of the four hashes of a staged batch of this handle.
    stage_keys: [String; 4],
    scripts: Scripts,
    /// Written back with the first commit after data loss.
    held_lease: Mutex<HeldLease>,
    limits: BatchLimits,
}

#[derive(Clone)]
struct HeldLease {
    holder: String,
    holder_info: String,
    ttl_ms: u64,
}

struct Scripts {
    acquire: Script,
    renew: Script,
    release: Script,
    stage: Script,
    commit: Script,
    check_memory: Script,
    check_permissions: Script,
}

impl Scripts {
    fn new() -> Self {
        let script = |body: &str| {
            Script::new(&format!("#!lua flags=allow-oom\n{}{body}", include_str!("prelude.lua")))
        };
        Scripts {
            acquire: script(include_str!("acquire.lua")),
            renew: script(include_str!("renew.lua")),
            release: script(include_str!("release.lua")),
            stage: script(include_str!("stage.lua")),
            commit: script(include_str!("commit.lua")),
            check_permissions: script(include_str!("check_permissions.lua")),
            // Without the flag `allow-oom`, so that the server refuses it when memory is used up.
            check_memory: Script::new("#!lua\nreturn {'done'}"),
        }
    }
}

/// Without the URLs, which may contain passwords.
impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisStore({})", self.location())
    }
}

impl RedisStore {
    /// Connects and checks the server: its version, `maxmemory-policy noeviction`, `appendonly yes` (unless
    /// `allow_volatile`), the permissions of the user, and the schema of the data.
    ///
    /// # Errors
    /// [`Unavailable`](StoreError::Unavailable) while the server cannot be reached;
    /// [`Unusable`](StoreError::Unusable) if an operator has to change something.
    pub async fn connect(config: &RedisStoreConfig) -> Result<Self, StoreError> {
        Self::connect_with(config, Timeouts::default()).await
    }

    async fn connect_with(
        config: &RedisStoreConfig,
        timeouts: Timeouts,
    ) -> Result<Self, StoreError> {
        let namespace = &config.namespace;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        if !(1..=64).contains(&namespace.len()) || !namespace.bytes().all(allowed) {
            return Err(StoreError::Unusable(format!(
                "the namespace `{}` is not 1 to 64 characters out of A-Z a-z 0-9 . _ : -",
                namespace.escape_debug()
            )));
        }
        let key = |name: &str| format!("{{longhaul:{namespace}}}:{name}");
        let client = RedisClient::new(&config.url, &config.options, &key("meta"), timeouts)?;
        let settings_visible = server_check::check_server(&client, config.allow_volatile).await?;
        let session_id = new_session_id();
        let stage = |name: &str| key(&format!("stage:{session_id}:{name}"));
        let lease = HeldLease { holder: String::new(), holder_info: String::new(), ttl_ms: 1 };
        let store = RedisStore {
            client,
            keys: ["meta", "records", "blobs"].map(key),
            stage_keys: ["puts", "deletes", "blob-puts", "blob-deletes"].map(stage),
            session_id,
            installation: config.installation.clone(),
            allow_volatile: config.allow_volatile,
            settings_visible,
            scripts: Scripts::new(),
            held_lease: Mutex::new(lease),
            limits: SCRIPT_LIMITS,
        };
        let schema: Option<String> =
            store.client.run_command(redis::cmd("HGET").arg(&store.keys[0]).arg("schema")).await?;
        schema.map_or(Ok(()), |found| check_schema(&found, &store.location()))?;
        store.check_permissions().await?;
        Ok(store)
    }

    /// Runs every command once, on an unused key.
    async fn check_permissions(&self) -> Result<(), StoreError> {
        let unused = &self.stage_keys[0];
        self.run_script(&self.scripts.check_permissions.key(unused), 0).await?;
        for command in ["HGETALL", "HKEYS"] {
            let _: Vec<Vec<u8>> = self.client.run_command(redis::cmd(command).arg(unused)).await?;
        }
        Ok(())
    }

    fn location(&self) -> String {
        format!("Redis at {}, key {},", self.client.address, self.keys[0])
    }

    /// Runs a script and checks its reply: a word, then its parameters. `expected`: the last commit that the caller
    /// knows.
    async fn run_script(
        &self,
        call: &ScriptInvocation<'_>,
        expected: u64,
    ) -> Result<Vec<String>, StoreError> {
        let reply: Vec<String> = self.client.run_script(call).await?;
        let word = |i: usize| reply.get(i).map(String::as_str).unwrap_or_default();
        match word(0) {
            "done" | "leader" | "held" | "behind" => Ok(reply),
            "deposed" => Err(StoreError::Deposed {
                leader: word(1).to_owned(),
                epoch: self.reply_number(&reply, 2)?,
            }),
            "lost" => Err(StoreError::DataLost { expected, found: self.reply_number(&reply, 1)? }),
            "unstaged" => Err(StoreError::Unavailable(format!(
                "Redis at {} lost a part of a large commit before the commit was complete",
                self.client.address
            ))),
            "schema" => Err(check_schema(word(1), &self.location())
                .err()
                .unwrap_or_else(|| self.unexpected_reply(&reply))),
            "other" => Err(StoreError::Unusable(format!(
                "the keys {}:* in Redis at {} belong to the installation `{}` (its master: {}), this master to `{}`. If \
                 these are two installations, give this one another `redis.namespace`; if they are one, write \
                 `installation: {}` in the configuration of each of its masters",
                self.keys[0].trim_end_matches(":meta"),
                self.client.address,
                word(1),
                word(2),
                self.installation.name,
                word(1),
            ))),
            "foreign" => Err(StoreError::Unusable(format!(
                "the key {} in Redis at {} is a {}, which Longhaul did not write; choose another namespace or remove it",
                word(1),
                self.client.address,
                word(2)
            ))),
            _ => Err(self.unexpected_reply(&reply)),
        }
    }

    fn reply_number(&self, reply: &[String], at: usize) -> Result<u64, StoreError> {
        reply.get(at).and_then(|text| text.parse().ok()).ok_or_else(|| self.unexpected_reply(reply))
    }

    fn unexpected_reply(&self, reply: &[String]) -> StoreError {
        StoreError::Unusable(format!("Redis at {} answered {reply:?}", self.client.address))
    }

    /// Stages a batch in portions, which [`commit`](Store::commit) moves.
    async fn stage_batch(&self, batch: &Batch) -> Result<(), StoreError> {
        let parts = [
            key_value_args(&batch.puts),
            key_args(&batch.deletes),
            key_value_args(&batch.blob_puts),
            key_args(&batch.blob_deletes),
        ];
        for (stage, part) in self.stage_keys.iter().zip(parts) {
            self.stage_part(stage, &part).await?;
        }
        Ok(())
    }

    async fn stage_part(&self, stage: &str, part: &[(&str, &[u8])]) -> Result<(), StoreError> {
        let mut remaining = part.iter().peekable();
        let mut first = true;
        // The first portion also removes the rest of an earlier attempt, so there is always one.
        while first || remaining.peek().is_some() {
            let mut call = self.scripts.stage.key(stage);
            call.arg(STAGE_TTL_MS).arg(u8::from(first));
            let (mut keys, mut bytes) = (0, 0);
            while keys < STAGE_LIMITS.keys
                && bytes < STAGE_LIMITS.bytes
                && let Some((key, value)) = remaining.next()
            {
                keys += 1;
                bytes += (key.len() + value.len()) as u64;
                call.arg(key).arg(value);
            }
            self.run_script(&call, 0).await?;
            first = false;
        }
        Ok(())
    }

    /// The call of `commit.lua`, without the batch if it is staged.
    fn commit_invocation(&self, fence: Fence, batch: &Batch, staged: bool) -> ScriptInvocation<'_> {
        let lease = self.held_lease.lock().clone();
        let mut call = self.scripts.commit.prepare_invoke();
        call.key(&self.keys);
        if staged {
            call.key(&self.stage_keys);
        }
        call.arg(fence.epoch).arg(fence.seq).arg(&self.session_id);
        call.arg(lease.holder).arg(lease.ttl_ms);
        call.arg(batch.digest()).arg(u8::from(batch.replace)).arg(SCHEMA);
        call.arg(batch.puts.len()).arg(batch.deletes.len());
        call.arg(batch.blob_puts.len()).arg(batch.blob_deletes.len()).arg(lease.holder_info);
        call.arg(&self.installation.name);
        if !staged {
            for (deletes, puts) in
                [(&batch.deletes, &batch.puts), (&batch.blob_deletes, &batch.blob_puts)]
            {
                for key in deletes {
                    call.arg(key);
                }
                for (key, value) in puts {
                    call.arg(key).arg(value.as_slice());
                }
            }
        }
        call
    }
}

fn key_value_args(map: &BTreeMap<String, Vec<u8>>) -> Vec<(&str, &[u8])> {
    map.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect()
}

/// Keys alone: a stage is a hash, so each gets an empty value.
fn key_args(set: &BTreeSet<String>) -> Vec<(&str, &[u8])> {
    set.iter().map(|key| (key.as_str(), [].as_slice())).collect()
}

impl Store for RedisStore {
    async fn acquire(
        &self,
        candidate: &Candidate,
        ttl: Duration,
    ) -> Result<AcquireOutcome, StoreError> {
        let Candidate { name, info, last_seen } = candidate;
        let ttl_ms = lease_ms(ttl);
        let mut call = self.scripts.acquire.prepare_invoke();
        call.key(&self.keys).arg(name).arg(&self.session_id).arg(ttl_ms).arg(SCHEMA);
        call.arg(info).arg(last_seen.epoch).arg(last_seen.seq);
        call.arg(&self.installation.name).arg(&self.installation.former_name);
        let reply = self.run_script(&call, 0).await?;
        let fence = |at| -> Result<Fence, StoreError> {
            Ok(Fence {
                epoch: self.reply_number(&reply, at)?,
                seq: self.reply_number(&reply, at + 1)?,
            })
        };
        let word = |at: usize| reply.get(at).cloned().unwrap_or_default();
        match reply[0].as_str() {
            "leader" => {
                let (holder, holder_info) = (name.clone(), info.clone());
                *self.held_lease.lock() = HeldLease { holder, holder_info, ttl_ms };
                self.installation.save();
                fence(1).map(AcquireOutcome::Leader)
            }
            "behind" => fence(1).map(AcquireOutcome::Behind),
            _ => Ok(AcquireOutcome::Held {
                holder: word(1),
                holder_info: word(3),
                fence: fence(4)?,
                retry_after_ms: self.reply_number(&reply, 2)?,
            }),
        }
    }

    async fn renew(&self, fence: Fence, ttl: Duration) -> Result<(), StoreError> {
        let ttl_ms = lease_ms(ttl);
        let mut call = self.scripts.renew.key(&self.keys[0]);
        call.arg(fence.epoch).arg(fence.seq).arg(&self.session_id).arg(ttl_ms);
        self.run_script(&call, fence.seq).await?;
        self.held_lease.lock().ttl_ms = ttl_ms;
        Ok(())
    }

    async fn release(&self, fence: Fence) -> Result<(), StoreError> {
        let mut call = self.scripts.release.key(&self.keys[0]);
        call.arg(fence.epoch).arg(&self.session_id);
        self.run_script(&call, fence.seq).await.map(drop)
    }

    async fn load(&self) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.client.run_command(redis::cmd("HGETALL").arg(&self.keys[1])).await
    }

    async fn commit(&self, fence: Fence, batch: &Batch) -> Result<Fence, StoreError> {
        let staged = batch.len() > self.limits.keys || batch.byte_len() > self.limits.bytes;
        if staged {
            self.stage_batch(batch).await?;
        }
        let reply =
            self.run_script(&self.commit_invocation(fence, batch, staged), fence.seq).await?;
        Ok(Fence { seq: self.reply_number(&reply, 1)?, ..fence })
    }

    async fn record(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.client.run_command(redis::cmd("HGET").arg(&self.keys[1]).arg(key)).await
    }

    async fn blob(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.client.run_command(redis::cmd("HGET").arg(&self.keys[2]).arg(key)).await
    }

    async fn check_admission(&self) -> Result<Option<AdmissionBlock>, StoreError> {
        if self.settings_visible
            && let Some(reason) =
                server_check::find_unsafe_setting(&self.client, self.allow_volatile).await?
        {
            return Ok(Some(AdmissionBlock::Unsafe(reason)));
        }
        // Commits do not need the permission to read a blob: it is checked here.
        let _: Option<Vec<u8>> = self.blob("").await?;
        match self
            .client
            .run_script::<Vec<String>>(&self.scripts.check_memory.key(&self.keys[0]))
            .await
        {
            Ok(_) => Ok(None),
            Err(StoreError::Unavailable(e)) if e.contains("OOM") => {
                let address = &self.client.address;
                let reason = format!("Redis at {address} has used up its `maxmemory`");
                Ok(Some(AdmissionBlock::Full(reason)))
            }
            Err(other) => Err(other),
        }
    }

    async fn blob_keys(&self) -> Result<BTreeSet<String>, StoreError> {
        self.client.run_command(redis::cmd("HKEYS").arg(&self.keys[2])).await
    }
}
