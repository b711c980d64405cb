//! What changes while the agent runs, because its configuration was read again.

use super::heartbeat::Heartbeater;
use super::limits::SendLimits;
use crate::config::{AgentConfig, NicConfig as Configured};
use crate::data::nics::Nic;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// Applies each change until there can be no more.
pub(super) async fn apply_config_changes(
    mut config: watch::Receiver<AgentConfig>,
    limits: &SendLimits,
    nics: &[Arc<Nic>],
    heart: &Heartbeater,
) {
    while config.changed().await.is_ok() {
        let now = config.borrow_and_update().clone();
        limits.set_agent_limit(now.bwlimit);
        for nic in nics {
            let configured = now.data_plane_endpoints.iter().find(|c| is_configured_as(c, nic));
            if let Some(configured) = configured {
                nic.rate.set_limit(configured.settings.bwlimit, Instant::now());
            }
        }
        heart.set_interval(now.heartbeat_interval);
    }
}

/// Whether a NIC is the one that is configured so; its port may have been chosen by the kernel.
fn is_configured_as(configured: &Configured, nic: &Nic) -> bool {
    let (wanted, has) = (&configured.endpoint, &nic.endpoint);
    let any_port = wanted.port == Some(0);
    wanted.address == has.address
        && wanted.iface == has.iface
        && (any_port || wanted.authority() == has.authority())
}
