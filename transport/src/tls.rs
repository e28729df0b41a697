//! TLS 1.3 with certificates on both ends, and credentials read with errors that say which file and
//! what to do.
//!
//! The chain to the cluster's authority and the name of the node that was dialled are checked by
//! the TLS library itself; who dialled is read from the certificate afterwards, by [`peer_name`].
//! No session is ever resumed, so every connection is proved anew, and there is no early data.

use crate::certs::NodeName;
use crate::error::TransportError;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The only application protocol on these connections.
const ALPN: &[u8] = b"flotilla/1";

/// A node's certificate and key, and the authority that it trusts; checked when read.
#[derive(Clone)]
pub struct Credentials {
    ca: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    name: NodeName,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Refuses a key that others can read: whoever can is this node. A file that is not there is for
/// others to complain about.
pub fn check_private(key: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(found) = std::fs::metadata(key) else { return Ok(()) };
    let mode = found.mode() & 0o777;
    // The superuser may lend a key to a group: that is how it is handed to services.
    let allowed = if found.uid() == 0 { 0o740 } else { 0o700 };
    if mode & !allowed == 0 {
        return Ok(());
    }
    Err(format!(
        "others can read {0}, or write it (its permissions are {mode:03o}); close it with: chmod \
         600 {0}",
        key.display()
    ))
}

impl Credentials {
    /// Reads them from files in PEM.
    pub fn load(ca_path: &Path, cert_path: &Path, key_path: &Path) -> Result<Self, TransportError> {
        let read = |what: &str, path: &Path, cure: &str| {
            let what = format!("{what} {}", path.display());
            match std::fs::read_to_string(path) {
                Ok(text) => Ok((what, text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(TransportError::Credentials {
                        what,
                        why: format!("there is no such file; {cure}"),
                    })
                }
                Err(error) => {
                    Err(TransportError::Credentials { what, why: format!("{error}; {cure}") })
                }
            }
        };
        let ca = read("CA certificate", ca_path, "make one with `flotilla cert ca`")?;
        let cert = read("node certificate", cert_path, "make one with `flotilla cert node`")?;
        let key = read("node key", key_path, "make one with `flotilla cert node`")?;
        let credentials = Self::check([&ca.0, &cert.0, &key.0], [&ca.1, &cert.1, &key.1])?;
        check_private(key_path).map_err(|why| TransportError::Credentials { what: key.0, why })?;
        Ok(credentials)
    }

    /// Reads them from texts in PEM.
    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Self, TransportError> {
        Self::check(["CA certificate", "node certificate", "node key"], [ca, cert, key])
    }

    /// The node and cluster that the certificate names.
    pub fn name(&self) -> NodeName {
        self.name
    }

    fn check(
        [ca_what, cert_what, key_what]: [&str; 3],
        [ca, cert, key]: [&str; 3],
    ) -> Result<Self, TransportError> {
        let refuse =
            |what: &str, why: String| TransportError::Credentials { what: what.into(), why };
        let mut roots = RootCertStore::empty();
        for der in certificates(ca).map_err(|why| refuse(ca_what, why))? {
            roots.add(der).map_err(|error| {
                refuse(ca_what, format!("{error}; make one with `flotilla cert ca`"))
            })?;
        }
        let ca = Arc::new(roots);
        let chain = certificates(cert).map_err(|why| refuse(cert_what, why))?;
        let name = NodeName::of_certificate(&chain[0]).map_err(|why| refuse(cert_what, why))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| {
            refuse(
                key_what,
                format!("no private key in PEM ({error}); make one with `flotilla cert node`"),
            )
        })?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()).map_err(|error| {
            match error {
                rustls::Error::InconsistentKeys(_) => refuse(
                    key_what,
                    format!("does not belong to {cert_what}; take the two that were made together"),
                ),
                other => refuse(key_what, format!("{other}; make one with `flotilla cert node`")),
            }
        })?;
        // What a peer will check is checked here first, where the message can name the file.
        let verifier =
            WebPkiServerVerifier::builder_with_provider(ca.clone(), Arc::new(provider()))
                .build()
                .map_err(|error| {
                refuse(ca_what, format!("{error}; make one with `flotilla cert ca`"))
            })?;
        let own_name = server_name(name).map_err(|why| refuse(cert_what, why))?;
        verifier
            .verify_server_cert(&chain[0], &chain[1..], &own_name, &[], UnixTime::now())
            .map_err(|error| {
                let why = match error {
                    rustls::Error::InvalidCertificate(
                        CertificateError::UnknownIssuer
                        | CertificateError::BadSignature
                        | CertificateError::BadEncoding,
                    ) => format!(
                        "was not made by {ca_what}; make one with that CA by `flotilla cert node`"
                    ),
                    rustls::Error::InvalidCertificate(
                        CertificateError::Expired | CertificateError::ExpiredContext { .. },
                    ) => "has expired; make a new one with `flotilla cert node`".into(),
                    rustls::Error::InvalidCertificate(
                        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
                    ) => "is not valid yet; check this machine's clock".into(),
                    other => format!("{other}; make one with `flotilla cert node`"),
                };
                refuse(cert_what, why)
            })?;
        Ok(Self { ca, chain, key: Arc::new(key), name })
    }

