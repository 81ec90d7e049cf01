//! Which kernel modules a guest needs, and in which order.
//!
//! A kernel's package has no `modules.dep` (its installation makes it), so the order comes from
//! the modules themselves: each names in its `.modinfo` section what it depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use capsa_core::kit::KitFailure;
use object::{Object, ObjectSection};

use super::packed;
use crate::{Error, Result};

/// A module that a guest may need.
struct Wanted {
    name: &'static str,
    /// Without it no guest does anything useful.
    essential: bool,
}

const fn wanted(name: &'static str) -> Wanted {
    Wanted {
        name,
        essential: false,
    }
}

const fn essential(name: &'static str) -> Wanted {
    Wanted {
        name,
        essential: true,
    }
}

/// What the devices, file systems and events of Capsa's machines need in the guest.
const WANTED: [Wanted; 19] = [
    essential("virtio_pci"),
    essential("virtio_blk"),
    wanted("virtio_net"),
    wanted("virtio_console"),
    wanted("virtio_rng"),
    // Shared folders.
    wanted("9p"),
    wanted("9pnet_virtio"),
    wanted("virtiofs"),
    wanted("vmw_vsock_virtio_transport"),
    wanted("overlay"),
    wanted("ext4"),
    // ext4 asks for its checksum by an alias of the crypto API, which is no dependency. The one
    // for the processor's instruction is not worth it: these disks are small or short-lived.
    wanted("crc32c_generic"),
    // The power button is an input device.
    wanted("button"),
    wanted("evdev"),
    wanted("qemu_fw_cfg"),
    // QEMU's pvpanic device is found through ACPI, by the driver named after its MMIO form.
    wanted("pvpanic"),
    wanted("pvpanic_mmio"),
    wanted("pvpanic_pci"),
    wanted("virtio_mmio"),
];

/// A module, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// Its name, with `_` throughout.
    pub(super) name: String,
    /// The modules that must be loaded before it.
    pub(super) depends: Vec<String>,
    /// The names under which the kernel may ask for it.
    pub(super) aliases: Vec<String>,
    /// The kernel release that it was built for.
    pub(super) release: String,
    pub(super) content: Vec<u8>,
}

/// The modules for a guest.
#[derive(Debug, Default)]
pub(super) struct ModuleSet {
    /// Each after those it depends on.
    pub(super) modules: Vec<Module>,
    /// Wanted, and part of the kernel itself.
    pub(super) builtin: Vec<String>,
    /// Wanted, and not to be had.
    pub(super) missing: Vec<String>,
}

/// Takes what a guest needs from `tree`, a folder like `/lib/modules/<release>`, and `more`.
pub(super) fn collect(tree: &Path, more: &[String]) -> Result<ModuleSet> {
    let index = index(tree)?;
    let builtin = read_builtin(tree)?;
    let more: Vec<String> = more.iter().map(|name| plain(name)).collect();
    let names = WANTED.iter().map(|module| module.name);
    let names = names.chain(more.iter().map(String::as_str));
    let set = resolve(names, &index, &builtin)?;
    let is_needed = |name: &&String| {
        let mut essential = WANTED.iter().filter(|module| module.essential);
        more.contains(name) || essential.any(|module| module.name == name.as_str())
    };
    match set.missing.iter().find(is_needed) {
        Some(name) => Err(unusable(tree, format!("it has no module {name}"))),
        None => Ok(set),
    }
}

/// The modules that [`collect`] looks for in any case.
pub(super) fn wanted_names() -> impl Iterator<Item = &'static str> {
    WANTED.iter().map(|module| module.name)
}

/// Where each module is, by name.
type Index = BTreeMap<String, PathBuf>;

fn resolve<'a>(
    names: impl Iterator<Item = &'a str>,
    index: &Index,
    builtin: &BTreeSet<String>,
) -> Result<ModuleSet> {
    let mut set = ModuleSet::default();
    let mut done = BTreeSet::new();
    for name in names {
        if index.contains_key(name) {
            add(name, index, builtin, &mut done, &mut set.modules)?;
        } else if builtin.contains(name) {
            set.builtin.push(name.to_owned());
        } else {
            set.missing.push(name.to_owned());
        }
    }
    Ok(set)
}

