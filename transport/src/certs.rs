//! The cluster's certificates: one authority per cluster, one certificate per node, one per client.
//!
//! The authority carries the cluster's id in its common name, `flotilla <cluster>`. A node's
//! certificate names node and cluster in its SAN, as the DNS name `n<node>.<cluster>.flotilla`: a
//! name that no DNS serves, so that it can't be confused with an address, and that the TLS library
//! checks by itself against the node that was dialled. Names that end in `.flotilla` are made here
//! alone.

use crate::error::TransportError;
use flotilla_router::{ClusterId, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Ends every name that Flotilla makes.
const SUFFIX: &str = ".flotilla";
/// Begins the authority's common name.
const CA_PREFIX: &str = "flotilla ";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a certificate is valid.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Who a node's certificate speaks for: a node of a cluster. Written `n<node>.<cluster>.flotilla`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeName {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}.{}{SUFFIX}", self.node, self.cluster)
    }
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (node, cluster) = s.strip_suffix(SUFFIX)?.strip_prefix('n')?.split_once('.')?;
            let name = Self { node: node.parse().ok()?, cluster: cluster.parse().ok()? };
            // Only the one way of writing it: no leading zeros, no capitals, no node 0.
            (name.node.0 != 0 && name.to_string() == s).then_some(name)
        };
        parse().ok_or_else(|| {
            format!("{s:?} is not a node's name, such as n1.00abcdef01234567{SUFFIX}")
        })
    }
}

impl NodeName {
    /// The one node that a certificate names.
    pub(crate) fn of_certificate(der: &[u8]) -> Result<Self, String> {
        const CURE: &str = "make one with `flotilla cert node`";
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("not an X.509 certificate: {error}; {CURE}"))?;
        let san = certificate
            .subject_alternative_name()
            .map_err(|error| format!("unreadable SAN: {error}; {CURE}"))?;
        let names =
            san.iter().flat_map(|san| &san.value.general_names).filter_map(|name| match name {
                GeneralName::DNSName(name) if name.ends_with(SUFFIX) => name.parse::<Self>().ok(),
                _ => None,
            });
        match names.collect::<Vec<_>>()[..] {
            [name] => Ok(name),
            [] => Err("names no node; it takes one made by `flotilla cert node`".into()),
            _ => Err("names more than one node; it takes one made by `flotilla cert node`".into()),
        }
    }
}

/// The cluster's certificate authority. Whoever has its key can add nodes: keep it off the nodes.
pub struct ClusterCa {
    cluster: ClusterId,
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// A new authority with a new key.
    pub fn new(cluster: ClusterId) -> Result<Self, TransportError> {
        let key = KeyPair::generate().map_err(refused)?;
        let mut params = params(&format!("{CA_PREFIX}{cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key).map_err(refused)?.pem();
        Ok(Self { cluster, issuer: Issuer::new(params, key), cert_pem })
    }

    /// An authority that was made before, from the texts of [`ClusterCa::cert_pem`] and
    /// [`ClusterCa::key_pem`].
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, TransportError> {
        let refuse =
            |what: &str, why: String| TransportError::Credentials { what: what.into(), why };
        let key = KeyPair::from_pem(key_pem).map_err(|error| {
            refuse(
                "CA key",
                format!("not a private key in PEM: {error}; make one with `flotilla cert ca`"),
            )
        })?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(|error| {
            refuse("CA certificate", format!("not PEM: {error}; make one with `flotilla cert ca`"))
        })?;
        let cert = pem.parse_x509().map_err(|error| {
            refuse("CA certificate", format!("not an X.509 certificate: {error}"))
        })?;
        let cluster = cert
            .subject()
            .iter_common_name()
            .find_map(|name| name.as_str().ok()?.strip_prefix(CA_PREFIX)?.parse().ok())
            .ok_or_else(|| {
                refuse(
                    "CA certificate",
                    "names no cluster; make one with `flotilla cert ca`".into(),
                )
            })?;
        // The certificate ends with the same key, bit by bit, that the private key gives.
        if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(refuse(
                "CA key",
                "does not belong to the CA certificate; take the two that were made together"
                    .into(),
            ));
        }
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(refused)?;
        Ok(Self { cluster, issuer, cert_pem: cert_pem.into() })
    }

    /// The cluster that it vouches for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its certificate, which every node and client gets.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Its private key. A file with it is to be readable by its owner alone (mode 0600).
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A node's certificate and private key, in PEM. `addresses` are further names by which it is
    /// reached (host names or IP addresses, without port). A file with the key is to be readable by
    /// its owner alone (mode 0600).
    pub fn node(
        &self,
        node: NodeId,
        addresses: &[String],
    ) -> Result<(String, String), TransportError> {
        if node.0 == 0 {
            return Err(TransportError::Certificate {
                why: "there is no node 0; ids start with 1".into(),
            });
        }
        let name = NodeName { node, cluster: self.cluster }.to_string();
        let mut params = params(&name);
        params.subject_alt_names = vec![dns(&name)?];
        for address in addresses {
            if address.ends_with(SUFFIX) {
                return Err(TransportError::Certificate {
                    why: format!("address {address:?}: names in {SUFFIX} are reserved"),
                });
            }
            params.subject_alt_names.push(match address.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => dns(address)?,
            });
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A client's certificate and private key, in PEM: a person or program that is not a node. It
    /// opens no peer connection.
    pub fn client(&self, name: &str) -> Result<(String, String), TransportError> {
        if name.is_empty()
            || name.len() > 40
            || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            let why = format!(
                "client name {name:?}: 1 to 40 lower-case letters, digits and `-` are allowed"
            );
            return Err(TransportError::Certificate { why });
        }
        let mut params = params(name);
        params.subject_alt_names = vec![dns(&format!("{name}.client.{}{SUFFIX}", self.cluster))?];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<(String, String), TransportError> {
        let key = KeyPair::generate().map_err(refused)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).map_err(refused)?;
        Ok((cert.pem(), key.serialize_pem()))
    }
}

/// What all certificates have in common: a name, and ten years from yesterday (clocks differ).
fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + VALIDITY;
    params
}

