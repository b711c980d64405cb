//! Checks the version and the settings of a Redis server.

use super::client::RedisClient;
use crate::store::StoreError;
use std::collections::HashMap;

/// The first version with script flags, which allow writes when memory is full.
const MIN_VERSION: (u32, u32) = (7, 0);

/// Refuses a server that is too old, may evict keys, or loses everything when it stops. If a managed service hides its
/// settings there is only a warning. Returns whether the settings are visible.
pub(super) async fn check_server(
    client: &RedisClient,
    allow_volatile: bool,
) -> Result<bool, StoreError> {
    let info: Option<String> = warn_if_hidden(
        client,
        "its version",
        client.run_command(redis::cmd("INFO").arg("server")).await,
    )?;
    if let Some(info) = info {
        check_version(&info)?;
    }
    let settings: Option<HashMap<String, String>> = warn_if_hidden(
        client,
        "its settings (maxmemory-policy must be noeviction, appendonly yes)",
        read_settings(client).await,
    )?;
    let Some(settings) = settings else { return Ok(false) };
    if let Some(reason) = unsafe_setting(&settings, &client.address, allow_volatile) {
        return Err(StoreError::Unusable(reason));
    }
    if settings.get("appendonly").is_some_and(|value| value == "no") {
        let server = &client.address;
        tracing::warn!(%server, "Redis has `appendonly no`: a restart of it loses acknowledged syncs");
    }
    Ok(true)
}

/// The reason why the current settings are unsafe, if they are: they can be changed while the server runs, and after a
/// fail-over it is another server.
pub(super) async fn find_unsafe_setting(
    client: &RedisClient,
    allow_volatile: bool,
) -> Result<Option<String>, StoreError> {
    match read_settings(client).await {
        Ok(settings) => Ok(unsafe_setting(&settings, &client.address, allow_volatile)),
        // They were visible before: the permission was revoked, or it is another server.
        Err(StoreError::Unusable(e)) if is_forbidden(&e) => Ok(None),
        Err(other) => Err(other),
    }
}

async fn read_settings(client: &RedisClient) -> Result<HashMap<String, String>, StoreError> {
    client
        .run_command(redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").arg("appendonly"))
        .await
}

/// `None`, with a warning, if the user may not run the command.
fn warn_if_hidden<T>(
    client: &RedisClient,
    subject: &str,
    reply: Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    match reply {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Unusable(e)) if is_forbidden(&e) => {
            tracing::warn!(server = %client.address, "Redis does not show {subject}: not checked");
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

pub(super) fn is_forbidden(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    ["noperm", "unknown command"].iter().any(|text| error.contains(text))
}

fn check_version(info: &str) -> Result<(), StoreError> {
    let version = info.lines().find_map(|line| line.trim().strip_prefix("redis_version:"));
    let mut parts = version.unwrap_or_default().split('.').map(|part| part.parse::<u32>().ok());
    let (Some(Some(major)), Some(Some(minor))) = (parts.next(), parts.next()) else {
        // Not a Redis server: an unsupported one fails at the scripts.
        return Ok(());
    };
    if (major, minor) >= MIN_VERSION {
        return Ok(());
    }
    Err(StoreError::Unusable(format!(
        "Redis {major}.{minor} is too old, {}.{} or newer (or Valkey) is needed",
        MIN_VERSION.0, MIN_VERSION.1
    )))
}

fn unsafe_setting(
    settings: &HashMap<String, String>,
    address: &str,
    allow_volatile: bool,
) -> Option<String> {
    let setting = |name: &str| settings.get(name).map(String::as_str);
    if let Some(policy) = setting("maxmemory-policy")
        && policy != "noeviction"
    {
        return Some(format!(
            "Redis at {address} has maxmemory-policy `{policy}` and may drop state at any time; \
             set `maxmemory-policy noeviction`, in redis.conf and by CONFIG SET"
        ));
    }
    if setting("appendonly") == Some("no") && !allow_volatile {
        return Some(format!(
            "Redis at {address} has `appendonly no` and loses acknowledged writes when it stops; \
             set `appendonly yes`, or accept the loss with `allow_volatile: true`"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_version_that_is_too_old_is_refused() {
        for good in ["7.0.15", "7.2.4", "8.0.0", "255.255.255", "unknown"] {
            let info = format!("# Server\r\nredis_version:{good}\r\nredis_mode:standalone\r\n");
            assert_eq!(check_version(&info), Ok(()), "{good}");
        }
        let refused = check_version("redis_version:6.2.14\r\n").unwrap_err().to_string();
        assert!(refused.contains("6.2") && refused.contains("7.0"), "{refused}");
    }
}
