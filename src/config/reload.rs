//! The reload of a configuration: some changes take effect immediately, others need a restart.

use super::master::{AuditConfig, Limits, SyncDefaults};
use super::{AgentConfig, LogConfig, MasterConfig, NicConfig, StoreConfig};

/// The changes of a reload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadReport {
    /// Keys with changes that are in effect.
    pub applied: Vec<&'static str>,
    /// Keys with changes that need a restart; the old values remain in effect.
    pub needs_restart: Vec<&'static str>,
}

impl ReloadReport {
    fn apply_change<T: PartialEq>(&mut self, key: &'static str, old: &mut T, new: T) {
        if *old != new {
            *old = new;
            self.applied.push(key);
        }
    }

    fn mark_for_restart<T: PartialEq>(&mut self, key: &'static str, old: &T, new: &T) {
        if old != new {
            self.needs_restart.push(key);
        }
    }
}

/// Takes `$new` apart. Changes of the first fields are applied to `$old`, changes of the second fields need a restart,
/// and the last fields are left to the caller. All fields are listed: a new one does not compile without an entry here.
macro_rules! reload_fields {
    (
        $report:ident, $prefix:literal, $old:expr, $new:ident: $type:ident,
        apply [$($applied:ident),*], restart [$($fixed:ident),*], other [$($other:ident),*]
    ) => {
        let $type { $($applied,)* $($fixed,)* $($other,)* } = $new;
        $($report.apply_change(
            concat!($prefix, stringify!($applied)), &mut $old.$applied, $applied,
        );)*
        $($report.mark_for_restart(
            concat!($prefix, stringify!($fixed)), &$old.$fixed, &$fixed,
        );)*
    };
}

/// A configuration that can be reloaded.
pub trait Reload: Clone {
    /// Applies the changes in `new` that take effect immediately.
    fn reload(&mut self, new: Self) -> ReloadReport;

    /// The settings of the log.
    fn log(&self) -> &LogConfig;

    /// The settings of the log.
    fn log_mut(&mut self) -> &mut LogConfig;
}

impl Reload for MasterConfig {
    fn reload(&mut self, new: Self) -> ReloadReport {
        let mut report = ReloadReport::default();
        reload_fields!(
            report, "", self, new: MasterConfig,
            apply [allowed_hosts, allowed_networks, heartbeat_interval, retention, bwlimit, storages, local_agent_uids, agent_certificate_lifetime],
            restart [
                listen, tls, insecure, replace_authority, advertise_url, installation, leadership_lease, data_dir,
                secrets_file, credentials_dir,
                worker_heartbeat_timeout, lease, poll_wait_max
            ],
            other [store, limits, audit, defaults, log]
        );
        reload_fields!(
            report, "limits.", self.limits, limits: Limits,
            apply [max_active_syncs, max_queued_syncs, max_workers, no_space_timeout, window_tasks, max_file_list_bytes],
            restart [max_connections, max_unverified_connections, max_total_body_bytes], other []
        );
        reload_fields!(
            report, "audit.", self.audit, audit: AuditConfig,
            apply [max_file_size, max_files], restart [], other []
        );
        reload_fields!(
            report, "defaults.", self.defaults, defaults: SyncDefaults,
            apply [chunk_size_mb, max_retries, max_worker_losses], restart [], other []
        );
        reload_fields!(
            report, "log.", self.log, log: LogConfig,
            apply [level, file], restart [format], other []
        );
        // `data_dir` determines the directory of an embedded store.
        let is_embedded = |store: &StoreConfig| matches!(store, StoreConfig::Embedded { .. });
        if !(is_embedded(&self.store) && is_embedded(&store)) {
            report.mark_for_restart("redis", &self.store, &store);
        }
        report
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn log_mut(&mut self) -> &mut LogConfig {
        &mut self.log
    }
}

impl Reload for AgentConfig {
    fn reload(&mut self, new: Self) -> ReloadReport {
        let mut report = ReloadReport::default();
        reload_fields!(
            report, "", self, new: AgentConfig,
            apply [heartbeat_interval, drain_timeout, bwlimit, labels],
            restart [
                worker_id, ca_file, join_token_file, storage_paths, slots, buffer_memory, direct_io,
                encrypt_content, data_dir, run_as, sandbox
            ],
            other [master_urls, control_plane_address, data_plane_endpoints, log]
        );
        reload_fields!(
            report, "log.", self.log, log: LogConfig,
            apply [level, file], restart [format], other []
        );
        report.mark_for_restart("master_url", &self.master_urls, &master_urls);
        let key = "network.control_plane_address";
        report.mark_for_restart(key, &self.control_plane_address, &control_plane_address);
        let key = "network.data_plane_endpoints";
        if without_bwlimits(&self.data_plane_endpoints) == without_bwlimits(&data_plane_endpoints) {
            report.apply_change(key, &mut self.data_plane_endpoints, data_plane_endpoints);
        } else {
            report.mark_for_restart(key, &self.data_plane_endpoints, &data_plane_endpoints);
        }
        report
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn log_mut(&mut self) -> &mut LogConfig {
        &mut self.log
    }
}

fn without_bwlimits(nics: &[NicConfig]) -> Vec<NicConfig> {
    let mut nics = nics.to_vec();
    nics.iter_mut().for_each(|nic| nic.settings.bwlimit = None);
    nics
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, load_agent, load_master};

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.yml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn master(text: &str) -> MasterConfig {
        let (_dir, path) = file(&format!("lease: 30s\n{text}"));
        load_master(Some(&path), &Env::empty()).unwrap().config
    }

