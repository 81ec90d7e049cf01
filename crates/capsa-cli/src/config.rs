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
//! mode = "none"               # or "nat"
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
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capsa::{KernelCmdline, MountMode, ShareMechanism, SharedDir, Virtio9pConfig, VirtioFsConfig};
use serde::Deserialize;

use crate::disk::{self, DiskFormat};
use crate::settings::{Boot, ConsoleSetting, NetworkSetting, Settings, System};
use crate::{nearest, quantity};

/// Most bytes of a file: far more than any configuration, and bounded for who names a disk image
/// or a device by mistake.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a configuration file. An error names the file, the line, and the nearest valid name.
pub(crate) fn read(path: &Path) -> Result<Settings, String> {
    let name = path.display();
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| format!("cannot read {name}: {error}"))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!(
            "{name} is not a configuration: it has over {MAX_BYTES} bytes"
        ));
    }
    let config: Config = toml::from_str(&text).map_err(|error| {
        let line = error.span().map(|span| line_of(&text, span.start));
        let place = line.map(|line| format!(":{line}")).unwrap_or_default();
        format!("{name}{place}: {}", explain(error.message()))
    })?;
    Ok(config.settings(path.parent().unwrap_or(Path::new(""))))
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

/// What serde says, with the nearest name. It says ``unknown field `a`, expected one of `b`, `c` ``
/// (serde::de::Error::unknown_field and unknown_variant), so every second part is a name.
fn explain(message: &str) -> String {
    let what = [("unknown field", "key"), ("unknown variant", "value")]
        .into_iter()
        .find_map(|(start, what)| message.starts_with(start).then_some(what));
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (what, names.as_slice()) {
        (Some(what), [found, valid @ ..]) => nearest::unknown(what, found, valid),
        _ => message.to_owned(),
    }
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
#[serde(deny_unknown_fields, default)]
struct NetworkTable {
    mode: Option<NetworkSetting>,
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
    fn settings(self, base: &Path) -> Settings {
        let resolve = |path: PathBuf| base.join(path);
        let further = |entry: FurtherDisk| {
            let mut disk = disk::image(resolve(entry.path), entry.format);
            disk.read_only = entry.read_only;
            disk.ephemeral = entry.ephemeral;
            disk
        };
        Settings {
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
            network: self.network.mode,
            console: self.console.mode,
            cpus: self.resources.cpus,
            memory_mb: self.resources.memory.map(|memory| memory.0),
            timeout: self.resources.timeout.map(|timeout| timeout.0),
            cmdline: KernelCmdline::new().args(self.cmdline.extra),
            ..Settings::default()
        }
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
