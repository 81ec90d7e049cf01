//! The configuration file.
//!
//! ```toml
//! [guest]
//! os = "linux"
//! boot = "direct"             # or "uefi"
//!
//! [boot]
//! kernel = "bzImage"          # paths are relative to this file
//! initrd = "initrd"
//! variables = "efivars.fd"    # uefi only
//!
//! [disk]
//! path = "rootfs.qcow2"
//! format = "qcow2"            # by default the extension says it
//!
//! [[disks]]
//! path = "data.img"
//! read_only = true
//! ephemeral = false
//!
//! [resources]
//! cpus = 2
//! memory = "2G"
//! timeout = "5m"
//!
//! [network]
//! mode = "nat"                # or "none"; or one of these two:
//! # allow = ["crates.io", "*.github.com:443", "10.0.0.0/8:5432"]
//! # policy = "policy.toml"
//! publish = ["8080:80"]
//! host_services = ["db.internal=15432:5432"]   # [NAME=][ADDRESS:]PORT:PORT[/udp]
//! subnet = "10.0.2.0/24"
//! subnet6 = "fd00:ca95:a::/64"
//! mac = "52:54:00:12:34:56"
//! hostname = "box"
//! dns = ["10.0.0.53"]         # by default the host's
//! log = "network.jsonl"
//!
//! [console]
//! mode = "stdio"
//!
//! [shares.source]
//! host = "src"
//! guest = "/src"
//! mode = "ro"
//! mechanism = "auto"          # or "virtiofs", "9p"
//!
//! [cmdline]
//! extra = ["quiet", "loglevel=3"]
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capsa::network::{DomainName, HostService, Ipv4Net, Ipv6Net, NetworkPolicy, PortForward};
use capsa::{KernelCmdline, MountMode, ShareMechanism, SharedDir, Virtio9pConfig, VirtioFsConfig};
use serde::Deserialize;

use crate::disk::{self, DiskFormat};
use crate::network::{NetworkSetting, NetworkSettings, addresses, publish, services};
use crate::settings::{Boot, ConsoleSetting, Settings, System};
use crate::toml_file::TomlFile;
use crate::{policy, quantity};

