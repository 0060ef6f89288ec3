//! One instance's configuration: where its files are, and what its cluster looks like.
//!
//! `init` writes it to `<config-dir>/config.json`; every other verb reads it from there, so that
//! the config directory alone names an instance. Tests run many instances on one machine.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

/// The directory that names the instance.
#[derive(Args, Clone, Debug)]
pub struct InstanceArgs {
    /// Directory of the configuration; it names the instance that a command is about
    #[arg(
        long,
        global = true,
        env = "LLMAGENTOS_CONFIG_DIR",
        default_value = "/etc/llmagentos",
        value_name = "DIR"
    )]
    pub config_dir: PathBuf,
}

/// What `init` can be told.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct ClusterArgs {
    /// Directory of everything that must survive a reboot: objects, images, certificates
    #[arg(long, default_value = "/var/lib/llmagentos", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Directory of sockets and state that a reboot may clear
    #[arg(long, default_value = "/run/llmagentos", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Directory of the containers' logs
    #[arg(long, default_value = "/var/log/pods", value_name = "DIR")]
    pub log_dir: PathBuf,
    /// Address the API server listens on
    #[arg(long, default_value = "0.0.0.0", value_name = "IP")]
    pub bind_address: IpAddr,
    /// Port of the API server; 0 takes a free one
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    pub api_port: u16,
    /// Port of the node agent; 0 takes a free one
    #[arg(long, default_value_t = 10250, value_name = "PORT")]
    pub kubelet_port: u16,
    /// Name of this node; the host name if not given
    #[arg(long, value_name = "NAME")]
    #[serde(skip)]
    pub node_name: Option<String>,
    /// Address of this node; that of the default route's interface if not given
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Further names and addresses for the API server's certificate
    #[arg(long, value_name = "NAME|IP", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Addresses of pods; this node takes the first /24
    #[arg(long, default_value = "10.42.0.0/16", value_name = "CIDR")]
    pub cluster_cidr: String,
    /// Addresses of services
    #[arg(long, default_value = "10.43.0.0/16", value_name = "CIDR")]
    pub service_cidr: String,
    /// Ports for services of type NodePort
    #[arg(long, default_value = "30000-32767", value_name = "FROM-TO")]
    pub node_port_range: String,
    /// Bridge that pods are connected to
    #[arg(long, default_value = "llma0", value_name = "NAME")]
    pub bridge: String,
    /// nftables table of services and host ports
    #[arg(long, default_value = "llmagentos", value_name = "NAME")]
    pub nft_table: String,
    /// Cgroup below which all pods are
    #[arg(long, default_value = "/kubepods", value_name = "PATH")]
    pub cgroup_root: String,
    /// Where the administrator's kubeconfig is written; <config-dir>/kubeconfig.yaml if not given
    #[arg(long, value_name = "FILE")]
    pub write_kubeconfig: Option<PathBuf>,
}

/// A checked configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    pub config_dir: PathBuf,
    #[serde(flatten)]
    pub cluster: ClusterArgs,
    pub node_name: String,
}

impl Config {
    /// Checks what the user gave and settles what was left open.
    pub fn new(config_dir: &Path, mut cluster: ClusterArgs) -> anyhow::Result<Self> {
        let node_name = match &cluster.node_name {
            Some(name) => name.clone(),
            None => rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .to_lowercase(),
        };
        if !is_dns1123_subdomain(&node_name) {
            bail!(
                "node name \"{node_name}\" is not a DNS name (lower case letters, digits, '-' and '.'); give another with --node-name"
            );
        }
        for (flag, cidr) in [
            ("--cluster-cidr", &cluster.cluster_cidr),
            ("--service-cidr", &cluster.service_cidr),
        ] {
            parse_cidr(cidr).with_context(|| format!("{flag} \"{cidr}\""))?;
        }
        let (pods, services) = (
            parse_cidr(&cluster.cluster_cidr)?,
            parse_cidr(&cluster.service_cidr)?,
        );
        if pods.overlaps(&services) {
            bail!(
                "--cluster-cidr {} and --service-cidr {} overlap; give ranges that do not",
                cluster.cluster_cidr,
                cluster.service_cidr
            );
        }
        if pods.prefix_length > 24 {
            bail!(
                "--cluster-cidr {} is smaller than the /24 that a node needs",
                cluster.cluster_cidr
            );
        }
        parse_port_range(&cluster.node_port_range)?;
        for directory in [
            &mut cluster.data_dir,
            &mut cluster.run_dir,
            &mut cluster.log_dir,
        ] {
            *directory = std::path::absolute(&*directory)?;
        }
        Ok(Self {
            config_dir: std::path::absolute(config_dir)?,
            cluster,
            node_name,
        })
    }

    pub fn path(config_dir: &Path) -> PathBuf {
        config_dir.join("config.json")
    }

