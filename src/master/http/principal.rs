//! From where a request comes: the principal of its connection and headers.
//!
//! Over loopback the kernel reports the user at the other end, so that a host needs no set-up. A header of a proxy voids
//! this: the connection then belongs to the proxy and not to the client.

use crate::identity::{
    AuthoritySet, CertificateTimes, Identity, PublicKey, Role as CertificateRole,
};
use crate::scheduler::{AgentKey, AgentRecord, Grant};
use crate::util::socket_owner::{ask_socket_owner, search_socket_owner};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::token::{Role, TokenView};
use axum::http::{HeaderMap, HeaderName};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Headers with which a proxy reports that a request is not its own.
const FORWARDING_HEADERS: [&str; 2] = ["forwarded", "via"];
/// … and the beginning of the other ones.
const FORWARDING_PREFIX: &str = "x-forwarded-";

/// The addresses of the connection of a request.
#[derive(Clone, Copy)]
pub(super) struct ConnectionAddresses {
    pub(super) local: Option<SocketAddr>,
    pub(super) client: Option<SocketAddr>,
}

/// From where a request comes. An extension of the request and of its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::master) enum Principal {
    /// A process of this host, connected over loopback.
    LocalUser {
        /// Its user.
        uid: u32,
    },
    /// The bearer of a token.
    Token {
        /// The token.
        view: Arc<TokenView>,
        /// Its rights; `None`: all, as an administrator.
        grant: Option<Arc<Grant>>,
    },
    /// An agent with a certificate.
    Agent(Arc<AgentRecord>),
    /// A client without credentials, on an address where none are asked for: an insecure one.
    Nobody,
}

/// The client of a TLS connection. An extension of its requests.
#[derive(Debug, Clone)]
pub(super) struct TlsClient {
    /// The certificate of an agent, if the client presents one; the handshake has verified it.
    pub(super) certificate: Option<Arc<ClientCertificate>>,
}

/// What the certificate of an agent states.
#[derive(Debug)]
pub(super) struct ClientCertificate {
    pub(super) agent: AgentKey,
    pub(super) public_key: PublicKey,
    times: CertificateTimes,
}

impl TlsClient {
    /// `presented`: by the client in the handshake, its own certificate first.
    pub(super) fn new(
        presented: Option<&[CertificateDer<'_>]>,
        authorities: Option<&AuthoritySet>,
    ) -> Self {
        let read = |presented| ClientCertificate::read(presented, authorities);
        let certificate = presented.and_then(read);
        TlsClient { certificate: certificate.map(Arc::new) }
    }

    /// Whether the agent asks for its next certificate about now: that of the connection has an age, or an authority that
    /// another one has replaced.
    pub(super) fn is_due_for_renewal(&self, authorities: Option<&AuthoritySet>) -> bool {
        let now = UnixTime::now();
        let issuer = authorities.map(|authorities| authorities.issuer().hash().into());
        self.certificate.as_ref().is_some_and(|certificate| {
            now >= certificate.times.renewal || certificate.agent.authority != issuer
        })
    }
}

impl ClientCertificate {
    /// `None`: it is not one of an agent.
    fn read(presented: &[CertificateDer<'_>], authorities: Option<&AuthoritySet>) -> Option<Self> {
        let certificate = presented.first()?;
        let role = Identity::of_certificate(certificate)?.role;
        let CertificateRole::Agent(worker) = role else { return None };
        let public_key = PublicKey::of_certificate(certificate).ok()?;
        let times = CertificateTimes::of_certificate(certificate).ok()?;
        let authority = authorities.and_then(|authorities| authorities.find_issuer(presented));
        let agent = AgentKey { worker, key: public_key.digest(), authority };
        Some(ClientCertificate { agent, public_key, times })
    }

    /// The connection may last longer than the certificates of its authority are accepted. The agent may have the next
    /// certificate, which only another connection presents; if it has not, that one is refused.
    ///
    /// # Errors
    /// 503 `authority_replaced`.
    pub(super) fn check_authority(
        &self,
        authorities: Option<&AuthoritySet>,
    ) -> Result<(), Problem> {
        let is_accepted = |issuer| authorities.is_some_and(|known| known.accepts(issuer));
        if self.agent.authority.is_some_and(is_accepted) {
            return Ok(());
        }
        let worker = &self.agent.worker;
        let detail = format!(
            "an authority issued the certificate of worker `{worker}` on this connection that the installation does not \
             use any more"
        );
        Err(Problem::new(ProblemCode::AuthorityReplaced, detail)
            .with_hint("send the request again on another connection"))
    }

    /// The connection may last longer than the certificate.
    ///
    /// # Errors
    /// 401 `expired`.
    pub(super) fn check_validity(&self) -> Result<(), Problem> {
        if UnixTime::now() < self.times.expiry {
            return Ok(());
        }
        let worker = &self.agent.worker;
        let detail = format!("the certificate of worker `{worker}` has expired");
        Err(Problem::new(ProblemCode::Expired, detail)
            .with_hint("see the log of the agent for why it was not renewed"))
    }
}

impl Principal {
    pub(super) fn token(view: TokenView) -> Self {
        let is_restricted = view.role != Role::Admin;
        let TokenView { scopes, may, run_as, .. } = view.clone();
        let grant = || Arc::new(Grant { scopes, may, run_as });
        let grant = is_restricted.then(grant);
        Principal::Token { view: Arc::new(view), grant }
    }
}

/// As the audit log names it, e.g. `uid:0`, `token:0123456789ab`.
impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Principal::LocalUser { uid } => write!(f, "uid:{uid}"),
            Principal::Token { view, .. } => write!(f, "token:{}", view.id),
            Principal::Agent(agent) => write!(f, "worker:{}", agent.worker),
            Principal::Nobody => f.write_str("nobody"),
        }
    }
}

