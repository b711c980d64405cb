//! Handshakes between clients and servers with certificates of several authorities.

use super::authority::CertificateAuthority;
use super::*;
use crate::wire::join::{IssuedCertificate, JoinToken};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{ServerName, UnixTime};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The authority in a directory, and what its `ca.pem` makes a client trust.
fn authority(dir: &Path) -> (Arc<CertificateAuthority>, ServerTrust) {
    let authority = CertificateAuthority::load_or_create(dir, Some("site")).unwrap();
    (Arc::new(authority), ServerTrust::from_file(&dir.join("ca.pem")).unwrap())
}

/// A handshake; the error of the client as an operator reads it.
async fn connect(server: Arc<ServerConfig>, trust: &ServerTrust, host: &str) -> Result<(), String> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let accept = TlsAcceptor::from(server).accept(far);
    let client = TlsConnector::from(Arc::new(client_config(trust, None).unwrap()));
    let connect = client.connect(ServerName::try_from(host.to_owned()).unwrap(), near);
    let (_server, client) = tokio::join!(accept, connect);
    client.map(drop).map_err(|e| {
        let tls = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        tls.map_or_else(|| e.to_string(), describe_tls_error)
    })
}

fn only(authority: &Arc<CertificateAuthority>) -> Arc<SharedAuthorities> {
    SharedAuthorities::new(AuthoritySet::of_issuer(Arc::clone(authority)))
}

fn own(authority: &Arc<CertificateAuthority>) -> Arc<ServerConfig> {
    server_of(&only(authority))
}

fn server_of(authorities: &Arc<SharedAuthorities>) -> Arc<ServerConfig> {
    let hosts = vec![HostName::Address("10.0.0.1".parse().unwrap())];
    server_config(authorities, ApiCertificate::Own(hosts)).unwrap()
}

#[tokio::test]
async fn a_client_accepts_masters_of_its_installation_at_any_address_and_no_others() {
    let home = tempfile::tempdir().unwrap();
    let (here, trust) = authority(&home.path().join("a"));
    let (other, other_trust) = authority(&home.path().join("b"));
    for host in ["10.0.0.1", "10.0.0.2", "any.name"] {
        assert_eq!(connect(own(&here), &trust, host).await, Ok(()), "{host}");
    }
    let refused = connect(own(&other), &trust, "10.0.0.1").await.unwrap_err();
    assert!(refused.contains("another authority") && refused.contains("ca_file"), "{refused}");
    let no_trust = connect(own(&here), &ServerTrust::default(), "10.0.0.1").await.unwrap_err();
    assert!(no_trust.contains("another authority"), "{no_trust}");
    // A file may hold several authorities, while one replaces the other.
    let both = home.path().join("both.pem");
    let pem = |dir: &str| fs::read_to_string(home.path().join(dir).join("ca.pem")).unwrap();
    fs::write(&both, pem("b") + &pem("a")).unwrap();
    let both = ServerTrust::from_file(&both).unwrap();
    assert_eq!(connect(own(&here), &both, "10.0.0.1").await, Ok(()));
    assert_eq!(connect(own(&other), &both, "10.0.0.1").await, Ok(()));
    assert_eq!(connect(own(&other), &other_trust, "10.0.0.1").await, Ok(()));
}

