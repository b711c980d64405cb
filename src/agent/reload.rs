//! Applies changes of the configuration while the agent runs.

use super::heartbeat::Heartbeater;
use super::limits::SendLimits;
use crate::config::{AgentConfig, NicConfig};
use crate::data::nics::Nic;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// Returns when the sender of the configuration is dropped.
pub(super) async fn apply_config_changes(
    mut changes: watch::Receiver<AgentConfig>,
    limits: &SendLimits,
    nics: &[Arc<Nic>],
    heartbeater: &Heartbeater,
) {
    while changes.changed().await.is_ok() {
        let config = changes.borrow_and_update().clone();
        limits.set_agent_limit(config.bwlimit);
        for nic in nics {
            let mut configs = config.data_plane_endpoints.iter();
            if let Some(config) = configs.find(|config| is_config_of(config, nic)) {
                nic.rate.set_limit(config.settings.bwlimit, Instant::now());
            }
        }
        heartbeater.set_interval(config.heartbeat_interval);
    }
}

/// The port of the NIC may have been chosen by the kernel.
fn is_config_of(config: &NicConfig, nic: &Nic) -> bool {
    let (configured, actual) = (&config.endpoint, &nic.endpoint);
    configured.address == actual.address
        && configured.iface == actual.iface
        && (configured.port == Some(0) || configured.authority() == actual.authority())
}