/// The user at the other end of a connection over loopback; `None`: the kernel names none. It is asked at the first
/// request and holds for the connection.
#[derive(Debug, Clone, Default)]
pub(super) struct LoopbackOwner(Arc<OnceCell<Option<u32>>>);

impl LoopbackOwner {
    async fn find(&self, addresses: ConnectionAddresses) -> Option<u32> {
        let (Some(client), Some(local)) = (addresses.client, addresses.local) else { return None };
        let find = || async {
            if let Some(uid) = ask_socket_owner(client, local) {
                return Some(uid);
            }
            let found =
                tokio::task::spawn_blocking(move || search_socket_owner(client, local)).await;
            match found {
                Ok(Ok(owner)) => owner,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the kernel does not report the owner of a connection");
                    None
                }
                Err(error) => {
                    tracing::error!(%error, "the search for the owner of a connection failed");
                    None
                }
            }
        };
        *self.0.get_or_init(find).await
    }
}

/// The one rule of what a connection without other credentials stands for.
///
/// # Errors
/// 401: the address has TLS, a proxy forwards the request, or the kernel names no user at the other end.
pub(super) async fn identify(
    addresses: ConnectionAddresses,
    owner: &LoopbackOwner,
    is_tls: bool,
    headers: &HeaderMap,
) -> Result<Principal, Problem> {
    let is_loopback = addresses.local.is_some_and(|local| local.ip().to_canonical().is_loopback());
    if !is_loopback && is_tls {
        return Err(Problem::new(ProblemCode::NoCredentials, "the request has no credentials")
            .with_hint(
                "commands: ctl auth login --token-file FILE; agents: join with a token (ctl token create --join \
                 --worker ID --path DIR, then ctl agent --join-token-file FILE)",
            ));
    }
    if !is_loopback {
        return Ok(Principal::Nobody);
    }
    if let Some(header) = headers.keys().find(|name| is_forwarding_header(name)) {
        let detail = format!(
            "the request came through a proxy (it has the header `{header}`), so the connection does not show its user"
        );
        return Err(Problem::new(ProblemCode::NoCredentials, detail)
            .with_hint("send a token (ctl auth login), or send the request to the master directly, from the master's host"));
    }
    match owner.find(addresses).await {
        Some(uid) => Ok(Principal::LocalUser { uid }),
        None => Err(Problem::new(
            ProblemCode::LocalUser,
            "the kernel names no user of this connection: its process has ended, or it belongs to another network namespace",
        )
        .with_hint("send the request again, from a process on the master's host that stays until it has the response")),
    }
}

fn is_forwarding_header(name: &HeaderName) -> bool {
    FORWARDING_HEADERS.contains(&name.as_str()) || name.as_str().starts_with(FORWARDING_PREFIX)
}
