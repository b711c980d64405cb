//! The certificate of the agent: the first one by a join token, and each that follows.
//!
//! A join may be repeated with the same key, so an agent that is killed before it has stored the reply tries again at its
//! next start. The token is sent only to a master that presents the authority of the token.

use crate::client::{ClientError, ClientOptions, MasterClient};
use crate::config::AgentConfig;
use crate::identity::{AgentIdentity, IdentityError, ServerTrust};
use crate::util::backoff::Backoff;
use crate::util::private_files;
use crate::wire::WorkerId;
use crate::wire::join::{IssuedCertificate, JoinRequest, JoinToken};
use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Larger files hold no token.
const MAX_TOKEN_FILE_BYTES: u64 = 4 << 10;
/// Between attempts to join and to renew.
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Between renewals.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
/// The time of the renewal is compared with the clock so often: the host may have been suspended.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// The identity of this agent, for which it joins if it has not. `None`: it needs none.
///
/// # Errors
/// The token or a file cannot be used, or the master refuses the token: an operator has to change something.
pub(super) async fn obtain_identity(
    config: &AgentConfig,
) -> Result<Option<Arc<AgentIdentity>>, IdentityError> {
    let has_tls = config.master_urls.iter().any(|url| url.starts_with("https:"));
    if let (false, Some(file)) = (has_tls, &config.join_token_file) {
        return Err(IdentityError(format!(
            "join_token_file ({}) needs an https:// master_url; over plain HTTP a token would be readable on the \
             network, and agents on the master's host need none",
            file.display()
        )));
    }
    let Some(data_dir) = config.data_dir.clone().filter(|_| has_tls) else { return Ok(None) };
    let (worker, file) = (config.worker_id.clone(), config.join_token_file.clone());
    let find = move || find_identity(&data_dir, &worker, file.as_deref());
    let (identity, join) = match run_blocking(find).await? {
        None => return Ok(None),
        Some(found) => found,
    };
    if let Some(token) = join {
        join_until_answered(config, &identity, token).await?;
    }
    let times = identity.certificates().borrow().as_ref().map(|certificate| certificate.times);
    if times.is_some_and(|times| UnixTime::now() >= times.expiry) {
        return Err(expired(&config.worker_id));
    }
    Ok(Some(identity))
}

/// An identity, and the token if the agent has to join first.
type FoundIdentity = (Arc<AgentIdentity>, Option<JoinToken>);

/// The identity to use. Blocks.
fn find_identity(
    data_dir: &Path,
    worker: &WorkerId,
    file: Option<&Path>,
) -> Result<Option<FoundIdentity>, IdentityError> {
    let joined = AgentIdentity::load(data_dir, worker)?;
    let token = match file.map(|file| read_token(file).map_err(|e| token_error(file, &e))) {
        None => None,
        Some(Ok(token)) => Some(token),
        // The file of a token that is used may be removed.
        Some(Err(_)) if joined.is_some() && file.is_some_and(|file| !file.exists()) => None,
        Some(Err(error)) => return Err(error),
    };
    Ok(match (joined, token) {
        (Some(joined), Some(token)) if joined.token() == token.id => Some((Arc::new(joined), None)),
        (_, Some(token)) => {
            let identity = AgentIdentity::for_join(data_dir, worker, &token)?;
            Some((Arc::new(identity), Some(token)))
        }
        (joined, None) => joined.map(|identity| (Arc::new(identity), None)),
    })
}

fn read_token(file: &Path) -> io::Result<JoinToken> {
    let bytes = private_files::read_file(file, MAX_TOKEN_FILE_BYTES)?;
    let invalid = |e: &'static str| io::Error::new(io::ErrorKind::InvalidData, e);
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid("is not text"))?;
    text.trim().parse().map_err(invalid)
}

fn token_error(file: &Path, e: &io::Error) -> IdentityError {
    IdentityError(format!(
        "the join token, {}: {e}; create one: ctl token create --join --worker ID --path DIR",
        file.display()
    ))
}