    fn agent(shared: &str, worker: &str, endpoint: &str) -> AgentConfig {
        let paths = match worker.contains("storage_paths") {
            true => "",
            false => "    storage_paths: [/a]\n",
        };
        let text = format!(
            "drain_timeout: 60s\n{shared}workers:\n  - worker_id: w\n{paths}{worker}    network:\n      \
             control_plane_address: 10.0.0.1\n      data_plane_endpoints: [{endpoint}]\n"
        );
        let text = match text.contains("master_url") {
            true => text,
            false => format!("master_url: http://m:1\n{text}"),
        };
        let (_dir, path) = file(&text);
        load_agent(&path, None, &Env::empty()).unwrap().config
    }

    #[test]
    fn each_key_of_a_master_is_applied_or_needs_a_restart() {
        for (line, key, applied) in [
            ("retention: 1d", "retention", true),
            ("heartbeat_interval: 1s", "heartbeat_interval", true),
            ("limits: {max_active_syncs: 1}", "limits.max_active_syncs", true),
            ("limits: {no_space_timeout: 1s}", "limits.no_space_timeout", true),
            ("limits: {window_tasks: 9}", "limits.window_tasks", true),
            ("limits: {max_file_list_bytes: 1MiB}", "limits.max_file_list_bytes", true),
            ("limits: {max_connections: 99}", "limits.max_connections", false),
            ("bwlimit: \"08:00-18:00 100MiB/s\"", "bwlimit", true),
            ("storages: [{id: a, paths: [/d], workers: [w]}]", "storages", true),
            ("defaults: {chunk_size_mb: 1}", "defaults.chunk_size_mb", true),
            ("defaults: {max_retries: 1}", "defaults.max_retries", true),
            ("defaults: {max_worker_losses: 1}", "defaults.max_worker_losses", true),
            ("log: {level: debug}", "log.level", true),
            ("log: {file: /var/log/ctl.log}", "log.file", true),
            ("log: {format: json}", "log.format", false),
            ("listen: 0.0.0.0:1", "listen", false),
            ("insecure: true", "insecure", false),
            ("tls: {cert_file: /c, key_file: /k, ca_file: /a}", "tls", false),
            ("advertise_url: http://a:1", "advertise_url", false),
            ("installation: a", "installation", false),
            ("leadership_lease: 9s", "leadership_lease", false),
            ("worker_heartbeat_timeout: 99s", "worker_heartbeat_timeout", false),
            ("poll_wait_max: 9s", "poll_wait_max", false),
            ("redis: {host: a}", "redis", false),
        ] {
            let (old, new) = (master(""), master(line));
            let mut running = old.clone();
            let found = running.reload(new.clone());
            let (changed, kept) = match applied {
                true => (&found.applied, &found.needs_restart),
                false => (&found.needs_restart, &found.applied),
            };
            assert_eq!((changed.as_slice(), kept.len()), (&[key][..], 0), "{line}: {found:?}");
            assert_eq!(running, if applied { new.clone() } else { old }, "{line}");
            // A second reload reports only the keys that need a restart.
            assert_eq!(running.reload(new).needs_restart, found.needs_restart, "{line}");
        }
        let mut running = master("");
        let both =
            running.reload(MasterConfig { lease: running.lease * 2, ..master("retention: 1d") });
        assert_eq!((both.applied, both.needs_restart), (vec!["retention"], vec!["lease"]));
        let moved = MasterConfig { data_dir: "/elsewhere".into(), ..running.clone() };
        assert_eq!(running.reload(moved).needs_restart, ["data_dir"]);
    }

    #[test]
    fn each_key_of_an_agent_is_applied_or_needs_a_restart() {
        let plain = "10.0.0.1";
        for (shared, worker, endpoint, key, applied) in [
            ("heartbeat_interval: 1s\n", "", plain, "heartbeat_interval", true),
            ("bwlimit: 1MiB/s\n", "", plain, "bwlimit", true),
            ("", "    drain_timeout: 1s\n", plain, "drain_timeout", true),
            ("labels: {rack: 3}\n", "", plain, "labels", true),
            ("", "    labels: {rack: 3}\n", plain, "labels", true),
            ("log: {level: debug}\n", "", plain, "log.level", true),
            ("log: {format: json}\n", "", plain, "log.format", false),
            ("", "", "{address: 10.0.0.1, bwlimit: 1MiB/s}", "network.data_plane_endpoints", true),
            ("", "", "{address: 10.0.0.1, weight: 7}", "network.data_plane_endpoints", false),
            ("", "", "10.0.0.2", "network.data_plane_endpoints", false),
            ("master_url: http://n:1\n", "", plain, "master_url", false),
            ("ca_file: /ca.pem\n", "", plain, "ca_file", false),
            ("slots: 3\n", "", plain, "slots", false),
            ("buffer_memory: 8MiB\n", "", plain, "buffer_memory", false),
            ("direct_io: true\n", "", plain, "direct_io", false),
            ("encrypt_content: false\n", "", plain, "encrypt_content", false),
            ("root_syncs: false\n", "", plain, "run_as", false),
            ("", "    run_as: {deny: [7]}\n", plain, "run_as", false),
            ("data_dir: /d\n", "", plain, "data_dir", false),
            ("", "    storage_paths: [{path: /a, local: true}]\n", plain, "storage_paths", false),
        ] {
            let (old, new) = (agent("", "", plain), agent(shared, worker, endpoint));
            let mut running = old.clone();
            let found = running.reload(new.clone());
            let (changed, kept) = match applied {
                true => (&found.applied, &found.needs_restart),
                false => (&found.needs_restart, &found.applied),
            };
            assert_eq!((changed.as_slice(), kept.len()), (&[key][..], 0), "{key}: {found:?}");
            assert_eq!(running, if applied { new } else { old }, "{key}");
        }
    }
}
