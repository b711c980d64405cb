//! Handshakes between clients and servers with certificates of several authorities.

use super::authority::CertificateAuthority;
use super::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
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

fn own(authority: &Arc<CertificateAuthority>) -> Arc<ServerConfig> {
    let hosts = vec![HostName::Address("10.0.0.1".parse().unwrap())];
    server_config(authority, ApiCertificate::Own(hosts)).unwrap()
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
    let server = || server_config(&here, ApiCertificate::Operator(files.clone())).unwrap();
    assert_eq!(connect(server(), &trust, "master.example").await, Ok(()));
    let other_host = connect(server(), &trust, "other.example").await.unwrap_err();
    assert!(other_host.contains("not valid for name"), "{other_host}");
    assert!(connect(server(), &own_trust, "master.example").await.is_err());
    assert!(connect(own(&here), &trust, "10.0.0.1").await.is_err());

    let refused = |files: OperatorCertificate| {
        server_config(&here, ApiCertificate::Operator(files)).unwrap_err().to_string()
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
