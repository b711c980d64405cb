//! The store of several masters: a Redis server.
//!
//! Three hashes under one hash tag: `{longhaul:NAMESPACE}:meta` (who leads, which commit was the
//! last), `:records` and `:blobs`. Every verb is one script, so it happens at once or not at all; a
//! batch that is too large for one script is put aside in portions first, and moved by one.
//!
//! The scripts carry the flag `allow-oom`: when Redis has reached `maxmemory`, work in hand must
//! still be recorded, or nothing would ever become free again.

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

/// What one script may carry; more is staged. It bounds for how long other callers of the server wait.
#[derive(Debug, Clone, Copy)]
struct BatchLimits {
    keys: usize,
    bytes: u64,
}

const SCRIPT_LIMITS: BatchLimits = BatchLimits { keys: 20_000, bytes: 16 << 20 };
/// How much of a batch is staged at a time.
const STAGE_LIMITS: BatchLimits = BatchLimits { keys: 5_000, bytes: 4 << 20 };
/// After this time, in milliseconds, what was staged for a commit that never came is dropped.
const STAGE_TTL_MS: u64 = 600_000;

/// The store of several masters, in a Redis server. Calls share one connection, which is made again when it breaks.
#[derive(Debug)]
pub struct RedisStore {
    client: RedisClient,
    session_id: String,
    installation: Installation,
    allow_volatile: bool,
    /// Whether the server lets us see its settings.
    settings_visible: bool,
    /// The keys: meta, records, blobs.
    keys: [String; 3],
    /// The four hashes in which this handle stages.
    stage_keys: [String; 4],
    scripts: Scripts,
    /// Under which name and for how long this handle leads: a write-back must tell it again.
    held_lease: Mutex<HeldLease>,
    limits: BatchLimits,
}

#[derive(Debug, Clone)]
struct HeldLease {
    holder: String,
    holder_info: String,
    ttl_ms: u64,
}

#[derive(Debug)]
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
        let script = |verb: &str| {
            Script::new(&format!("#!lua flags=allow-oom\n{}{verb}", include_str!("prelude.lua")))
        };
        Scripts {
            acquire: script(include_str!("acquire.lua")),
            renew: script(include_str!("renew.lua")),
            release: script(include_str!("release.lua")),
            stage: script(include_str!("stage.lua")),
            commit: script(include_str!("commit.lua")),
            check_permissions: script(include_str!("rehearse.lua")),
            // Without the flag it is refused exactly when memory is used up.
            check_memory: Script::new("#!lua\nreturn {'done'}"),
        }
    }
}

impl RedisStore {
    /// Connects and checks the server: its version, `maxmemory-policy noeviction`, `appendonly yes`
    /// (unless `allow_volatile`), that its user may run all commands that are needed, and that no newer Longhaul has
    /// written under `namespace` (1 to 64 of `A-Z a-z 0-9 . _ : -`). Which installation a store belongs to is checked
    /// when leadership is asked for.
    ///
    /// # Errors
    /// [`Unavailable`](StoreError::Unavailable) while the server cannot be reached, worth trying
    /// again; [`Unusable`](StoreError::Unusable) for all that an operator has to change.
    pub async fn connect(
        url: &str,
        setup: &RedisOptions,
        namespace: &str,
        allow_volatile: bool,
        installation: Installation,
    ) -> Result<Self, StoreError> {
        let connecting =
            Self::connect_with(url, setup, namespace, allow_volatile, Timeouts::default());
        Ok(RedisStore { installation, ..connecting.await? })
    }

