//! Loads kernel modules: first the few without which nothing works, by name; later those of all
//! devices that are there, by what the devices say they are.
//!
//! To load a module takes some milliseconds, so none is loaded before it is needed. The kernel can
//! also load modules by itself, through the kit's `modprobe`, which takes a process for each.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::system::{finit_module, uname};

/// Where devices say what they are. Input devices appear with the drivers of the others.
const BUSES: [&str; 4] = [
    "/sys/bus/pci/devices",
    VIRTIO,
    "/sys/bus/acpi/devices",
    "/sys/class/input",
];

const VIRTIO: &str = "/sys/bus/virtio/devices";

/// How the name of a virtio block device begins (virtio 1.2, 5: device type 2).
const DISK: &str = "virtio:d00000002";

/// The modules of the kernel that runs; by default none.
#[derive(Default)]
pub(super) struct Modules {
    /// Kept open, as another root does not have it. None if all of the kernel's drivers are built
    /// in.
    folder: Option<OwnedFd>,
    /// By name: its file, and the names of those that must be loaded before it, the last first.
    known: HashMap<String, (String, Vec<String>)>,
    /// Patterns, and the names of modules.
    aliases: Vec<(String, String)>,
    /// The files that have been given to the kernel, with success or not. Of a module that it has
    /// already it would read all before it says so.
    tried: HashSet<String>,
}

impl Modules {
    pub(super) fn find() -> io::Result<Self> {
        let path = format!("/lib/modules/{}", uname().release().to_string_lossy());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match open(&*path, flags, Mode::empty()) {
            Ok(folder) => Some(folder),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e.into()),
        };
        let read = |file: &str| match fs::read_to_string(format!("{path}/{file}")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            text => text,
        };
        Ok(Self {
            folder,
            known: dependencies(&read("modules.dep")?),
            aliases: aliases(&read("modules.alias")?),
            tried: HashSet::new(),
        })
    }

    /// Loads a module and those that it needs. One that is not there is part of the kernel; if it is
    /// not, what it would have been for will fail and say so.
    pub(super) fn load(&mut self, name: &str) -> io::Result<()> {
        let (Some(folder), Some((file, before))) = (&self.folder, self.known.get(name)) else {
            return Ok(());
        };
        let before = before.iter().rev().filter_map(|name| self.known.get(name));
        for file in before.map(|(file, _)| file).chain([file]) {
            if self.tried.insert(file.clone()) {
                load_file(folder, file)?;
            }
        }
        Ok(())
    }

    /// Loads the driver of disks, if there are any: programs look for those as soon as they run.
    pub(super) fn load_for_disks(&mut self) -> io::Result<()> {
        let Ok(devices) = fs::read_dir(VIRTIO) else {
            return Ok(());
        };
        let is_disk = |device: io::Result<fs::DirEntry>| {
            let modalias = fs::read_to_string(device?.path().join("modalias"))?;
            Ok::<_, io::Error>(modalias.starts_with(DISK))
        };
        match devices.map(is_disk).any(|is_disk| is_disk.unwrap_or(false)) {
            true => self.load("virtio_blk"),
            false => Ok(()),
        }
    }

    /// The modules for all devices that are there, without those that were loaded.
    pub(super) fn for_devices(&self) -> VecDeque<String> {
        let mut found = VecDeque::new();
        let entries = BUSES.iter().filter_map(|bus| fs::read_dir(bus).ok());
        for entry in entries.flatten().flatten() {
            let Ok(device) = fs::read_to_string(entry.path().join("modalias")) else {
                continue;
            };
            let device = device.trim_end();
            for (pattern, name) in &self.aliases {
                let is_new = !found.contains(name) && !self.was_tried(name);
                if is_new && matches(pattern.as_bytes(), device.as_bytes()) {
                    found.push_back(name.clone());
                }
            }
        }
        found
    }

    fn was_tried(&self, name: &str) -> bool {
        let known = self.known.get(name);
        known.is_some_and(|(file, _)| self.tried.contains(file))
    }
}

fn load_file(folder: &OwnedFd, file: &str) -> io::Result<()> {
    let file = openat(
        folder,
        file,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Reads `modules.dep`: `a/b.ko: c.ko d.ko`.
fn dependencies(text: &str) -> HashMap<String, (String, Vec<String>)> {
    let entry = |line: &str| {
        let (file, before) = line.split_once(':')?;
        let before = before.split_whitespace().map(name_of).collect();
        Some((name_of(file), (file.to_owned(), before)))
    };
    text.lines().filter_map(entry).collect()
}

/// The name of the module in a file.
fn name_of(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    let name = file.split('.').next().unwrap_or(file);
    name.replace('-', "_")
}

/// Reads `modules.alias`: `alias PATTERN NAME`.
fn aliases(text: &str) -> Vec<(String, String)> {
    let entry = |line: &str| {
        let (pattern, name) = line.strip_prefix("alias ")?.rsplit_once(' ')?;
        Some((pattern.to_owned(), name_of(name)))
    };
    text.lines().filter_map(entry).collect()
}

/// Whether a name fits a pattern in which `*` stands for anything, `?` for a character.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on if what follows the last `*` does not fit.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match retry {
                Some((after, from)) => {
                    (p, n) = (after, from + 1);
                    retry = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_known_by_name() {
        let known = dependencies("a.ko:\nkernel/x/b-c.ko.xz: kernel/y/d.ko a.ko\nnonsense\n");
        assert_eq!(known["a"], ("a.ko".to_owned(), vec![]));
        let (file, before) = &known["b_c"];
        assert_eq!(file, "kernel/x/b-c.ko.xz");
        assert_eq!(before, &["d", "a"]);
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn a_device_finds_its_module() {
        let aliases = aliases("# comment\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\n");
        let [(pattern, name)] = &aliases[..] else {
            panic!("{aliases:?}")
        };
        assert_eq!(name, "virtio_pci");
        let device = b"pci:v00001AF4d00001043sv00001AF4sd00001100bc07sc80i00";
        assert!(matches(pattern.as_bytes(), device));
        assert!(!matches(pattern.as_bytes(), b"pci:v00008086d0000"));
    }

    #[test]
    fn patterns_match_as_a_shell_s_do() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("*a*b*", "xxaybzz", true),
            ("*ab", "aab", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a", "ab", false),
            ("ab", "a", false),
        ] {
            let found = matches(pattern.as_bytes(), name.as_bytes());
            assert_eq!(found, expected, "{pattern} {name}");
        }
    }
}