    /// How this node dials: it shows its certificate and takes only the node whose name it dials.
    pub(crate) fn client(&self) -> Result<rustls::ClientConfig, rustls::Error> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.ca.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// How this node is dialled: only with a certificate of the same authority.
    pub(crate) fn server(&self) -> Result<rustls::ServerConfig, rustls::Error> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.ca.clone(), Arc::new(provider()))
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }
}

/// The node that a connection's certificate names.
pub(crate) fn peer_name(connection: &quinn::Connection) -> Result<NodeName, String> {
    let identity = connection.peer_identity().ok_or("shows no certificate")?;
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| "shows no X.509 certificate")?;
    NodeName::of_certificate(chain.first().ok_or("shows no certificate")?)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err("no certificate in PEM; make one with `flotilla cert`".into())
        }
        Ok(found) => Ok(found),
        Err(error) => Err(format!("not PEM: {error}; make one with `flotilla cert`")),
    }
}

/// The name by which a node is dialled.
fn server_name(name: NodeName) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_string()).map_err(|error| error.to_string())
}

/// Ring, with AES-128 before AES-256: as safe here, and the cheaper one.
fn provider() -> CryptoProvider {
    use rustls::crypto::ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..rustls::crypto::ring::default_provider()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::ClusterCa;
    use flotilla_router::{ClusterId, NodeId};

    #[test]
    fn credentials_know_whose_they_are() {
        let ca = ClusterCa::new(ClusterId(7)).unwrap();
        let (cert, key) = ca.node(NodeId(2), &[]).unwrap();
        let credentials = Credentials::from_pem(ca.cert_pem(), &cert, &key).unwrap();
        assert_eq!(credentials.name(), NodeName { node: NodeId(2), cluster: ClusterId(7) });
        assert!(!format!("{credentials:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_cure() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("node.key");
        assert_eq!(check_private(&key), Ok(()), "what is not there is somebody else's complaint");
        std::fs::write(&key, "key").unwrap();
        let is_root = std::fs::metadata(&key).unwrap().uid() == 0;
        for (mode, allowed) in [
            (0o600, true),
            (0o400, true),
            (0o640, is_root),
            (0o660, false),
            (0o604, false),
            (0o644, false),
        ] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            let checked = check_private(&key);
            assert_eq!(checked.is_ok(), allowed, "mode {mode:o}: {checked:?}");
            assert!(checked.err().is_none_or(|why| why.contains("chmod 600")), "mode {mode:o}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file_and_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::new(ClusterId(7)).unwrap();
        let other = ClusterCa::new(ClusterId(7)).unwrap();
        let (cert, key) = ca.node(NodeId(2), &[]).unwrap();
        let (client_cert, client_key) = ca.client("someone").unwrap();
        let (_, foreign_key) = ca.node(NodeId(2), &[]).unwrap();
        let good = [ca.cert_pem(), &cert, &key];
        for (broken, content, expected) in [
            (0, None, "ca.pem: there is no such file; make one with `flotilla cert ca`"),
            (1, None, "node.pem: there is no such file; make one with `flotilla cert node`"),
            (2, None, "node.key: there is no such file; make one with `flotilla cert node`"),
            (0, Some(""), "ca.pem: no certificate in PEM"),
            (1, Some("nonsense"), "node.pem: no certificate in PEM"),
            (2, Some("nonsense"), "node.key: no private key in PEM"),
            (2, Some(&foreign_key[..]), "node.key: does not belong to node certificate"),
            (2, Some(&client_key[..]), "node.key: does not belong to node certificate"),
            (1, Some(&client_cert[..]), "node.pem: names no node"),
            (0, Some(other.cert_pem()), "node.pem: was not made by CA certificate"),
        ] {
            let paths = ["ca.pem", "node.pem", "node.key"].map(|name| dir.path().join(name));
            for (i, path) in paths.iter().enumerate() {
                std::fs::write(path, good[i]).unwrap();
            }
            match content {
                Some(content) => std::fs::write(&paths[broken], content).unwrap(),
                None => std::fs::remove_file(&paths[broken]).unwrap(),
            }
            let message =
                Credentials::load(&paths[0], &paths[1], &paths[2]).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
            assert!(!message.contains('\n'), "{message:?} is more than a line");
        }
    }
}