/// Appends a module after all that it depends on. Modules that depend on each other would not
/// load; here they end the search, as `done` is marked on the way down.
fn add(
    name: &str,
    index: &Index,
    builtin: &BTreeSet<String>,
    done: &mut BTreeSet<String>,
    out: &mut Vec<Module>,
) -> Result<()> {
    // A stack of our own: files decide how deep this goes.
    let mut stack: Vec<(Module, usize)> = Vec::new();
    let enter = |name: &str, done: &mut BTreeSet<String>| -> Result<Option<(Module, usize)>> {
        if builtin.contains(name) || !done.insert(name.to_owned()) {
            return Ok(None);
        }
        let Some(path) = index.get(name) else {
            return Err(unusable(
                Path::new(name),
                "another module depends on it, and it is not there",
            ));
        };
        Ok(Some((load(name, path)?, 0)))
    };
    stack.extend(enter(name, done)?);
    while let Some((module, next)) = stack.last_mut() {
        match module.depends.get(*next).cloned() {
            Some(dependency) => {
                *next += 1;
                stack.extend(enter(&dependency, done)?);
            }
            None => out.extend(stack.pop().map(|(module, _)| module)),
        }
    }
    Ok(())
}

/// Every module file below `tree`. Links are not followed: `build` and `source` lead elsewhere.
fn index(tree: &Path) -> Result<Index> {
    let mut index = Index::new();
    for entry in walkdir::WalkDir::new(tree) {
        let entry = entry.map_err(|e| Error::io("list", tree, e.into()))?;
        let name = entry.file_name().to_str();
        if entry.file_type().is_file()
            && let Some(name) = name.and_then(module_name)
        {
            index.insert(name, entry.into_path());
        }
    }
    Ok(index)
}

fn read_builtin(tree: &Path) -> Result<BTreeSet<String>> {
    let path = tree.join("modules.builtin");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let name = |line: &str| module_name(line.rsplit('/').next()?);
    Ok(text.lines().filter_map(name).collect())
}

/// The module in a file of this name.
fn module_name(file: &str) -> Option<String> {
    let (name, packing) = file.split_once(".ko")?;
    matches!(packing, "" | ".xz" | ".zst" | ".gz").then(|| plain(name))
}

/// The kernel compares module names with `-` and `_` equal.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn load(name: &str, path: &Path) -> Result<Module> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let content = match packed::unpack(&bytes) {
        Ok(Some(unpacked)) => unpacked,
        Ok(None) => bytes,
        Err(e) => return Err(unusable(path, format!("it cannot be unpacked: {e}"))),
    };
    parse(name, unsigned(content)).map_err(|message| unusable(path, message))
}

/// A module without the signature at its end, where there is one.
///
/// To check it takes the kernel several times as long as to load the module, and says nothing here:
/// the modules are as trusted as the initramfs that they are in. A kernel that is told to enforce
/// signatures (`module.sig_enforce`, lockdown) does not take them.
pub(super) fn unsigned(mut content: Vec<u8>) -> Vec<u8> {
    // The signature, `struct module_signature`, this text: include/linux/module_signature.h.
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    let signature = || {
        let (_, trailer) = content.strip_suffix(MAGIC)?.split_last_chunk::<12>()?;
        // Its last field is the signature's length.
        let (_, length) = trailer.split_last_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        content
            .len()
            .checked_sub(length + trailer.len() + MAGIC.len())
    };
    if let Some(end) = signature() {
        content.truncate(end);
    }
    content
}

pub(super) fn parse(name: &str, content: Vec<u8>) -> Result<Module, String> {
    let elf = object::File::parse(&*content).map_err(|e| format!("not an ELF file: {e}"))?;
    let modinfo = elf
        .section_by_name(".modinfo")
        .ok_or("it has no .modinfo section, so it is no kernel module")?
        .data()
        .map_err(|e| format!("its .modinfo section cannot be read: {e}"))?;
    let values = |key: &'static str| {
        modinfo
            .split(|byte| *byte == 0)
            .filter_map(|entry| str::from_utf8(entry).ok()?.split_once('='))
            .filter(move |(found, _)| *found == key)
            .map(|(_, value)| value)
    };
    let depends = values("depends")
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(plain)
        .collect();
    // They are written into a file of words, and become part of file names: refuse what is neither.
    let aliases = values("alias")
        .filter(|alias| !alias.contains(char::is_whitespace))
        .map(str::to_owned)
        .collect();
    let release = values("vermagic")
        .next()
        .and_then(|magic| magic.split(' ').next())
        .filter(|release| is_release(release))
        .ok_or("it does not say which kernel it belongs to")?
        .to_owned();
    Ok(Module {
        name: name.to_owned(),
        depends,
        aliases,
        release,
        content,
    })
}

/// Whether this can be a kernel release, and so the name of a folder.
pub(super) fn is_release(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        // The size of the kernel's own field, `__NEW_UTS_LEN`.
        && text.len() <= 64
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-+~".contains(&b))
}

fn unusable(path: &Path, message: impl Into<String>) -> Error {
    KitFailure::Source {
        path: path.into(),
        message: message.into(),
    }
    .into()
}
