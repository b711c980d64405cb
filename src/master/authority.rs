//! The certificate authority of this master, and that of the store, which all masters of the installation have.
//!
//! A rotation is one commit of the leader. Each master adopts what was committed, the leader at once and the others within
//! a second: it issues and accepts certificates by it, and replaces its own two files, from which it starts the next time.
//! A master that was stopped meanwhile has the files of an authority that the store names as the former one.

use crate::config::MasterConfig;
use crate::identity::{
    AuthoritySet, CertificateAuthority, IdentityError, SealedAuthority, Sealer, SharedAuthorities,
};
use crate::scheduler::{AUTHORITY_KEY, parse_authority};
use crate::store::{Store, StoreError};
use crate::util::backoff::Backoff;
use crate::wire::Digest;
use anyhow::Context as _;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const STORE_RETRY_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(200), Duration::from_secs(2));

/// The authority of a master that serves TLS.
pub(super) struct MasterAuthority {
    authorities: Arc<SharedAuthorities>,
    sealer: Sealer,
    data_dir: PathBuf,
    /// What `authorities` were made from.
    adopted: Mutex<SealedAuthority>,
}

impl MasterAuthority {
    /// That of `authorities`, which is in the files of `data_dir`.
    ///
    /// # Errors
    /// Its key cannot be sealed.
    pub(super) fn new(
        authorities: Arc<SharedAuthorities>,
        sealer: Sealer,
        data_dir: &Path,
    ) -> Result<Self, IdentityError> {
        let own = SealedAuthority::seal(authorities.current().issuer(), &sealer)?;
        let (adopted, data_dir) = (Mutex::new(own), data_dir.to_owned());
        Ok(MasterAuthority { authorities, sealer, data_dir, adopted })
    }

    #[cfg(test)]
    pub(super) fn authorities(&self) -> &SharedAuthorities {
        &self.authorities
    }

    /// The authority as it is stored.
    pub(super) fn sealed(&self) -> SealedAuthority {
        self.adopted.lock().clone()
    }

    /// Uses the authority of the store from now on. Blocks for a few file operations if it is another one.
    ///
    /// # Errors
    /// It is neither that of this master nor one that replaced it, and the clients of one refuse the other; or it was
    /// sealed with another key.
    pub(super) fn adopt(&self, stored: &SealedAuthority) -> Result<(), IdentityError> {
        let mut adopted = self.adopted.lock();
        if *adopted == *stored {
            return Ok(());
        }
        let own = adopted.hash;
        if !stored.succeeds(own) {
            return Err(other_authority(own, stored.hash));
        }
        if stored.hash == own {
            let issuer = Arc::clone(self.authorities.current().issuer());
            self.authorities.replace(AuthoritySet::new(issuer, stored)?);
        } else {
            let issuer = Arc::new(stored.open(&self.sealer)?);
            self.authorities.replace(AuthoritySet::new(Arc::clone(&issuer), stored)?);
            tracing::info!(from = %own, to = %stored.hash, "certificates are issued by another authority from now on");
            // The next start without these files takes them from the store.
            if let Err(error) = issuer.write_files(&self.data_dir) {
                tracing::error!(%error, "the new authority is not written to the data_dir; correct that before the next start");
            }
        }
        *adopted = stored.clone();
        Ok(())
    }

    /// Uses the authority of the store, if there is one.
    ///
    /// # Errors
    /// The store cannot be read; as [`adopt`](Self::adopt).
    pub(super) async fn refresh(self: &Arc<Self>, store: &impl Store) -> anyhow::Result<()> {
        if let Some(stored) = read_authority(store).await? {
            self.adopt_off_runtime(Arc::new(stored)).await?;
        }
        Ok(())
    }

    /// [`adopt`](Self::adopt) on a thread that may block.
    pub(super) async fn adopt_off_runtime(
        self: &Arc<Self>,
        stored: Arc<SealedAuthority>,
    ) -> anyhow::Result<()> {
        let own = Arc::clone(self);
        let adopted = tokio::task::spawn_blocking(move || own.adopt(&stored)).await;
        Ok(adopted.context("adopt the authority of the store")??)
    }
}

fn other_authority(own: Digest, theirs: Digest) -> IdentityError {
    IdentityError(format!(
        "the certificate authority of this master ({own}) is another one than that of the store ({theirs}): remove ca.pem \
         and ca.key of its data_dir, and start it again; it then takes that of the store"
    ))
}

/// The authority in the store.
async fn read_authority(store: &impl Store) -> anyhow::Result<Option<SealedAuthority>> {
    let record = store.record(AUTHORITY_KEY).await?;
    Ok(record.as_deref().map(parse_authority).transpose()?)
}

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
    let stored = async {
        let mut failures = 0;
        loop {
            let read = async { read_authority(open().await?.as_ref()).await };
            match read.await {
                Err(error) if is_unavailable(&error) => {
                    if failures == 0 {
                        tracing::warn!(
                            %error,
                            "this master has no certificate authority, and waits for the store, which may have one"
                        );
                    }
                    tokio::time::sleep(STORE_RETRY_BACKOFF.delay(failures)).await;
                    failures += 1;
                }
                read => return read,
            }
        }
    };
    let stored = tokio::select! {
        stored = stored => stored.context("read the store")?,
        () = shutdown.cancelled() => anyhow::bail!("stopped before the store was available"),
    };
    let Some(stored) = stored else { return Ok(()) };
    let opened = stored.open(sealer).map_err(|e| {
        IdentityError(format!(
            "{e}; or let this master make another authority (ctl master --replace-authority): all agents must then join \
             again"
        ))
    })?;
    opened.write_files(&config.data_dir)?;
    tracing::info!(authority = %stored.hash, "took the certificate authority of this installation from the store");
    Ok(())
}

/// Whether the store may answer a later attempt.
pub(super) fn is_unavailable(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Unavailable(_)))
}
