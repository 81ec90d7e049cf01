//! `--root` and what goes with it: what the command of a sandbox sees as `/`.

use std::path::PathBuf;

use capsa::{Changes, SandboxRoot};
use clap::Args;

use crate::quantity;

#[derive(Debug, Args)]
#[command(next_help_heading = "Root")]
pub(crate) struct RootArgs {
    /// What the command sees as `/`, read-only on the host: a folder; `/`, for this machine's programs
    /// without its data; or `initramfs`, the guest kit's own. What is changed is thrown away
    #[arg(long, value_name = "FOLDER", default_value = "initramfs")]
    root: PathBuf,

    /// With `--root /`: let the command read this folder or file too, at the same path
    #[arg(long, value_name = "PATH")]
    expose: Vec<PathBuf>,

    /// Keep what is changed of the root on a temporary disk of this size (1G), and not in the guest's
    /// memory
    #[arg(long, value_name = "SIZE", value_parser = quantity::mebibytes)]
    root_disk: Option<u32>,
}

impl RootArgs {
    /// What makes no sense together, the library refuses.
    pub(crate) fn into_root(self) -> SandboxRoot {
        let root = match self.root {
            root if root.as_os_str() == "initramfs" => SandboxRoot::initramfs(),
            root => SandboxRoot::from(root),
        };
        let root = self.expose.into_iter().fold(root, SandboxRoot::expose);
        match self.root_disk {
            Some(mebibytes) => root.changes(Changes::Disk {
                bytes: u64::from(mebibytes) << 20,
            }),
            None => root,
        }
    }
}
