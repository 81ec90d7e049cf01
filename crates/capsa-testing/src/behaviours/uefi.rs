//! Disks that UEFI firmware boots.

use std::fs;
use std::time::Duration;

use capsa::{
    BackendChoice, Capsa, DiskImage, EfiVariableStore, UefiBootConfig, VmConsole, VmHandle,
};

use crate::images::{self, UEFI_PROMPT};

/// Firmware under emulation takes its time: 10 s where nothing else runs.
const FIRMWARE_LIMIT: Duration = Duration::from_secs(300);

async fn boot(backend: BackendChoice, config: UefiBootConfig) -> (VmHandle, VmConsole) {
    let vm = Capsa::with_backend(backend)
        .vm(config)
        .memory_mb(512)
        .console_enabled()
        .build()
        .await
        .expect("build");
    vm.start().await.expect("start");
    let mut console = vm.console().await.expect("console");
    console
        .wait_for_timeout(UEFI_PROMPT, FIRMWARE_LIMIT)
        .await
        .expect("the guest's prompt");
    (vm, console)
}

/// The firmware boots the disk's kernel to a console line; its variables are thrown away.
pub async fn firmware_boots_a_disk(backend: BackendChoice) {
    let disk = DiskImage::new(images::uefi_disk()).ephemeral();
    let (vm, mut console) = boot(backend, UefiBootConfig::new(disk)).await;
    let run = console.run_command_timeout("ls -d /sys/firmware/efi", "# ", FIRMWARE_LIMIT);
    assert!(run.await.expect("output").contains("/sys/firmware/efi"));
    vm.kill().await.expect("kill");
}

/// The variable store is made where it was asked for, and the firmware writes to it.
pub async fn variables_are_kept_in_their_store(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("variables.fd");
    let disk = DiskImage::new(images::uefi_disk()).ephemeral();
    let config = UefiBootConfig::new(disk).variables(EfiVariableStore::new(&store));
    let (vm, _) = boot(backend, config.clone()).await;
    vm.kill().await.expect("kill");
    let first = fs::read(&store).expect("the store");
    // The firmware has noted its boot options.
    let utf16: Vec<u8> = "BootOrder".bytes().flat_map(|byte| [byte, 0]).collect();
    let is_there = first.windows(utf16.len()).any(|window| window == utf16);
    assert!(is_there, "the store holds no BootOrder");
    let (vm, _) = boot(backend, config).await;
    vm.kill().await.expect("kill");
    let names: Vec<_> = fs::read_dir(&folder)
        .expect("the folder")
        .flatten()
        .collect();
    assert_eq!(names.len(), 1, "{names:?}");
}
