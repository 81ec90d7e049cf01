//! Builds the initramfs: a "newc" cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The same input gives the same bytes: entries are sorted, owned by root, dated 1970 and numbered
//! in order. The archive is not compressed, as the guest would have to unpack it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use cpio::newc::{Builder, ModeFileType, trailer};

use super::folder;
use super::modules::{self, Module};
use super::source;

/// An archive being built.
#[derive(Default)]
struct Archive {
    /// By path, without a leading `/`.
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    Folder,
    File { mode: u32, content: Vec<u8> },
    Link { target: &'static str },
    Device { major: u32, minor: u32 },
}

/// The files of the guest that do not depend on the kernel, with their modes.
const FILES: [(&str, u32, &str); 8] = [
    ("init", 0o755, include_str!("guest/init.sh")),
    // What mount tries when it is not told: first what is a module, and so not in
    // /proc/filesystems before it is used; then what is there.
    ("etc/filesystems", 0o644, "ext4\n*\n"),
    ("etc/fstab", 0o644, include_str!("guest/fstab")),
    ("etc/group", 0o644, "root:x:0:\n"),
    // busybox does not find an entry without a password field.
    ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/profile", 0o644, include_str!("guest/profile")),
    ("etc/udhcpc", 0o755, include_str!("guest/udhcpc")),
    // acpid runs the file that its built-in table names for a press of the power button.
    (
        "etc/acpi/PWRF/00000080",
        0o755,
        include_str!("guest/power-button"),
    ),
];

/// Folders that are mount points, or that busybox puts its links into.
const FOLDERS: [&str; 12] = [
    "bin", "dev", "mnt", "proc", "root", "run", "sbin", "sys", "sysroot", "tmp", "usr/bin",
    "usr/sbin",
];

/// What init runs of busybox; a shell gets the other names at run time. The kernel itself runs
/// `/sbin/modprobe` when it needs a module: for a file system, say.
const APPLETS: [&str; 16] = [
    "bin/acpid",
    "bin/cttyhack",
    "bin/findfs",
    "bin/ip",
    "bin/login",
    "bin/mkdir",
    "bin/mount",
    "bin/poweroff",
    "bin/setsid",
    "bin/sh",
    "bin/sync",
    "bin/syslogd",
    "bin/switch_root",
    "bin/umount",
    "bin/usleep",
    "sbin/modprobe",
];

/// Puts everything together.
pub(super) fn build(busybox: Vec<u8>, release: &str, modules: Vec<Module>) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for (path, mode, text) in FILES {
        archive.file(path, mode, text.into());
    }
    for path in FOLDERS {
        archive.insert(path, Entry::Folder);
    }
    // The kernel gives init its standard streams from here, before anything can be mounted.
    archive.insert("dev/console", Entry::Device { major: 5, minor: 1 });
    archive.insert("dev/null", Entry::Device { major: 1, minor: 3 });
    // What else busybox is: for programs of a sandbox, which no shell runs first.
    for name in source::busybox_applets(&busybox) {
        let target = "/bin/busybox";
        archive.insert(&format!("usr/bin/{name}"), Entry::Link { target });
    }
    archive.file("bin/busybox", 0o755, busybox);
    for path in APPLETS {
        archive.insert(
            path,
            Entry::Link {
                target: "/bin/busybox",
            },
        );
    }

    let folder = format!("lib/modules/{release}");
    archive.file(
        &format!("{folder}/modules.dep"),
        0o644,
        dependencies(&modules).into(),
    );
    archive.file(
        &format!("{folder}/modules.alias"),
        0o644,
        aliases(&modules).into(),
    );
    for module in modules {
        let path = format!("{folder}/{}.ko", module.name);
        archive.file(&path, 0o644, module.content);
    }
    archive.finish()
}

/// What this version of Capsa puts around busybox and the modules, as a hash: changes when
/// anything of that changes.
pub(super) fn recipe() -> io::Result<String> {
    // A busybox of the first two names, so that what is made of them counts.
    let mut recipe = build(b"\0[\0[[\0".to_vec(), "", Vec::new())?;
    for name in modules::wanted_names() {
        recipe.extend_from_slice(name.as_bytes());
    }
    recipe.extend_from_slice(b"without signatures");
    Ok(folder::sha256(&recipe))
}

/// `modules.dep`: per module all that must be loaded before it, the last of them first.
fn dependencies(modules: &[Module]) -> String {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut text = String::new();
    for module in modules {
        let mut before: Vec<&str> = Vec::new();
        for direct in &module.depends {
            let deeper = all.get(direct.as_str()).into_iter().flatten().copied();
            for name in deeper.chain([direct.as_str()]) {
                // A module that the kernel has built in has no entry and no file.
                if modules.iter().any(|m| m.name == name) && !before.contains(&name) {
                    before.push(name);
                }
            }
        }
        let files: String = before.iter().rev().fold(String::new(), |mut list, name| {
            let _ = write!(list, " {name}.ko");
            list
        });
        let _ = writeln!(text, "{}.ko:{files}", module.name);
        all.insert(&module.name, before);
    }
    text
}

/// `modules.alias`: which module the kernel means when it asks for one by what it is for.
fn aliases(modules: &[Module]) -> String {
    let mut text = String::new();
    for module in modules {
        for alias in &module.aliases {
            let _ = writeln!(text, "alias {alias} {}", module.name);
        }
    }
    text
}

impl Archive {
    /// Adds an entry and the folders that it is in.
    fn insert(&mut self, path: &str, entry: Entry) {
        for (end, _) in path.match_indices('/') {
            self.entries
                .entry(path[..end].to_owned())
                .or_insert(Entry::Folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.insert(path, Entry::File { mode, content });
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(self.entries) {
            let header = Builder::new(&path).ino(number).nlink(1);
            let (header, content) = match &entry {
                Entry::Folder => (
                    header
                        .mode(0o755)
                        .nlink(2)
                        .set_mode_file_type(ModeFileType::Directory),
                    &[][..],
                ),
                Entry::File { mode, content } => (
                    header.mode(*mode).set_mode_file_type(ModeFileType::Regular),
                    &content[..],
                ),
                Entry::Link { target } => (
                    header.mode(0o777).set_mode_file_type(ModeFileType::Symlink),
                    target.as_bytes(),
                ),
                Entry::Device { major, minor } => (
                    header
                        .mode(0o600)
                        .set_mode_file_type(ModeFileType::Char)
                        .rdev_major(*major)
                        .rdev_minor(*minor),
                    &[][..],
                ),
            };
            let size = u32::try_from(content.len()).map_err(io::Error::other)?;
            let mut writer = header.write(&mut out, size);
            writer.write_all(content)?;
            writer.finish()?;
        }
        trailer(&mut out)?;
        Ok(out)
    }
}