    async fn connect_with(
        url: &str,
        setup: &RedisOptions,
        namespace: &str,
        allow_volatile: bool,
        patience: Timeouts,
    ) -> Result<Self, StoreError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        if !(1..=64).contains(&namespace.len()) || !namespace.bytes().all(allowed) {
            return Err(StoreError::Unusable(format!(
                "the namespace `{}` is not 1 to 64 characters out of A-Z a-z 0-9 . _ : -",
                namespace.escape_debug()
            )));
        }
        let key = |name: &str| format!("{{longhaul:{namespace}}}:{name}");
        let link = RedisClient::new(url, setup, &key("meta"), patience)?;
        let settings_visible = server_check::check_server(&link, allow_volatile).await?;
        let owner = new_session_id();
        let stage = |name: &str| key(&format!("stage:{owner}:{name}"));
        let store = RedisStore {
            client: link,
            keys: ["meta", "records", "blobs"].map(key),
            stage_keys: ["puts", "deletes", "blob-puts", "blob-deletes"].map(stage),
            session_id: owner,
            installation: Installation::named("unnamed"),
            allow_volatile,
            settings_visible,
            scripts: Scripts::new(),
            held_lease: Mutex::new(HeldLease {
                holder: String::new(),
                holder_info: String::new(),
                ttl_ms: 1,
            }),
            limits: SCRIPT_LIMITS,
        };
        let schema: Option<String> =
            store.client.run_command(redis::cmd("HGET").arg(&store.keys[0]).arg("schema")).await?;
        schema.map_or(Ok(()), |found| check_schema(&found, &store.location()))?;
        store.check_permissions().await?;
        Ok(store)
    }

    /// Runs every command once, on a key that nobody uses.
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

    fn lock_held_lease(&self) -> parking_lot::MutexGuard<'_, HeldLease> {
        self.held_lease.lock()
    }

    /// Runs a script and reads its answer: a word, then what belongs to it.
    async fn run_script(
        &self,
        call: &ScriptInvocation<'_>,
        expected: u64,
    ) -> Result<Vec<String>, StoreError> {
        let answer: Vec<String> = self.client.run_script(call).await?;
        let word = |i: usize| answer.get(i).map(String::as_str).unwrap_or_default();
        match word(0) {
            "done" | "leader" | "held" | "behind" => Ok(answer),
            "deposed" => Err(StoreError::Deposed {
                leader: word(1).to_owned(),
                epoch: self.reply_number(&answer, 2)?,
            }),
            "lost" => Err(StoreError::DataLost { expected, found: self.reply_number(&answer, 1)? }),
            "unstaged" => Err(StoreError::Unavailable(format!(
                "Redis at {} lost a part of a large commit before the rest came",
                self.client.address
            ))),
            "schema" => Err(check_schema(word(1), &self.location())
                .err()
                .unwrap_or_else(|| self.unexpected_reply(&answer))),
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
                "the key {} in Redis at {} is a {}, which is not of Longhaul; choose another namespace or remove it",
                word(1),
                self.client.address,
                word(2)
            ))),
            _ => Err(self.unexpected_reply(&answer)),
        }
    }

    fn reply_number(&self, answer: &[String], at: usize) -> Result<u64, StoreError> {
        answer
            .get(at)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| self.unexpected_reply(answer))
    }

    fn unexpected_reply(&self, answer: &[String]) -> StoreError {
        StoreError::Unusable(format!("Redis at {} answered {answer:?}", self.client.address))
    }

    /// Puts a batch aside in portions, for [`commit`](Store::commit) to move.
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
        let mut rest = part.iter().peekable();
        let mut first = true;
        // The first portion also clears what an earlier attempt left, so there is always one.
        while first || rest.peek().is_some() {
            let mut call = self.scripts.stage.key(stage);
            call.arg(STAGE_TTL_MS).arg(u8::from(first));
            let (mut keys, mut bytes) = (0, 0);
            while keys < STAGE_LIMITS.keys
                && bytes < STAGE_LIMITS.bytes
                && let Some((key, value)) = rest.next()
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

    /// The call of `commit.lua`, without the batch if that is staged.
    fn commit_invocation(&self, fence: Fence, batch: &Batch, staged: bool) -> ScriptInvocation<'_> {
        let term = self.lock_held_lease().clone();
        let mut call = self.scripts.commit.prepare_invoke();
        call.key(&self.keys);
        if staged {
            call.key(&self.stage_keys);
        }
        call.arg(fence.epoch)
            .arg(fence.seq)
            .arg(&self.session_id)
            .arg(term.holder)
            .arg(term.ttl_ms);
        call.arg(batch.digest()).arg(u8::from(batch.replace)).arg(SCHEMA);
        call.arg(batch.puts.len()).arg(batch.deletes.len());
        call.arg(batch.blob_puts.len()).arg(batch.blob_deletes.len()).arg(term.holder_info);
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
        let Candidate { name, info: about, last_seen: saw } = candidate;
        let ttl_ms = lease_ms(ttl);
        let mut call = self.scripts.acquire.prepare_invoke();
        call.key(&self.keys).arg(name).arg(&self.session_id).arg(ttl_ms).arg(SCHEMA);
        call.arg(about).arg(saw.epoch).arg(saw.seq);
        call.arg(&self.installation.name).arg(&self.installation.former_name);
        let answer = self.run_script(&call, 0).await?;
        let fence = |at| -> Result<Fence, StoreError> {
            Ok(Fence {
                epoch: self.reply_number(&answer, at)?,
                seq: self.reply_number(&answer, at + 1)?,
            })
        };
        let word = |at: usize| answer.get(at).cloned().unwrap_or_default();
        match answer[0].as_str() {
            "leader" => {
                let (holder, about) = (name.clone(), about.clone());
                *self.lock_held_lease() = HeldLease { holder, holder_info: about, ttl_ms };
                self.installation.save();
                fence(1).map(AcquireOutcome::Leader)
            }
            "behind" => fence(1).map(AcquireOutcome::Behind),
            _ => Ok(AcquireOutcome::Held {
                holder: word(1),
                holder_info: word(3),
                fence: fence(4)?,
                retry_after_ms: self.reply_number(&answer, 2)?,
            }),
        }
    }

    async fn renew(&self, fence: Fence, ttl: Duration) -> Result<(), StoreError> {
        let ttl_ms = lease_ms(ttl);
        let mut call = self.scripts.renew.key(&self.keys[0]);
        call.arg(fence.epoch).arg(fence.seq).arg(&self.session_id).arg(ttl_ms);
        self.run_script(&call, fence.seq).await?;
        self.lock_held_lease().ttl_ms = ttl_ms;
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
        let answer =
            self.run_script(&self.commit_invocation(fence, batch, staged), fence.seq).await?;
        Ok(Fence { seq: self.reply_number(&answer, 1)?, ..fence })
    }

    async fn blob(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.client.run_command(redis::cmd("HGET").arg(&self.keys[2]).arg(key)).await
    }

    async fn check_admission(&self) -> Result<Option<AdmissionBlock>, StoreError> {
        if self.settings_visible
            && let Some(why) =
                server_check::find_unsafe_setting(&self.client, self.allow_volatile).await?
        {
            return Ok(Some(AdmissionBlock::Unsafe(why)));
        }
        // A blob that may not be read shows here: commits do without.
        let _: Option<Vec<u8>> = self.blob("").await?;
        match self
            .client
            .run_script::<Vec<String>>(&self.scripts.check_memory.key(&self.keys[0]))
            .await
        {
            Ok(_) => Ok(None),
            Err(StoreError::Unavailable(why)) if why.contains("OOM") => {
                let why = format!("Redis at {} has used up its `maxmemory`", self.client.address);
                Ok(Some(AdmissionBlock::Full(why)))
            }
            Err(other) => Err(other),
        }
    }

    async fn blob_keys(&self) -> Result<BTreeSet<String>, StoreError> {
        self.client.run_command(redis::cmd("HKEYS").arg(&self.keys[2])).await
    }
}
