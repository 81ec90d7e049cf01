//! The level-1 guest's machine: QEMU's command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Bench;
use super::folder::Folder;
use crate::workspace::command as program;

/// AMD's virtualisation with nested paging is what QEMU can emulate. Its emulation does not
/// intercept `xsetbv` (7.2), so a KVM in the guest must not use XSAVE. `check=off`: it is known
/// that not every feature of an EPYC is emulated.
const CPU: &str = "EPYC,+svm,+npt,-xsave,check=off";

/// Quick, and with an end: a panic or a reboot ends QEMU. On a busy machine an emulated timer does not
/// tick in time for the kernel's check of its interrupt, which would then panic.
const CMDLINE: &str = "console=ttyS0 quiet reboot=t panic=-1 mitigations=off no_timer_check";

/// What the guest boots.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    image: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
}

impl Kernel {
    /// Reads what the program `level1` prints.
    pub(super) fn parse(text: &str) -> Result<Option<Self>> {
        let lines: Vec<_> = text.lines().collect();
        match lines[..] {
            [] => Ok(None),
            [image, initramfs, cmdline] => Ok(Some(Self {
                image: image.into(),
                initramfs: initramfs.into(),
                cmdline: cmdline.into(),
            })),
            _ => bail!("not a kernel, an initramfs and a kernel line: {text:?}"),
        }
    }
}

/// The guest's output is on QEMU's own stdout and stderr, which have to be pipes.
pub(super) fn command(bench: &Bench, kernel: &Kernel, folder: &Folder) -> Result<Command> {
    // QEMU ends with this thread, however that ends.
    let mut qemu = program("setpriv")?;
    qemu.args(["--pdeathsig", "KILL", "--"]);
    if let Some(processor) = bench.processor {
        qemu.args(["taskset", "--cpu-list", &processor.to_string()]);
    }
    qemu.arg("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-machine", "q35", "-accel", "tcg,thread=multi"])
        .args(["-cpu", CPU, "-smp", &bench.cpus.to_string()])
        .args(["-m", &bench.memory.to_string(), "-no-reboot"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&kernel.initramfs)
        .args(["-append", &format!("{CMDLINE} {}", kernel.cmdline)]);
    qemu.args([
        "-chardev",
        &format!("file,id=console,{}", path(&folder.console())?),
    ])
    .args(["-serial", "chardev:console"]);
    qemu.args(["-device", "virtio-serial-pci"]);
    for (number, stream) in [(1, "stdout"), (2, "stderr")] {
        qemu.args(["-chardev", &format!("file,id={stream},path=/dev/{stream}")])
            .args([
                "-device",
                &format!("virtserialport,nr={number},chardev={stream}"),
            ]);
    }
    for (tag, folder, more) in [
        ("root", Path::new("/"), ",readonly=on,multidevs=remap"),
        ("control", &folder.control(), ""),
        ("share", folder.share(), ",multidevs=remap"),
    ] {
        let path = path(folder)?;
        let export = format!("local,mount_tag={tag},security_model=none,{path}{more}");
        qemu.args(["-virtfs", &export]);
    }
    Ok(qemu)
}

/// A path as a part of an option of QEMU's, where a comma has to be doubled.
fn path(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("QEMU does not take the path {}", path.display()))?;
    Ok(format!("path={}", text.replace(',', ",,")))
}

/// The numbers of this machine's processors that this program may use.
pub(super) fn processors() -> Result<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .context("/proc/self/status names no processors")?;
    parse_list(list).with_context(|| format!("not a list of processors: {list:?}"))
}

/// Reads the kernel's form of a set: `0-2,5`.
fn parse_list(list: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_boot_is_read_from_three_lines_or_none() {
        assert_eq!(Kernel::parse("").unwrap(), None);
        let kernel = Kernel::parse("/a b\n/c\nx=y z\n").unwrap().unwrap();
        assert_eq!(kernel.image, Path::new("/a b"));
        assert_eq!(kernel.cmdline, "x=y z");
        assert!(Kernel::parse("/a\n").is_err());
    }

    #[test]
    fn a_comma_in_a_path_separates_nothing() {
        assert_eq!(path(Path::new("/a,b")).unwrap(), "path=/a,,b");
    }

    #[test]
    fn the_kernels_list_of_processors_is_read() {
        assert_eq!(parse_list("\t0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list("7"), Some(vec![7]));
        assert_eq!(parse_list(""), None);
        assert!(!processors().unwrap().is_empty());
    }
}
