//! The data-plane endpoints of this host: those that are listened on, and those without an address of this host (yet).

use super::listen::Listener;
use super::nics::Nic;
use crate::config::NicConfig as Configured;
use crate::wire::worker::{Endpoint, UnavailableEndpoint};
use parking_lot::Mutex;
use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

/// How often the address of an endpoint that is not there is looked for.
const LISTEN_RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The state of each endpoint, in the order of the configuration.
#[derive(Debug, Default)]
pub struct Endpoints(Mutex<Vec<Result<Endpoint, UnavailableEndpoint>>>);

impl Endpoints {
    /// Adds one that is listened on.
    pub(super) fn add(&self, endpoint: Endpoint) {
        self.0.lock().push(Ok(endpoint));
    }

    /// Adds one without an address of this host, and logs that.
    pub(super) fn add_unavailable(&self, configured: Configured, error: &Error) -> PendingEndpoint {
        let missing = unavailable(&configured.endpoint, error);
        tracing::error!(
            "data-plane endpoint {} is unavailable: {error}; it is used as soon as this host has its address",
            missing.endpoint
        );
        let mut all = self.0.lock();
        all.push(Err(missing));
        PendingEndpoint { index: all.len() - 1, nic: Nic::new(configured.clone()), configured }
    }

    /// Those that are listened on, with the ports that they have.
    pub fn available(&self) -> Vec<Endpoint> {
        self.0.lock().iter().filter_map(|endpoint| endpoint.as_ref().ok()).cloned().collect()
    }

    /// Those that are not, each with the reason.
    pub fn unavailable(&self) -> Vec<UnavailableEndpoint> {
        self.0.lock().iter().filter_map(|endpoint| endpoint.as_ref().err()).cloned().collect()
    }
}

fn unavailable(endpoint: &Endpoint, error: &Error) -> UnavailableEndpoint {
    let endpoint = endpoint.authority();
    let reason = format!("cannot listen on {endpoint}: {error}");
    UnavailableEndpoint { endpoint, reason }
}

/// Whether an error of listening means that the address does not exist yet: an interface or a name service that comes
/// up after the agent. Everything else (a port that is in use) is not resolved by waiting.
pub(super) fn is_address_missing(error: &Error) -> bool {
    let unresolved = error.to_string().starts_with("failed to lookup address");
    // `NotFound`: the interface of a link-local address.
    matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::NotFound) || unresolved
}

/// An endpoint without an address of this host at the start.
pub(super) struct PendingEndpoint {
    index: usize,
    configured: Configured,
    /// What connections from it are counted by, and those to it as soon as it is listened on.
    pub(super) nic: Arc<Nic>,
}

impl PendingEndpoint {
    /// Listens on it as soon as that is possible; `several`: see [`Listener::bind`].
    pub(super) async fn listen_when_available(
        self,
        endpoints: &Endpoints,
        several: bool,
    ) -> Listener {
        loop {
            tokio::time::sleep(LISTEN_RETRY_INTERVAL).await;
            let error = match Listener::bind(self.configured.clone(), several).await {
                Ok(mut listener) => {
                    let endpoint = listener.nic.endpoint.clone();
                    tracing::info!("data-plane endpoint {} is available", endpoint.authority());
                    endpoints.0.lock()[self.index] = Ok(endpoint);
                    listener.nic = self.nic;
                    return listener;
                }
                Err(error) => error,
            };
            endpoints.0.lock()[self.index] = Err(unavailable(&self.nic.endpoint, &error));
        }
    }
}