fn dns(name: &str) -> Result<SanType, TransportError> {
    let refuse = |_| TransportError::Certificate {
        why: format!("{name:?} is neither a host name nor an IP address"),
    };
    name.try_into().map(SanType::DnsName).map_err(refuse)
}

fn refused(error: rcgen::Error) -> TransportError {
    TransportError::Certificate { why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0x00ab_cdef_0123_4567);

    fn der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
    }

    #[test]
    fn a_node_name_is_what_it_prints_and_nothing_else() {
        let name = NodeName { node: NodeId(12), cluster: CLUSTER };
        assert_eq!(name.to_string(), "n12.00abcdef01234567.flotilla");
        assert_eq!(name.to_string().parse(), Ok(name));
        for bad in [
            "",
            "n1",
            "n0.00abcdef01234567.flotilla",
            "n01.00abcdef01234567.flotilla",
            "n+1.00abcdef01234567.flotilla",
            "n1.00ABCDEF01234567.flotilla",
            "n1.00abcdef01234567.flotilla.",
            "n1.x.00abcdef01234567.flotilla",
            "x.client.00abcdef01234567.flotilla",
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_certificate_names_its_node_and_a_client_names_none() {
        let ca = ClusterCa::new(CLUSTER).unwrap();
        let (cert, _) =
            ca.node(NodeId(3), &["127.0.0.1".into(), "db3.example.org".into()]).unwrap();
        assert_eq!(
            NodeName::of_certificate(&der(&cert)),
            Ok(NodeName { node: NodeId(3), cluster: CLUSTER })
        );
        let (cert, _) = ca.client("backup").unwrap();
        assert!(NodeName::of_certificate(&der(&cert)).unwrap_err().contains("names no node"));
        assert!(NodeName::of_certificate(b"nonsense").is_err());
    }

    #[test]
    fn names_that_would_forge_a_node_are_refused() {
        let ca = ClusterCa::new(CLUSTER).unwrap();
        assert!(ca.node(NodeId(1), &["n2.00abcdef01234567.flotilla".into()]).is_err());
        assert!(ca.node(NodeId(0), &[]).is_err());
        for bad in ["", "A", "a.b", "ü", &"x".repeat(41)] {
            assert!(ca.client(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_authority_comes_back_from_its_files() {
        let ca = ClusterCa::new(CLUSTER).unwrap();
        let loaded = ClusterCa::load(ca.cert_pem(), &ca.key_pem()).unwrap();
        assert_eq!(loaded.cluster(), CLUSTER);
        assert_eq!(loaded.cert_pem(), ca.cert_pem());
        let other = ClusterCa::new(CLUSTER).unwrap();
        assert!(
            ClusterCa::load(ca.cert_pem(), &other.key_pem())
                .unwrap_err()
                .to_string()
                .contains("does not belong")
        );
        assert!(
            ClusterCa::load("nonsense", &ca.key_pem())
                .unwrap_err()
                .to_string()
                .contains("CA certificate")
        );
        assert!(
            ClusterCa::load(ca.cert_pem(), "nonsense").unwrap_err().to_string().contains("CA key")
        );
        let (node, key) = ca.node(NodeId(1), &[]).unwrap();
        assert!(ClusterCa::load(&node, &key).unwrap_err().to_string().contains("names no cluster"));
    }
}
