//! The listeners of the API: plain HTTP on loopback, TLS on all other addresses.

use super::http::{ApiAuthority, ApiListener};
use crate::config::MasterConfig;
use crate::identity::{
    ApiCertificate, AuthoritySet, CertificateAuthority, HostName, IdentityError, Sealer,
    SharedAuthorities, server_config,
};
use anyhow::Context as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket};
use url::{Host, Url};

/// The kernel limits it to `net.core.somaxconn`. When a master starts, all agents connect at once: with the usual 128
/// most of them would retry for seconds.
const LISTEN_BACKLOG: u32 = 8_192;

/// Bound listeners, in the order of the configuration; at least one.
pub(super) struct Listeners {
    pub(super) all: Vec<ApiListener>,
    addresses: Vec<SocketAddr>,
    /// For certificates of agents. `None`: no address has TLS.
    pub(super) authority: Option<ApiAuthority>,
    /// What an operator should change.
    pub(super) warnings: Vec<String>,
}

impl Listeners {
    /// Whether an address needs TLS.
    pub(super) fn need_tls(config: &MasterConfig) -> bool {
        config.listen.iter().any(|address| needs_tls(config, address))
    }

    /// Binds the addresses of the configuration. Addresses other than loopback get TLS, unless the configuration is
    /// `insecure`. Blocks for a few file operations.
    ///
    /// # Errors
    /// An address cannot be bound; [`IdentityError`] if TLS is needed and cannot be set up.
    pub(super) fn bind(config: &MasterConfig, sealer: &Sealer) -> anyhow::Result<Listeners> {
        let tls = match config.listen.iter().find(|address| needs_tls(config, address)) {
            None => None,
            Some(address) => Some(set_up_tls(config, sealer).map_err(|e| {
                IdentityError(format!(
                    "cannot serve TLS on {address}: {e}; correct that, or listen on loopback only (listen: \
                     127.0.0.1:8888), or serve plain HTTP to every host that reaches the address (--insecure)"
                ))
            })?),
        };
        let mut listeners = Listeners {
            all: Vec::new(),
            addresses: Vec::new(),
            authority: tls.as_ref().map(|(_, authority)| authority.clone()),
            warnings: Vec::new(),
        };
        for address in &config.listen {
            let listener = bind_listener(*address).with_context(|| {
                format!("listen on {address}: choose another with --listen ADDR:PORT")
            })?;
            let bound = listener.local_addr().context("read the bound address")?;
            let tls = tls.as_ref().filter(|_| needs_tls(config, address));
            let tls = tls.map(|(server, _)| Arc::clone(server));
            if tls.is_none() && !is_loopback(bound.ip()) {
                let warning = format!(
                    "{bound} serves plain HTTP without authentication (insecure): every host that reaches it has all \
                     rights"
                );
                tracing::warn!("INSECURE: {warning}");
                listeners.warnings.push(warning);
            }
            tracing::info!(address = %bound, tls = tls.is_some(), "API listening");
            listeners.all.push(ApiListener { listener, tls });
            listeners.addresses.push(bound);
        }
        Ok(listeners)
    }

    /// The URL of the first listener that other hosts reach, or of the first one that has a specific address. `None`: the
    /// addresses stand for all of this host.
    pub(super) fn advertised_url(&self) -> Option<String> {
        let specific = || {
            let all = self.addresses.iter().enumerate();
            all.filter(|(_, address)| !address.ip().is_unspecified())
        };
        let remote = specific().find(|(_, address)| !is_loopback(address.ip()));
        remote.or_else(|| specific().next()).map(|(index, _)| self.url(index))
    }

    /// The URL of a listener.
    pub(super) fn url(&self, index: usize) -> String {
        let scheme = if self.all[index].tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addresses[index])
    }
}

fn needs_tls(config: &MasterConfig, address: &SocketAddr) -> bool {
    !config.insecure && !is_loopback(address.ip())
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn set_up_tls(
    config: &MasterConfig,
    sealer: &Sealer,
) -> Result<(Arc<rustls::ServerConfig>, ApiAuthority), IdentityError> {
    let authority =
        CertificateAuthority::load_or_create(&config.data_dir, config.installation.as_deref())?;
    let (certificate, operator) = match &config.tls {
        Some(files) => {
            (ApiCertificate::Operator(files.clone()), Some(files.authority_hash()?.into()))
        }
        None => (ApiCertificate::Own(host_names(config)), None),
    };
    tracing::info!(authority = %authority.hash().to_hex(), "the API is served with TLS");
    let authorities = SharedAuthorities::new(AuthoritySet::of_issuer(Arc::new(authority)));
    let server = server_config(&authorities, certificate)?;
    Ok((server, ApiAuthority { authorities, operator, sealer: sealer.clone() }))
}

/// The names by which clients may reach this master.
fn host_names(config: &MasterConfig) -> Vec<HostName> {
    let specific = config.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
    let mut names: Vec<HostName> = specific.map(HostName::Address).collect();
    let nodename = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if nodename.is_ascii() && !nodename.is_empty() {
        names.push(HostName::Dns(nodename));
    }
    let advertised = config.advertise_url.as_deref().and_then(|url| Url::parse(url).ok());
    match advertised.as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => names.push(HostName::Dns(name.to_owned())),
        Some(Host::Ipv4(address)) => names.push(HostName::Address(address.into())),
        Some(Host::Ipv6(address)) => names.push(HostName::Address(address.into())),
        None => {}
    }
    let allowed = config.allowed_hosts.iter().filter(|name| name.is_ascii());
    names.extend(allowed.cloned().map(HostName::Dns));
    names
}

fn bind_listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}
