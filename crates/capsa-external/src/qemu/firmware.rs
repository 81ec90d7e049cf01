//! Finds UEFI firmware for QEMU the way distributions announce it: by firmware descriptors
//! (QEMU's docs/interop/firmware.json), JSON files whose name order is their precedence.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where descriptors lie, weakest first: a file hides one of the same name in an earlier folder.
const FOLDERS: [&str; 2] = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"];

/// A descriptor is about 1 KiB.
const MAX_DESCRIPTOR: u64 = 64 << 10;

/// Firmware for a q35 machine: the code, and the template of its variable store, both raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UefiFirmware {
    pub(crate) code: PathBuf,
    pub(crate) variables_template: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    executable: Option<FlashFile>,
    nvram_template: Option<FlashFile>,
}

#[derive(Deserialize)]
struct FlashFile {
    filename: PathBuf,
    format: String,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

/// The firmware of highest precedence that a q35 machine without SMM can use, if any is installed.
pub(crate) fn find() -> Option<UefiFirmware> {
    find_in(FOLDERS.map(Path::new).as_slice())
}

fn find_in(folders: &[&Path]) -> Option<UefiFirmware> {
    let mut descriptors: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for entry in folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(Iterator::flatten)
    {
        if entry.path().extension().is_some_and(|e| e == "json") {
            descriptors.insert(entry.file_name(), entry.path());
        }
    }
    descriptors.values().find_map(|path| usable(path))
}

fn usable(path: &Path) -> Option<UefiFirmware> {
    if fs::metadata(path).ok()?.len() > MAX_DESCRIPTOR {
        return None;
    }
    let descriptor: Descriptor = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let has_q35 = descriptor.targets.iter().any(|target| {
        target.architecture == "x86_64" && target.machines.iter().any(|m| m.starts_with("pc-q35"))
    });
    let needs_smm = descriptor.features.iter().any(|f| f == "requires-smm");
    if !has_q35
        || needs_smm
        || descriptor.mapping.device != "flash"
        || !descriptor.interface_types.iter().any(|t| t == "uefi")
    {
        return None;
    }
    let code = descriptor.mapping.executable?;
    let template = descriptor.mapping.nvram_template?;
    let present = |file: &FlashFile| file.format == "raw" && file.filename.is_file();
    (present(&code) && present(&template)).then_some(UefiFirmware {
        code: code.filename,
        variables_template: template.filename,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_usable_descriptor_wins_and_broken_ones_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let (code, vars) = (file("code.fd", "c"), file("vars.fd", "v"));
        let descriptor = |features: &str, code: &str| {
            format!(
                r#"{{"interface-types":["uefi"],"mapping":{{"device":"flash",
                "executable":{{"filename":"{code}","format":"raw"}},
                "nvram-template":{{"filename":"{vars}","format":"raw"}}}},
                "targets":[{{"architecture":"x86_64","machines":["pc-q35-*"]}}],
                "features":[{features}]}}"#
            )
        };
        file("10-broken.json", "{");
        file("20-smm.json", &descriptor("\"requires-smm\"", &code));
        file("30-gone.json", &descriptor("", "/nonexistent/code.fd"));
        assert_eq!(find_in(&[folder.path()]), None);
        file("40-good.json", &descriptor("\"acpi-s3\"", &code));
        let found = find_in(&[folder.path()]).unwrap();
        assert_eq!(found.code, Path::new(&code));
        assert_eq!(found.variables_template, Path::new(&vars));
    }
}
