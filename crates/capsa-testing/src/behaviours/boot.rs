//! Booting, and that the guest is the machine that was asked for.

use capsa::kit::Kit;
use capsa::{
    BackendChoice, Capsa, DiskImage, LinuxBoot, LinuxDirectBootConfig, NetworkMode, VmStatus,
};

use crate::guest::{Guest, LIMIT, kit_vm};
use crate::images;

/// A VM boots to its shell, and says what runs it.
pub async fn boots_to_a_shell(backend: BackendChoice) {
    let mut guest = Guest::boot(kit_vm(backend)).await;
    assert_eq!(guest.vm.status(), VmStatus::Running);
    assert_eq!(Some(guest.vm.backend().kind), backend.kind());
    assert_eq!(guest.ok("uname -s").await, "Linux");
    guest.vm.kill().await.expect("kill");
}

/// `nproc` and MemTotal are what the builder said.
pub async fn the_guest_has_the_cpus_and_the_memory_it_was_given(backend: BackendChoice) {
    let mut guest = Guest::boot(kit_vm(backend).cpus(2).memory_mb(600)).await;
    assert_eq!(guest.ok("nproc").await, "2");
    let total = guest.ok("sed -n 's/MemTotal: *//p' /proc/meminfo").await;
    let kib: u32 = total.trim_end_matches(" kB").parse().expect("a number");
    // A kernel keeps some of it for itself: 600 MiB are 614,400 KiB.
    assert!((500_000..614_400).contains(&kib), "{total}");
    assert_eq!(guest.vm.resources().cpus, 2);
    guest.vm.kill().await.expect("kill");
}

/// All of the memory arrives: a little, up to the hole that a PC has below 4 GiB, and beyond it.
pub async fn memory_of_every_size_is_whole(backend: BackendChoice) {
    for mib in [128, 512, 3072, 3584, 6144] {
        let mut guest = Guest::boot(kit_vm(backend).memory_mb(mib)).await;
        let total = guest.ok("sed -n 's/MemTotal: *//p' /proc/meminfo").await;
        let kib: u32 = total.trim_end_matches(" kB").parse().expect("a number");
        // The kernel itself and its page structures are not counted.
        let (all, least) = (mib * 1024, mib * 1024 / 100 * 96 - 50 * 1024);
        assert!((least..all).contains(&kib), "{mib} MiB: {total}");
        guest.vm.kill().await.expect("kill");
    }
}

/// The guest sees its vCPUs as cores of one socket, numbered from 0.
pub async fn vcpus_are_cores_of_one_socket(backend: BackendChoice) {
    for cpus in [1, 2, 4] {
        let mut guest = Guest::boot(kit_vm(backend).cpus(cpus)).await;
        assert_eq!(guest.ok("nproc").await, cpus.to_string());
        let topology = "cd /sys/devices/system/cpu; for n in cpu[0-9]*; do \
            cat $n/topology/physical_package_id $n/topology/core_id $n/topology/thread_siblings_list; \
            done | xargs";
        let cores: Vec<String> = (0..cpus).map(|n| format!("0 {n} {n}")).collect();
        assert_eq!(guest.ok(topology).await, cores.join(" "));
        let ids = guest
            .ok("sed -n 's/^apicid.*: //p' /proc/cpuinfo | xargs")
            .await;
        let expected: Vec<String> = (0..cpus).map(|n| n.to_string()).collect();
        assert_eq!(ids, expected.join(" "));
        guest.vm.kill().await.expect("kill");
    }
}

/// The number of vCPUs in the capabilities is one that boots.
pub async fn takes_as_many_cpus_as_it_claims(backend: BackendChoice) {
    let status = capsa::backends()
        .into_iter()
        .find(|b| Some(b.backend) == backend.kind());
    let most = status
        .and_then(|b| b.capabilities)
        .expect("the backend works")
        .max_cpus;
    let mut guest = Guest::boot(kit_vm(backend).cpus(most).memory_mb(1024)).await;
    assert_eq!(guest.ok("nproc").await, most.to_string());
    guest.vm.kill().await.expect("kill");
}

/// The number of disks and shares in the capabilities is one that works beside a network, and the guest sees
/// all.
pub async fn takes_as_many_devices_as_it_claims(backend: BackendChoice) {
    let status = capsa::backends()
        .into_iter()
        .find(|b| Some(b.backend) == backend.kind());
    let most = status
        .and_then(|b| b.capabilities)
        .expect("the backend works")
        .max_devices;
    let folder = tempfile::tempdir().expect("a folder");
    let mut builder = kit_vm(backend).network(NetworkMode::Nat);
    for index in 0..most {
        let path = folder.path().join(format!("{index}.img"));
        std::fs::write(&path, vec![0; 1 << 20]).expect("a disk");
        builder = builder.disk(DiskImage::new(path));
    }
    let mut guest = Guest::boot(builder).await;
    assert_eq!(
        guest.ok("ls -d /sys/block/vd* | wc -l").await,
        most.to_string()
    );
    guest.vm.kill().await.expect("kill");
}

/// A kernel, an initrd and a root disk give a login prompt; `login` and `run_command` work.
pub async fn a_root_disk_boots_to_a_login(backend: BackendChoice) {
    log_in_to_a_root_disk(backend, images::kit()).await;
}

/// A kernel in which nearly everything is a module boots too, from its initramfs alone and with a
/// root disk.
pub async fn a_cloud_kernel_boots(backend: BackendChoice) {
    let kit = images::cloud_kit();
    let boot = LinuxBoot::new(&kit.kernel).initrd(&kit.initramfs);
    let builder = Capsa::with_backend(backend).vm(boot).memory_mb(256);
    let mut guest = Guest::boot(builder.console_enabled()).await;
    let release = guest.ok("uname -r").await;
    assert!(release.contains("cloud"), "{release}");
    guest.vm.kill().await.expect("kill");
    log_in_to_a_root_disk(backend, kit).await;
}

async fn log_in_to_a_root_disk(backend: BackendChoice, kit: Kit) {
    let disk = images::fresh_copy(&images::rootfs_qcow2());
    let config = LinuxDirectBootConfig {
        kernel: kit.kernel,
        initrd: kit.initramfs,
        disk: DiskImage::new(disk.path()),
    };
    let vm = Capsa::with_backend(backend)
        .vm(config)
        .memory_mb(256)
        .console_enabled()
        .build()
        .await
        .expect("build");
    vm.start().await.expect("start");
    let mut console = vm.console().await.expect("console");
    let login = tokio::time::timeout(LIMIT, console.login("root", None)).await;
    login.expect("in time").expect("a login");
    console
        .wait_for_timeout("# ", LIMIT)
        .await
        .expect("a shell");
    let run = console.run_command_timeout("cat /proc/mounts", "# ", LIMIT);
    let mounts = run.await.expect("a command's output");
    assert!(mounts.contains("/dev/vda / ext4 rw"), "{mounts}");
    vm.stop().await.expect("stop");
}

/// The kernel as distributions package it boots too, not only the unpacked one.
pub async fn a_bzimage_boots(backend: BackendChoice) {
    let kit = images::kit();
    let boot = LinuxBoot::new(&kit.firmware_kernel).initrd(&kit.initramfs);
    let builder = Capsa::with_backend(backend).vm(boot).memory_mb(256);
    let mut guest = Guest::boot(builder.console_enabled()).await;
    guest.ok("true").await;
    guest.vm.kill().await.expect("kill");
}