#[tokio::test]
async fn the_authority_is_loaded_again_and_files_that_do_not_belong_together_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let (dir, other) = (home.path().join("a"), home.path().join("b"));
    let hash = authority(&dir).0.hash();
    assert_eq!(authority(&dir).0.hash(), hash);
    let mode = |file: &str| fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca.pem"), mode("ca.key")), (0o600, 0o600));
    assert_ne!(authority(&other).0.hash(), hash);
    let load = || {
        let error = CertificateAuthority::load_or_create(&dir, None).unwrap_err().to_string();
        assert!(error.contains(dir.to_str().unwrap()), "{error}");
        error
    };
    let own_key = fs::read(dir.join("ca.key")).unwrap();
    fs::copy(other.join("ca.key"), dir.join("ca.key")).unwrap();
    assert!(load().contains("another certificate"));
    fs::write(dir.join("ca.key"), "text").unwrap();
    assert!(load().contains("not a private key"));
    fs::write(dir.join("ca.key"), &own_key).unwrap();
    fs::set_permissions(dir.join("ca.key"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(load().contains("0600"));
    fs::remove_file(dir.join("ca.key")).unwrap();
    assert!(load().contains("restore it from a backup"));
    fs::write(dir.join("ca.pem"), "text").unwrap();
    fs::write(dir.join("ca.key"), &own_key).unwrap();
    fs::set_permissions(dir.join("ca.key"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(load().contains("not a certificate in PEM"));
    // A crash between the two files of a first start.
    fs::remove_file(dir.join("ca.pem")).unwrap();
    assert_ne!(authority(&dir).0.hash(), hash);
}

/// An authority and a certificate for `host` in PEM files, as an operator has them from elsewhere.
fn operator_files(dir: &Path, host: &str) -> OperatorCertificate {
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(params, authority_key);
    let leaf = CertificateParams::new(vec![host.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    fs::create_dir_all(dir).unwrap();
    let [cert_file, key_file, ca_file] = ["c.pem", "k.pem", "a.pem"].map(|file| dir.join(file));
    fs::write(&cert_file, leaf.pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(&ca_file, authority.pem()).unwrap();
    OperatorCertificate { cert_file, key_file, ca_file }
}

#[tokio::test]
async fn the_certificate_of_an_operator_is_accepted_for_its_host_only() {
    let home = tempfile::tempdir().unwrap();
    let (here, own_trust) = authority(&home.path().join("own"));
    let files = operator_files(&home.path().join("a"), "master.example");
    let trust = ServerTrust::from_file(&files.ca_file).unwrap();
    let server = || server_config(&only(&here), ApiCertificate::Operator(files.clone())).unwrap();
    assert_eq!(connect(server(), &trust, "master.example").await, Ok(()));
    let other_host = connect(server(), &trust, "other.example").await.unwrap_err();
    assert!(other_host.contains("not valid for name"), "{other_host}");
    assert!(connect(server(), &own_trust, "master.example").await.is_err());
    assert!(connect(own(&here), &trust, "10.0.0.1").await.is_err());

    let refused = |files: OperatorCertificate| {
        server_config(&only(&here), ApiCertificate::Operator(files)).unwrap_err().to_string()
    };
    let others = operator_files(&home.path().join("b"), "master.example");
    let with = |change: fn(&mut OperatorCertificate, &OperatorCertificate)| {
        let mut changed = files.clone();
        change(&mut changed, &others);
        refused(changed)
    };
    assert!(with(|f, o| f.key_file.clone_from(&o.key_file)).contains("k.pem"));
    assert!(with(|f, o| f.ca_file.clone_from(&o.ca_file)).contains("not valid under"));
    assert!(with(|f, _| f.cert_file.clone_from(&f.key_file)).contains("no certificate"));
    fs::set_permissions(&files.key_file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused(files).contains("chmod"));
}

#[tokio::test]
async fn a_master_that_is_known_by_the_hash_of_its_authority_presents_it() {
    let home = tempfile::tempdir().unwrap();
    let (here, _) = authority(&home.path().join("a"));
    let (other, _) = authority(&home.path().join("b"));
    let of_hash = |hash: blake3::Hash| ServerTrust::of_hash(hash.into());
    let trust = of_hash(here.hash());
    assert_eq!((trust.is_empty(), trust.found_authority()), (false, None));
    assert_eq!(connect(own(&here), &trust, "any.name").await, Ok(()));
    assert_eq!(trust.found_authority(), Some(here.certificate()));
    let trust = of_hash(other.hash());
    let refused = connect(own(&here), &trust, "any.name").await.unwrap_err();
    assert!(refused.contains("so the token was not sent"), "{refused}");
    assert_eq!(trust.found_authority(), None);
    // With a certificate of an operator: that of its authority, and for its host only.
    let files = operator_files(&home.path().join("c"), "master.example");
    let server = || server_config(&only(&here), ApiCertificate::Operator(files.clone())).unwrap();
    let trust = of_hash(files.authority_hash().unwrap());
    assert!(connect(server(), &trust, "other.example").await.is_err());
    assert_eq!(trust.found_authority(), None);
    assert_eq!(connect(server(), &trust, "master.example").await, Ok(()));
    assert!(trust.found_authority().is_some());
    // The other authority, without a certificate that it issued.
    assert!(connect(server(), &of_hash(here.hash()), "master.example").await.is_err());
}

#[tokio::test]
async fn an_agent_presents_its_current_certificate_and_an_expired_one_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (here, trust) = authority(&home.path().join("a"));
    let worker: crate::wire::WorkerId = "w".parse().unwrap();
    let token: JoinToken =
        format!("lhj1.{}.0123456789ab.{}", here.hash(), "0".repeat(64)).parse().unwrap();
    let state = home.path().join("state");
    let identity = Arc::new(AgentIdentity::for_join(&state, &worker, &token).unwrap());
    let key = PublicKey::of_signing_request(&identity.signing_request().unwrap()).unwrap();
    let install = |age_seconds: u64| {
        let now = UnixTime::now().as_secs() - age_seconds;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let certificate = here.issue_agent(&worker, &key, Duration::from_secs(60), now).unwrap();
        let issued = IssuedCertificate {
            certificate,
            authority: here.pem(),
            previous_authority: None,
            expires_at: jiff::Timestamp::UNIX_EPOCH,
            storage_paths: vec![],
        };
        identity.install(&issued, None).unwrap();
    };
    let present = async || {
        let (near, far) = tokio::io::duplex(64 << 10);
        let accept = TlsAcceptor::from(own(&here)).accept(far);
        let config = client_config(&trust, Some(identity.clone())).unwrap();
        let client = TlsConnector::from(Arc::new(config));
        let connect = client.connect(ServerName::try_from("any.name").unwrap(), near);
        let (server, _client) = tokio::join!(accept, connect);
        let server = server.map_err(|e| e.to_string())?;
        let presented = server.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        Ok::<_, String>(presented.map(|found| PublicKey::of_certificate(&found).unwrap().digest()))
    };
    assert_eq!(present().await, Ok(None), "before it joined");
    install(0);
    assert_eq!(present().await, Ok(Some(key.digest())));
    let loaded = AgentIdentity::load(&state, &worker).unwrap().unwrap();
    assert!(loaded.certificates().borrow().is_some());
    assert_eq!((loaded.token(), loaded.trust()), (token.id, trust.clone()));
    install(61);
    let refused = present().await.unwrap_err();
    assert!(refused.contains("xpired"), "{refused}");
    let file = state.join("identity-w.json");
    fs::write(&file, "{}").unwrap();
    let damaged = AgentIdentity::load(&state, &worker).unwrap_err().to_string();
    assert!(damaged.contains("is damaged") && damaged.contains("identity-w.json"), "{damaged}");
}

#[tokio::test]
async fn agents_accept_each_other_and_neither_masters_nor_other_installations() {
    let (here, other) = (testing::TestAuthority::new(), testing::TestAuthority::new());
    let [a, b] = ["a", "b"].map(|worker| PeerConfigs::new(&here.agent(worker)).unwrap());
    let stranger = PeerConfigs::new(&other.agent("b")).unwrap();
    let connect = async |client: &PeerConfigs, server: Arc<ServerConfig>| {
        let (near, far) = tokio::io::duplex(64 << 10);
        let accept = TlsAcceptor::from(server).accept(far);
        let client = TlsConnector::from(client.client.clone());
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let (server, client) = tokio::join!(accept, client.connect(name, near));
        let found = client.map(|c| peer_worker(c.get_ref().1.peer_certificates()));
        let sender = server.map(|s| peer_worker(s.get_ref().1.peer_certificates()));
        (found.map_err(|e| e.to_string()), sender.map_err(|e| e.to_string()))
    };
    let worker = |name: &str| Ok(Some(name.parse().unwrap()));
    assert_eq!(connect(&a, b.server.clone()).await, (worker("b"), worker("a")));
    for (client, server) in [(&a, &stranger), (&stranger, &b)] {
        let (found, sender) = connect(client, server.server.clone()).await;
        assert!(found.is_err() && sender.is_err());
    }
    // A master is no agent, also for a client that leaves the protocol open.
    let mut master = ServerConfig::clone(&own(&here.authority));
    assert!(connect(&a, Arc::new(master.clone())).await.0.is_err());
    master.alpn_protocols.clear();
    let refused = connect(&a, Arc::new(master)).await.0.unwrap_err();
    assert!(refused.contains("NotAnAgent") && refused.contains("site/master"), "{refused}");
}

/// An agent that trusts `authorities`, as its master's replies name them.
fn join_with(dir: &Path, authorities: &AuthoritySet) -> Arc<AgentIdentity> {
    let token = format!("lhj1.{}.0123456789ab.{}", "0".repeat(64), "0".repeat(64));
    let identity =
        AgentIdentity::for_join(dir, &"w".parse().unwrap(), &token.parse().unwrap()).unwrap();
    renew(&identity, authorities);
    Arc::new(identity)
}

/// As `POST /renew`.
fn renew(identity: &AgentIdentity, authorities: &AuthoritySet) {
    let key = PublicKey::of_signing_request(&identity.signing_request().unwrap()).unwrap();
    let issuer = authorities.issuer();
    let lifetime = Duration::from_secs(60);
    let issued = issuer.issue_agent(identity.worker(), &key, lifetime, UnixTime::now()).unwrap();
    let issued = IssuedCertificate {
        certificate: issued + &authorities.agent_chain(),
        authority: issuer.pem(),
        previous_authority: authorities.accepted_previous(),
        expires_at: jiff::Timestamp::UNIX_EPOCH,
        storage_paths: vec![],
    };
    identity.install(&issued, None).unwrap();
}

/// A handshake of the agents of two hosts; the error of each side.
async fn connect_peers(
    client: &Arc<AgentIdentity>,
    server: &Arc<AgentIdentity>,
) -> Result<(), String> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let accept = TlsAcceptor::from(PeerConfigs::new(server).unwrap().server).accept(far);
    let client = TlsConnector::from(PeerConfigs::new(client).unwrap().client);
    let connect = client.connect(ServerName::try_from("any.name").unwrap(), near);
    let (server, client) = tokio::join!(accept, connect);
    client.map_err(|e| format!("client: {e}"))?;
    server.map(drop).map_err(|e| format!("server: {e}"))
}

/// A handshake of an agent with a master; the error of each side.
async fn connect_agent(
    agent: &Arc<AgentIdentity>,
    server: Arc<ServerConfig>,
) -> Result<(), String> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let accept = TlsAcceptor::from(server).accept(far);
    let config = client_config(&ServerTrust::default(), Some(agent.clone())).unwrap();
    let client = TlsConnector::from(Arc::new(config));
    let connect = client.connect(ServerName::try_from("any.name").unwrap(), near);
    let (server, client) = tokio::join!(accept, connect);
    client.map_err(|e| format!("client: {e}"))?;
    server.map(drop).map_err(|e| format!("server: {e}"))
}

#[tokio::test]
async fn in_a_rotation_both_authorities_are_accepted_everywhere_and_after_it_the_former_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let sealer = Sealer::for_tests();
    let (former, trusts_former) = authority(&home.path().join("ca"));
    let shared = only(&former);
    let server = server_of(&shared);
    let before = shared.current();
    let early = join_with(&home.path().join("early"), &before);
    let late = join_with(&home.path().join("late"), &before);
    let stopped = join_with(&home.path().join("stopped"), &before);

    let next =
        SealedAuthority::replacing(before.issuer(), &sealer, Duration::from_secs(60)).unwrap();
    let adopt = |stored: &SealedAuthority| {
        let issuer = Arc::new(stored.open(&sealer).unwrap());
        shared.replace(AuthoritySet::new(issuer, stored).unwrap());
    };
    adopt(&next);
    let trusts_next =
        ServerTrust::of_authorities(vec![shared.current().issuer().certificate().clone()]);
    // The master: clients with the former ca.pem, the present one, the hash of either.
    for trust in [&trusts_former, &trusts_next] {
        assert_eq!(connect(server.clone(), trust, "any.name").await, Ok(()));
    }
    for hash in [former.hash().into(), next.hash] {
        assert_eq!(connect(server.clone(), &ServerTrust::of_hash(hash), "any.name").await, Ok(()));
    }
    // A master that has not adopted it yet, as a follower for a second.
    let behind = own(&former);
    renew(&early, &shared.current());
    for agent in [&early, &late] {
        assert_eq!(connect_agent(agent, server.clone()).await, Ok(()));
        assert_eq!(connect_agent(agent, behind.clone()).await, Ok(()));
    }
    // Agents: one has a certificate of the new authority, the other one has none yet.
    for (client, to) in [(&early, &late), (&late, &early), (&early, &early), (&late, &stopped)] {
        assert_eq!(connect_peers(client, to).await, Ok(()));
    }
    // A heartbeat that reports them makes the agent renew.
    early.compare_authorities(&next.accepted());
    late.compare_authorities(&next.accepted());
    late.wait_for_renewal_request().await;
    let is_requested = early.wait_for_renewal_request();
    assert!(futures_util::FutureExt::now_or_never(is_requested).is_none());
    renew(&late, &shared.current());

    adopt(&next.finished(jiff::Timestamp::now()));
    for agent in [&early, &late] {
        agent.compare_authorities(&next.finished(jiff::Timestamp::now()).accepted());
        agent.wait_for_renewal_request().await;
        assert_eq!(connect_agent(agent, server.clone()).await, Ok(()));
        renew(agent, &shared.current());
        assert_eq!(agent.trust(), trusts_next);
    }
    for (client, to) in [(&early, &late), (&late, &early)] {
        assert_eq!(connect_peers(client, to).await, Ok(()));
    }
    // Commands with the former ca.pem go on; certificates of the former authority do not.
    for trust in [&trusts_former, &trusts_next] {
        assert_eq!(connect(server.clone(), trust, "any.name").await, Ok(()));
    }
    let refused = connect_agent(&stopped, server.clone()).await.unwrap_err();
    assert!(refused.starts_with("server: ") && refused.contains("UnknownIssuer"), "{refused}");
    let described =
        describe_tls_error(&rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA));
    assert!(described.contains("ctl token create --join"), "{described}");
    let refused = connect_peers(&stopped, &early).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer") || refused.contains("UnknownCA"), "{refused}");
    assert!(connect_peers(&early, &stopped).await.is_err());
    // An agent does not accept a master of the former authority any more.
    let refused = connect_agent(&early, own(&former)).await.unwrap_err();
    assert!(refused.starts_with("client: ") && refused.contains("UnknownIssuer"), "{refused}");
    // A second rotation ends what the first one kept.
    let third =
        SealedAuthority::replacing(shared.current().issuer(), &sealer, Duration::from_secs(60));
    adopt(&third.unwrap());
    assert_eq!(connect(server.clone(), &trusts_next, "any.name").await, Ok(()));
    let refused = connect(server, &trusts_former, "any.name").await.unwrap_err();
    assert!(refused.contains("copy it from the master's data_dir"), "{refused}");
}

#[test]
fn a_crash_while_the_files_of_the_authority_are_replaced_leaves_none_that_do_not_belong_together() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("ca");
    let (former, _) = authority(&dir);
    let sealer = Sealer::for_tests();
    let current = AuthoritySet::of_issuer(former.clone());
    let next =
        SealedAuthority::replacing(current.issuer(), &sealer, Duration::from_secs(60)).unwrap();
    let next = next.open(&sealer).unwrap();
    // The key cannot be replaced: what the directory has then is what a kill at this point leaves.
    fs::remove_file(dir.join("ca.key")).unwrap();
    fs::create_dir(dir.join("ca.key")).unwrap();
    assert!(next.write_files(&dir).is_err());
    assert!(!CertificateAuthority::exists_in(&dir));
    fs::remove_dir(dir.join("ca.key")).unwrap();
    next.write_files(&dir).unwrap();
    let loaded = CertificateAuthority::load_or_create(&dir, None).unwrap();
    assert_eq!((loaded.hash(), loaded.hash() == former.hash()), (next.hash(), false));
}
