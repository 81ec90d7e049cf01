//! A root disk with a login prompt.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cache;
use super::host::run;

const BUSYBOX: &str = "/bin/busybox";

/// Enough for the tests to write to.
const SIZE: &str = "48M";

/// The files of the guest, with their modes.
const FILES: [(&str, u32, &str); 7] = [
    ("etc/inittab", 0o644, include_str!("rootfs/inittab")),
    ("etc/rc", 0o755, include_str!("rootfs/rc")),
    ("etc/profile", 0o644, "export PS1='# '\n"),
    ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/shadow", 0o600, "root::19000:0:99999:7:::\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
    ("etc/acpi/PWRF/00000080", 0o755, "#!/bin/sh\npoweroff\n"),
];

const FOLDERS: [&str; 10] = [
    "bin", "dev", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "var",
];

pub(super) fn raw() -> Result<PathBuf> {
    let busybox = fs::read(BUSYBOX).context(BUSYBOX)?;
    let texts = FILES
        .iter()
        .flat_map(|(path, _, text)| [path.as_bytes(), text.as_bytes()]);
    let recipe: Vec<&[u8]> = texts.chain([SIZE.as_bytes(), &busybox]).collect();
    cache::image("rootfs", "raw", &recipe, |work| {
        let tree = work.join("tree");
        lay_out(&tree, &busybox)?;
        run(
            work,
            "mke2fs",
            [
                "-q",
                "-t",
                "ext4",
                "-L",
                "capsa-test",
                "-m",
                "0",
                "-d",
                "tree",
                "disk",
                SIZE,
            ],
        )?;
        Ok(work.join("disk"))
    })
}

pub(super) fn qcow2() -> Result<PathBuf> {
    let raw = raw()?;
    let source = raw
        .to_str()
        .context("the build folder's path is not UTF-8")?;
    // The raw image's name has its hash.
    cache::image("rootfs", "qcow2", &[source.as_bytes()], |work| {
        run(
            work,
            "qemu-img",
            ["convert", "-f", "raw", "-O", "qcow2", source, "disk"],
        )?;
        Ok(work.join("disk"))
    })
}

fn lay_out(tree: &Path, busybox: &[u8]) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    for (path, mode, text) in FILES {
        write(&tree.join(path), mode, text.as_bytes())?;
    }
    write(&tree.join("bin/busybox"), 0o755, busybox)?;
    for applet in run(tree, BUSYBOX, ["--list"])?.lines() {
        let link = tree.join("bin").join(applet);
        if applet != "busybox" {
            symlink("busybox", &link).with_context(|| link.display().to_string())?;
        }
    }
    symlink("/bin/busybox", tree.join("sbin/init"))?;
    Ok(())
}

fn write(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(())
}