    /// Reads the instance's configuration.
    pub fn load(config_dir: &Path) -> anyhow::Result<Self> {
        let path = Self::path(config_dir);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!(
                    "there is no cluster here ({} does not exist); make one with 'llmagentos init'",
                    path.display()
                )
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "read {}: it is damaged; run 'llmagentos init' again",
                path.display()
            )
        })
    }

    pub fn save(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.config_dir)
            .with_context(|| format!("make {}", self.config_dir.display()))?;
        let path = Self::path(&self.config_dir);
        write_atomically(
            &path,
            &serde_json::to_vec_pretty(self).expect("a configuration is JSON"),
            0o644,
        )
    }

    pub fn kubeconfig_path(&self) -> PathBuf {
        self.cluster
            .write_kubeconfig
            .clone()
            .unwrap_or_else(|| self.config_dir.join("kubeconfig.yaml"))
    }

    pub fn registries_path(&self) -> PathBuf {
        self.config_dir.join("registries.yaml")
    }

    pub fn manifests_dir(&self) -> PathBuf {
        self.config_dir.join("manifests")
    }

    pub fn store_dir(&self) -> PathBuf {
        self.cluster.data_dir.join("store")
    }

    pub fn images_dir(&self) -> PathBuf {
        self.cluster.data_dir.join("images")
    }

    pub fn containers_dir(&self) -> PathBuf {
        self.cluster.data_dir.join("containers")
    }

    pub fn kubelet_dir(&self) -> PathBuf {
        self.cluster.data_dir.join("kubelet")
    }

    pub fn pki_dir(&self) -> PathBuf {
        self.cluster.data_dir.join("pki")
    }

    pub fn network_dir(&self) -> PathBuf {
        self.cluster.data_dir.join("network")
    }

    pub fn server_log_path(&self) -> PathBuf {
        self.cluster.data_dir.join("server.log")
    }

    /// The first /24 of the cluster's range.
    pub fn pod_cidr(&self) -> String {
        let cidr = parse_cidr(&self.cluster.cluster_cidr)
            .expect("checked when the configuration was made");
        format!("{}/24", cidr.address)
    }
}

/// An IPv4 range, its host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: Ipv4Addr,
    pub prefix_length: u8,
}

impl Cidr {
    fn overlaps(&self, other: &Self) -> bool {
        let shorter = self.prefix_length.min(other.prefix_length);
        mask(self.address, shorter) == mask(other.address, shorter)
    }
}

fn mask(address: Ipv4Addr, prefix_length: u8) -> u32 {
    u32::from(address)
        & u32::MAX
            .checked_shl(32 - u32::from(prefix_length))
            .unwrap_or(0)
}

/// Reads `10.42.0.0/16`.
pub fn parse_cidr(text: &str) -> anyhow::Result<Cidr> {
    let (address, prefix) = text
        .split_once('/')
        .context("is not of the form 10.42.0.0/16")?;
    let address: Ipv4Addr = address
        .parse()
        .with_context(|| format!("\"{address}\" is not an IPv4 address"))?;
    let prefix_length: u8 = prefix
        .parse()
        .ok()
        .filter(|bits| *bits <= 32)
        .with_context(|| format!("\"{prefix}\" is not a prefix length from 0 to 32"))?;
    let masked = Ipv4Addr::from(mask(address, prefix_length));
    if masked != address {
        bail!("has bits set behind its prefix; write {masked}/{prefix_length}");
    }
    Ok(Cidr {
        address,
        prefix_length,
    })
}

/// Reads `30000-32767`.
pub fn parse_port_range(text: &str) -> anyhow::Result<std::ops::RangeInclusive<u16>> {
    let parsed = text
        .split_once('-')
        .and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match parsed {
        Some((from, to)) if from > 0 && from <= to => Ok(from..=to),
        _ => bail!("--node-port-range \"{text}\" is not of the form 30000-32767"),
    }
}

fn is_dns1123_subdomain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            matches!(bytes.first(), Some(b'a'..=b'z' | b'0'..=b'9'))
                && matches!(bytes.last(), Some(b'a'..=b'z' | b'0'..=b'9'))
                && bytes
                    .iter()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        })
}

/// Writes a file so that a reader, or a crash, meets the old content or the new, never a part.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_added_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs() {
        fn check(text: &str, expect: Result<(&str, u8), &str>) {
            let actual =
                parse_cidr(text).map(|cidr| (cidr.address.to_string(), cidr.prefix_length));
            match (actual, expect) {
                (Ok((address, bits)), Ok(expected)) => {
                    assert_eq!((address.as_str(), bits), expected, "{text}")
                }
                (Err(error), Err(part)) => {
                    assert!(format!("{error:#}").contains(part), "{text}: {error:#}")
                }
                (actual, expect) => panic!("{text}: {actual:?}, expected {expect:?}"),
            }
        }
        check("10.42.0.0/16", Ok(("10.42.0.0", 16)));
        check("0.0.0.0/0", Ok(("0.0.0.0", 0)));
        check("10.42.0.1/16", Err("write 10.42.0.0/16"));
        check("10.42.0.0", Err("form"));
        check("10.42.0.0/33", Err("0 to 32"));
        check("ten/8", Err("not an IPv4 address"));
    }

    #[test]
    fn overlap() {
        let pods = parse_cidr("10.42.0.0/16").expect("valid");
        assert!(pods.overlaps(&parse_cidr("10.42.7.0/24").expect("valid")));
        assert!(pods.overlaps(&parse_cidr("10.0.0.0/8").expect("valid")));
        assert!(!pods.overlaps(&parse_cidr("10.43.0.0/16").expect("valid")));
    }

    #[test]
    fn port_ranges() {
        assert_eq!(
            parse_port_range("30000-32767").expect("valid"),
            30000..=32767
        );
        for bad in ["", "1", "5-4", "0-1", "1-70000", "a-b"] {
            assert!(parse_port_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn node_names() {
        for good in ["a", "node-1", "node-1.example.com"] {
            assert!(is_dns1123_subdomain(good), "{good}");
        }
        for bad in ["", "Node", "-a", "a-", "a..b", "a_b"] {
            assert!(!is_dns1123_subdomain(bad), "{bad}");
        }
    }
}