/// Reads a configuration file. An error names the file, and for everything that is wrong the line and the
/// nearest valid name.
pub(crate) fn read(path: &Path) -> Result<Settings, String> {
    let config: Config = TomlFile::read(path, "a configuration")?.parse()?;
    config.settings(path.parent().unwrap_or(Path::new("")))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    guest: GuestTable,
    boot: BootTable,
    disk: Option<RootDisk>,
    disks: Vec<FurtherDisk>,
    resources: ResourcesTable,
    network: NetworkTable,
    console: ConsoleTable,
    shares: BTreeMap<String, ShareTable>,
    cmdline: CmdlineTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GuestTable {
    os: System,
    boot: Boot,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BootTable {
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    variables: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootDisk {
    path: PathBuf,
    format: Option<DiskFormat>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FurtherDisk {
    path: PathBuf,
    format: Option<DiskFormat>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    ephemeral: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ResourcesTable {
    cpus: Option<u32>,
    memory: Option<Memory>,
    timeout: Option<Timeout>,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Memory(u32);

impl TryFrom<String> for Memory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        quantity::mebibytes(&text).map(Self)
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Timeout(Duration);

impl TryFrom<String> for Timeout {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        quantity::duration(&text).map(Self)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "NetworkKeys")]
struct NetworkTable {
    reach: Option<Reach>,
    rest: NetworkKeys,
}

/// What the guest reaches.
#[derive(Debug)]
enum Reach {
    None,
    Nat,
    Allowed(NetworkPolicy),
    Policy(PathBuf),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NetworkKeys {
    mode: Option<Mode>,
    allow: Option<Allowed>,
    policy: Option<PathBuf>,
    publish: Vec<Published>,
    host_services: Vec<Service>,
    subnet: Option<Ipv4Net>,
    subnet6: Option<Ipv6Net>,
    mac: Option<Mac>,
    hostname: Option<DomainName>,
    dns: Vec<Resolver>,
    log: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    None,
    Nat,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Allowed(NetworkPolicy);

/// Texts of the file that say what they say on the command line.
macro_rules! written {
    ($($name:ident($meaning:ty) as $parse:path;)*) => {$(
        #[derive(Debug, Deserialize)]
        #[serde(try_from = "String")]
        struct $name($meaning);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                $parse(&text).map(Self)
            }
        }
    )*};
}

written! {
    Published(PortForward) as publish::parse;
    Service(HostService) as services::parse;
    Mac([u8; 6]) as addresses::mac;
    Resolver(SocketAddr) as addresses::resolver;
}

impl TryFrom<Vec<String>> for Allowed {
    type Error = String;

    fn try_from(list: Vec<String>) -> Result<Self, String> {
        policy::allowing(&list.join(",")).map(Self)
    }
}

impl TryFrom<NetworkKeys> for NetworkTable {
    type Error = &'static str;

    fn try_from(mut keys: NetworkKeys) -> Result<Self, &'static str> {
        let reach = match (keys.mode.take(), keys.allow.take(), keys.policy.take()) {
            (None, None, None) => None,
            (Some(Mode::None), None, None) => Some(Reach::None),
            (Some(Mode::Nat), None, None) => Some(Reach::Nat),
            (None, Some(Allowed(policy)), None) => Some(Reach::Allowed(policy)),
            (None, None, Some(file)) => Some(Reach::Policy(file)),
            _ => {
                return Err(
                    "`mode`, `allow` and `policy` all say what the guest reaches: keep one",
                );
            }
        };
        Ok(Self { reach, rest: keys })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConsoleTable {
    mode: Option<ConsoleSetting>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareTable {
    host: PathBuf,
    guest: String,
    #[serde(default)]
    mode: ShareMode,
    #[serde(default)]
    mechanism: Mechanism,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ShareMode {
    #[default]
    Ro,
    Rw,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mechanism {
    #[default]
    Auto,
    VirtioFs,
    #[serde(rename = "9p")]
    Virtio9p,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CmdlineTable {
    extra: Vec<String>,
}

impl Config {
    /// The settings, with paths relative to `base`.
    fn settings(self, base: &Path) -> Result<Settings, String> {
        let resolve = |path: PathBuf| base.join(path);
        let further = |entry: FurtherDisk| {
            let mut disk = disk::image(resolve(entry.path), entry.format);
            disk.read_only = entry.read_only;
            disk.ephemeral = entry.ephemeral;
            disk
        };
        Ok(Settings {
            system: self.guest.os,
            boot: self.guest.boot,
            kernel: self.boot.kernel.map(resolve),
            initrd: self.boot.initrd.map(resolve),
            variables: self.boot.variables.map(resolve),
            disk: self
                .disk
                .map(|disk| disk::image(resolve(disk.path), disk.format)),
            disks: self.disks.into_iter().map(further).collect(),
            shares: self
                .shares
                .into_values()
                .map(|share| share.shared(base))
                .collect(),
            network: self.network.settings(base)?,
            console: self.console.mode,
            cpus: self.resources.cpus,
            memory_mb: self.resources.memory.map(|memory| memory.0),
            timeout: self.resources.timeout.map(|timeout| timeout.0),
            cmdline: KernelCmdline::new().args(self.cmdline.extra),
            ..Settings::default()
        })
    }
}

impl NetworkTable {
    fn settings(self, base: &Path) -> Result<NetworkSettings, String> {
        let setting = self.reach.map(|reach| {
            Ok::<_, String>(match reach {
                Reach::None => NetworkSetting::None,
                Reach::Nat => NetworkSetting::Nat,
                Reach::Allowed(policy) => NetworkSetting::Policy(policy),
                Reach::Policy(file) => NetworkSetting::Policy(policy::read(&base.join(file))?),
            })
        });
        let rest = self.rest;
        Ok(NetworkSettings {
            setting: setting.transpose()?,
            publish: rest.publish.into_iter().map(|port| port.0).collect(),
            services: rest.host_services.into_iter().map(|said| said.0).collect(),
            subnet: rest.subnet,
            subnet6: rest.subnet6,
            mac: rest.mac.map(|address| address.0),
            hostname: rest.hostname,
            resolvers: rest.dns.into_iter().map(|address| address.0).collect(),
            log: rest.log.map(|file| base.join(file)),
        })
    }
}

impl ShareTable {
    fn shared(self, base: &Path) -> SharedDir {
        let mode = match self.mode {
            ShareMode::Ro => MountMode::ReadOnly,
            ShareMode::Rw => MountMode::ReadWrite,
        };
        let mechanism = match self.mechanism {
            Mechanism::Auto => ShareMechanism::Auto,
            Mechanism::VirtioFs => ShareMechanism::VirtioFs(VirtioFsConfig::default()),
            Mechanism::Virtio9p => ShareMechanism::Virtio9p(Virtio9pConfig::default()),
        };
        SharedDir::new(base.join(self.host), self.guest, mode).with_mechanism(mechanism)
    }
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
