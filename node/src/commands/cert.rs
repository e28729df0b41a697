//! `flotilla cert`: the cluster's authority, and certificates of nodes and clients.

use super::out;
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use flotilla_node::shell::private;
use flotilla_router::{ClusterId, NodeId};
use flotilla_transport::{ClusterCa, check_private};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Makes certificates.
#[derive(Subcommand)]
pub(crate) enum Cert {
    /// Makes a cluster: draws its id, and makes the authority that vouches for its nodes.
    #[command(after_help = "Example:  flotilla cert ca --out certs")]
    Ca(Ca),
    /// Makes a node's certificate and key.
    #[command(after_help = "Example:  flotilla cert node 1 --address 10.0.0.1 --out certs")]
    Node(NodeCert),
    /// Makes a client's certificate and key.
    #[command(after_help = "Example:  flotilla cert client backup --out certs")]
    Client(ClientCert),
}

/// Makes `ca.pem` and `ca.key`.
#[derive(Args)]
pub(crate) struct Ca {
    /// The folder to put them into.
    #[arg(long, default_value = "certs", value_name = "FOLDER")]
    out: PathBuf,
    /// The cluster's id; drawn at random where it is not given.
    #[arg(long, value_name = "16 HEX DIGITS")]
    cluster: Option<ClusterId>,
}

/// Makes `n<ID>.pem` and `n<ID>.key`.
#[derive(Args)]
pub(crate) struct NodeCert {
    /// The node's id.
    id: NodeId,
    /// Further names by which the node is reached: host names or IP addresses, without port.
    #[arg(long, value_name = "HOST", value_delimiter = ',', value_parser = host)]
    address: Vec<String>,
    #[command(flatten)]
    authority: Authority,
}

/// Makes `<NAME>.pem` and `<NAME>.key`.
#[derive(Args)]
pub(crate) struct ClientCert {
    /// The client's name: lower-case letters, digits and `-`.
    name: String,
    #[command(flatten)]
    authority: Authority,
}

/// Where the authority is, and where results go.
#[derive(Args)]
pub(crate) struct Authority {
    /// The folder with `ca.pem` and `ca.key`, into which the result goes, too.
    #[arg(long, default_value = "certs", value_name = "FOLDER")]
    out: PathBuf,
}

/// A name by which a node is reached.
fn host(text: &str) -> Result<String, String> {
    let host = text.trim();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return Ok(bare.to_owned());
    }
    match host.rsplit_once(':') {
        Some((name, _)) => Err(format!("no port goes there; {name} is the name or address")),
        None if host.is_empty() => Err("a host name or an IP address, such as 10.0.0.1".into()),
        None => Ok(host.to_owned()),
    }
}

/// Carries the command out.
pub(crate) fn run(cert: &Cert) -> anyhow::Result<()> {
    private::keep_others_from_writing();
    match cert {
        Cert::Ca(args) => {
            let cluster = match args.cluster {
                Some(cluster) => cluster,
                None => random_cluster()?,
            };
            let ca = new_ca(cluster, &args.out)?;
            out(&format!("cluster {}", ca.cluster()))?;
            out(&format!(
                "wrote {0}/ca.pem and {0}/ca.key; keep the key safe, it can make nodes",
                args.out.display()
            ))?;
        }
        Cert::Node(args) => {
            let ca = load_ca(&args.authority.out)?;
            write_node(&ca, args.id, &args.address, &args.authority.out, &format!("n{}", args.id))?;
            out(&format!(
                "wrote {0}/n{1}.pem and {0}/n{1}.key for node {1} of cluster {2}",
                args.authority.out.display(),
                args.id,
                ca.cluster()
            ))?;
        }
        Cert::Client(args) => {
            let ca = load_ca(&args.authority.out)?;
            let (cert, key) = ca.client(&args.name)?;
            let folder = &args.authority.out;
            write_new(&folder.join(format!("{}.pem", args.name)), &cert, 0o644)?;
            write_new(&folder.join(format!("{}.key", args.name)), &key, 0o600)?;
            out(&format!("wrote {0}/{1}.pem and {0}/{1}.key", folder.display(), args.name))?;
        }
    }
    Ok(())
}

/// Draws a cluster id.
pub(crate) fn random_cluster() -> anyhow::Result<ClusterId> {
    Ok(ClusterId(getrandom::u64().context("draw a cluster id")?.max(1)))
}

/// Makes an authority and writes it into `folder`.
pub(crate) fn new_ca(cluster: ClusterId, folder: &Path) -> anyhow::Result<ClusterCa> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let ca = ClusterCa::new(cluster)?;
    write_new(&folder.join("ca.key"), &ca.key_pem(), 0o600)?;
    write_new(&folder.join("ca.pem"), ca.cert_pem(), 0o644)?;
    Ok(ca)
}

/// Reads an authority from `folder`.
pub(crate) fn load_ca(folder: &Path) -> anyhow::Result<ClusterCa> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path)
            .with_context(|| format!("read {}; `flotilla cert ca` makes it", path.display()))
    };
    check_private(&folder.join("ca.key")).map_err(anyhow::Error::msg)?;
    Ok(ClusterCa::load(&read("ca.pem")?, &read("ca.key")?)?)
}

/// Makes a node's certificate and writes it into `folder` as `<name>.pem` and `<name>.key`.
pub(crate) fn write_node(
    ca: &ClusterCa,
    node: NodeId,
    addresses: &[String],
    folder: &Path,
    name: &str,
) -> anyhow::Result<()> {
    let (cert, key) = ca.node(node, addresses)?;
    write_new(&folder.join(format!("{name}.key")), &key, 0o600)?;
    write_new(&folder.join(format!("{name}.pem")), &cert, 0o644)
}

/// Writes a file that must not be there yet: a key that is overwritten is a cluster that is lost.
fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    match file {
        Ok(mut file) => {
            file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} is there already; remove it first if you mean to replace it", path.display())
        }
        Err(error) => Err(error).with_context(|| format!("write {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_no_port() {
        for (text, taken) in [
            ("10.0.0.1", "10.0.0.1"),
            (" db-1.example ", "db-1.example"),
            ("[fd00::1]", "fd00::1"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(host(text).as_deref(), Ok(taken));
        }
        for bad in ["", "10.0.0.1:7101", "db-1:7101", "[fd00::1]:7101"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