fn expired(worker: &WorkerId) -> IdentityError {
    IdentityError(format!(
        "the certificate of worker `{worker}` has expired (if the clock of this host is right); create another join \
         token: ctl token create --join --worker {worker} --path DIR, and start the agent with it (--join-token-file)"
    ))
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IdentityError> + Send + 'static,
) -> Result<T, IdentityError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|e| IdentityError(format!("the task of the agent's identity: {e}")))?
}

/// Joins, again and again while no master answers.
async fn join_until_answered(
    config: &AgentConfig,
    identity: &Arc<AgentIdentity>,
    token: JoinToken,
) -> Result<(), IdentityError> {
    let trust = ServerTrust::of_hash(token.authority);
    let options = ClientOptions { trust: trust.clone(), ..ClientOptions::default() };
    let client = MasterClient::new(config.master_urls.clone(), options)
        .map_err(|e| IdentityError(e.to_string()))?;
    let request = JoinRequest {
        token,
        worker_id: config.worker_id.clone(),
        signing_request: identity.signing_request()?,
    };
    let mut failures = 0;
    let issued = loop {
        match client.join(&request).await {
            Ok(issued) => break issued,
            Err(error) if error.is_retryable() => {
                tracing::warn!("cannot join, and will try again: {error}");
                failures += 1;
                tokio::time::sleep(RETRY_BACKOFF.delay(failures)).await;
            }
            Err(error) => return Err(join_refused(&error)),
        }
    };
    let (own, authority) = (Arc::clone(identity), trust.found_authority().cloned());
    let expires_at = issued.expires_at;
    let paths: Vec<String> = issued.storage_paths.iter().map(ToString::to_string).collect();
    run_blocking(move || own.install(&issued, authority.as_ref())).await?;
    tracing::info!(worker = %config.worker_id, %expires_at, storage_paths = ?paths, "joined the master");
    Ok(())
}

fn join_refused(error: &ClientError) -> IdentityError {
    let hint = match error {
        ClientError::Problem { problem, .. } => problem.hint.as_deref(),
        _ => None,
    };
    let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    IdentityError(format!("cannot join: {error}{hint}"))
}

/// Renews the certificate whenever two thirds of its lifetime are over, and when another authority issues certificates.
/// Never returns.
pub(super) async fn renew_certificates(identity: Arc<AgentIdentity>, client: MasterClient) {
    let mut failures = 0;
    loop {
        let times = identity.certificates().borrow().as_ref().map(|certificate| certificate.times);
        let Some(times) = times else { return std::future::pending().await };
        let now = UnixTime::now();
        if now < times.renewal {
            let left = Duration::from_secs(times.renewal.as_secs() - now.as_secs());
            tokio::select! {
                () = tokio::time::sleep(left.min(MAX_SLEEP)) => continue,
                () = identity.wait_for_renewal_request() => {}
            }
        }
        match renew(&identity, &client).await {
            Ok(expires_at) => {
                failures = 0;
                tracing::info!(%expires_at, "the certificate is renewed");
                // By a wrong clock the next renewal may be due at once, again and again.
                tokio::time::sleep(MIN_RENEWAL_INTERVAL).await;
            }
            Err(error) => {
                let has_expired = now >= times.expiry;
                let advice = has_expired.then(|| format!("; {}", expired(identity.worker())));
                let advice = advice.unwrap_or_default();
                tracing::warn!(
                    "the certificate is not renewed, the agent tries again: {error}{advice}"
                );
                failures += 1;
                tokio::time::sleep(RETRY_BACKOFF.delay(failures)).await;
            }
        }
    }
}

async fn renew(identity: &Arc<AgentIdentity>, client: &MasterClient) -> Result<Timestamp, String> {
    let issued: IssuedCertificate = client.renew_certificate().await.map_err(|e| e.to_string())?;
    let (own, expires_at) = (Arc::clone(identity), issued.expires_at);
    run_blocking(move || own.install(&issued, None)).await.map_err(|e| e.to_string())?;
    Ok(expires_at)
}
