//! A disk that UEFI firmware boots: the kit as a unified kernel image
//! (uapi-group.org/specifications/specs/unified_kernel_image), in the place where firmware looks
//! when nobody told it what to boot.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use capsa::kit::Kit;
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use super::cache;
use super::host::run;

/// The package with the EFI program that starts the kernel behind it.
const STUB_PACKAGE: &str = "systemd-boot-efi";
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// `no_timer_check` as on Capsa's own kernel lines under emulation.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet no_timer_check";

/// Room for the kernel and the initramfs, some 16 MB.
const SIZE: u64 = 48 << 20;

pub(super) fn disk(kit: &Kit) -> Result<PathBuf> {
    let files = &kit.manifest;
    let recipe = [
        files.firmware_kernel.sha256.as_bytes(),
        files.initramfs.sha256.as_bytes(),
        CMDLINE.as_bytes(),
        &SIZE.to_le_bytes(),
    ];
    cache::image("uefi", "raw", &recipe, |work| {
        let program = unified_image(kit, work)?;
        let disk = work.join("disk");
        write_disk(&disk, &program)?;
        Ok(disk)
    })
}

fn unified_image(kit: &Kit, work: &Path) -> Result<Vec<u8>> {
    run(work, "apt-get", ["download", "--quiet", STUB_PACKAGE])?;
    let package = fs::read_dir(work)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .context("apt-get has downloaded nothing")?;
    run(work, "dpkg-deb", ["--extract", text(&package)?, "stub"])?;
    fs::write(work.join("cmdline"), CMDLINE)?;
    let section =
        |name: &str, file: &Path| Ok::<_, anyhow::Error>(format!("{name}={}", text(file)?));
    run(
        work,
        "objcopy",
        [
            // Where the sections are in memory: behind the stub's own and not overlapping, as the
            // manual page systemd-stub(7) has them. The kernel stays below 16 MiB.
            "--add-section",
            ".cmdline=cmdline",
            "--change-section-vma",
            ".cmdline=0x30000",
            "--add-section",
            &section(".linux", &kit.firmware_kernel)?,
            "--change-section-vma",
            ".linux=0x2000000",
            "--add-section",
            &section(".initrd", &kit.initramfs)?,
            "--change-section-vma",
            ".initrd=0x3000000",
            &format!("stub/{STUB}"),
            "unified.efi",
        ],
    )?;
    Ok(fs::read(work.join("unified.efi"))?)
}

/// One FAT file system over the whole disk: firmware looks into every file system that it knows.
fn write_disk(path: &Path, program: &[u8]) -> Result<()> {
    let mut disk = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    disk.set_len(SIZE)?;
    fatfs::format_volume(
        &mut disk,
        FormatVolumeOptions::new().volume_label(*b"CAPSA      "),
    )?;
    let volume = FileSystem::new(&mut disk, FsOptions::new())?;
    let folder = volume.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
    folder.create_file("BOOTX64.EFI")?.write_all(program)?;
    drop(folder);
    volume.unmount()?;
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .context("the build folder's path is not UTF-8")
}
