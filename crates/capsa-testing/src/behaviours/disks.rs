//! Disks: what is written, what is not, and what an image may drag in.

use std::fs;
use std::process::Command;

use capsa::{BackendChoice, DiskImage, ImageFormat};

use crate::guest::{Guest, kit_vm};

const SIZE: u64 = 4 << 20;

fn raw_disk(path: &std::path::Path, first: &[u8]) {
    fs::write(path, first).expect("a disk");
    let file = fs::File::options().write(true).open(path).expect("a disk");
    file.set_len(SIZE).expect("a disk");
}

fn qemu_img(args: &[&str]) {
    let made = Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img runs");
    assert!(made.status.success(), "{made:?}");
}

/// Data written to a raw and to a qcow2 disk by one VM is read by the next.
pub async fn what_a_guest_writes_is_there_for_the_next(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let raw = folder.path().join("a.img");
    raw_disk(&raw, b"");
    let qcow2 = folder.path().join("b.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        &qcow2.display().to_string(),
        "4M",
    ]);
    let builder = kit_vm(backend).disk(&raw).disk(&qcow2);

    let mut guest = Guest::boot(builder.clone()).await;
    guest
        .ok("echo to-the-raw-disk > /dev/vda && echo to-the-qcow2 > /dev/vdb && sync")
        .await;
    guest.vm.stop().await.expect("stop");
    assert!(
        fs::read(&raw)
            .expect("the disk")
            .starts_with(b"to-the-raw-disk\n")
    );

    let mut guest = Guest::boot(builder).await;
    assert_eq!(guest.ok("head -n 1 /dev/vdb").await, "to-the-qcow2");
    guest.vm.kill().await.expect("kill");
}

/// Writes to a read-only disk fail in the guest, and the image stays as it is.
pub async fn a_read_only_disk_is_not_written(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let raw = folder.path().join("a.img");
    raw_disk(&raw, b"as it was\n");
    let mut guest = Guest::boot(kit_vm(backend).disk(DiskImage::new(&raw).read_only())).await;
    assert_eq!(guest.ok("head -n 1 /dev/vda").await, "as it was");
    assert_eq!(guest.ok("cat /sys/block/vda/ro").await, "1");
    let (status, _) = guest.run("(echo changed > /dev/vda; sync) 2>&1").await;
    guest.vm.stop().await.expect("stop");
    assert!(
        status != 0
            || fs::read(&raw)
                .expect("the disk")
                .starts_with(b"as it was\n")
    );
    assert!(
        fs::read(&raw)
            .expect("the disk")
            .starts_with(b"as it was\n")
    );
}

/// An ephemeral disk can be written, and afterwards neither the image nor any file tells of it.
/// Two VMs may use one image so.
pub async fn an_ephemeral_disk_is_thrown_away(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let raw = folder.path().join("a.img");
    raw_disk(&raw, b"as it was\n");
    let builder = kit_vm(backend).disk(DiskImage::new(&raw).ephemeral());
    let mut guest = Guest::boot(builder.clone()).await;
    let second = builder.build().await.expect("build");
    second.start().await.expect("a second VM on the same image");
    second.kill().await.expect("kill");
    guest
        .ok("echo changed > /dev/vda && sync && echo 3 > /proc/sys/vm/drop_caches")
        .await;
    assert_eq!(guest.ok("head -n 1 /dev/vda").await, "changed");
    guest.vm.stop().await.expect("stop");
    assert!(
        fs::read(&raw)
            .expect("the disk")
            .starts_with(b"as it was\n")
    );
    let left: Vec<_> = fs::read_dir(&folder)
        .expect("the folder")
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// An image that names another file is refused, works when that file is allowed, and then leaves
/// it unchanged.
pub async fn a_backing_file_is_read_only_when_it_is_allowed(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder.path().join("base.img");
    raw_disk(&base, b"from the base\n");
    let top = folder.path().join("top.qcow2");
    let (base_name, top_name) = (base.display().to_string(), top.display().to_string());
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base_name, &top_name,
    ]);

    let refused = kit_vm(backend)
        .disk(&top)
        .build()
        .await
        .expect_err("refused");
    assert!(refused.to_string().contains("base.img"), "{refused}");

    let disk = DiskImage::with_format(&top, ImageFormat::Qcow2).allow_backing(&base);
    let mut guest = Guest::boot(kit_vm(backend).disk(disk)).await;
    assert_eq!(guest.ok("head -n 1 /dev/vda").await, "from the base");
    guest.ok("echo changed > /dev/vda && sync").await;
    guest.vm.stop().await.expect("stop");
    assert!(
        fs::read(&base)
            .expect("the base")
            .starts_with(b"from the base\n")
    );
}
