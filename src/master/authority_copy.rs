//! The certificate authority of the installation in the store: a master that has none in its `data_dir` takes that of the
//! other masters. Its key is sealed.

use crate::config::MasterConfig;
use crate::identity::{CertificateAuthority, IdentityError, Sealer};
use crate::scheduler::stored_authority;
use crate::store::{Store, StoreError};
use crate::util::backoff::Backoff;
use anyhow::Context as _;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const STORE_RETRY_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(200), Duration::from_secs(2));

/// Writes the authority in the store to the `data_dir`, if there is one in the store and none in the `data_dir`. Waits for
/// the store: without it a second authority would be made.
///
/// # Errors
/// The store cannot be used, or was not available before `shutdown`; the authority was sealed with another key, or the
/// files cannot be written.
pub(super) async fn fetch_authority<S: Store, F>(
    config: &MasterConfig,
    sealer: &Sealer,
    open: &impl Fn() -> F,
    shutdown: &CancellationToken,
) -> anyhow::Result<()>
where
    F: Future<Output = Result<Arc<S>, StoreError>>,
{
    if config.replace_authority || CertificateAuthority::exists_in(&config.data_dir) {
        return Ok(());
    }
    let records = async {
        let mut failures = 0;
        loop {
            let loaded = async { open().await?.load().await };
            match loaded.await {
                Err(StoreError::Unavailable(reason)) => {
                    if failures == 0 {
                        tracing::warn!(
                            reason,
                            "this master has no certificate authority, and waits for the store, which may have one"
                        );
                    }
                    tokio::time::sleep(STORE_RETRY_BACKOFF.delay(failures)).await;
                    failures += 1;
                }
                loaded => return loaded,
            }
        }
    };
    let records = tokio::select! {
        records = records => records.context("read the store")?,
        () = shutdown.cancelled() => anyhow::bail!("stopped before the store was available"),
    };
    let Some(stored) = stored_authority(&records)? else { return Ok(()) };
    stored.write_files(&config.data_dir, sealer).map_err(|e| {
        IdentityError(format!(
            "{e}; or let this master make another authority (ctl master --replace-authority): all agents must then join \
             again"
        ))
    })?;
    tracing::info!(authority = %stored.hash, "took the certificate authority of this installation from the store");
    Ok(())
}
