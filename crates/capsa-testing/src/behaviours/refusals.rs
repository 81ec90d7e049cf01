//! Bad input is refused before anything of the VM exists, by name.

use std::fs;

use capsa::{BackendChoice, Capsa, DiskImage, Error, Isolation, LinuxBoot, MountMode, UserNetwork};

use crate::images;
use crate::processes;

/// Kernels, initrds and disks that cannot be used.
pub async fn bad_files_are_named_before_anything_starts(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("a file");
        path
    };
    let kit = images::kit();
    let whole = fs::read(&kit.firmware_kernel).expect("the kernel");
    let half_kernel = file("half-a-kernel", &whole[..whole.len() / 2]);
    let text = file("letter.txt", b"Dear kernel,\n");
    let empty = file("empty", b"");
    let missing = folder.path().join("missing");
    let fake_qcow2 = file("really.img", b"QFI\xfb\0\0\0\x03");
    let not_qcow2 = file("not.qcow2", &[0; 4096]);

    let good = || LinuxBoot::new(&kit.kernel).initrd(&kit.initramfs);
    let cases = [
        (LinuxBoot::new(&missing), "missing"),
        (LinuxBoot::new(folder.path()), "folder"),
        (LinuxBoot::new(&text), "letter.txt"),
        (LinuxBoot::new(&half_kernel), "half-a-kernel"),
        (good().initrd(&missing), "missing"),
        (good().initrd(&empty), "empty"),
        (good().initrd(&text), "letter.txt"),
        (good().disk(&missing), "missing"),
        (good().disk(&empty), "empty"),
        (good().disk(DiskImage::new(&fake_qcow2)), "really.img"),
        (good().disk(DiskImage::new(&not_qcow2)), "not.qcow2"),
    ];
    for (boot, named) in cases {
        let shown = format!("{boot:?}");
        let built = Capsa::with_backend(backend).vm(boot).build().await;
        let error = built.expect_err(&shown);
        assert!(
            matches!(error, Error::InvalidConfig { .. }),
            "{shown}: {error}"
        );
        assert!(error.to_string().contains(named), "{shown}: {error}");
    }
    assert_eq!(processes::children(std::process::id()), Vec::<u32>::new());
}

/// Sizes and features that cannot be had are reported all at once.
pub async fn impossible_requests_are_refused_together(backend: BackendChoice) {
    let kit = images::kit();
    let folder = tempfile::tempdir().expect("a folder");
    let build = Capsa::with_backend(backend)
        .vm(LinuxBoot::new(&kit.kernel).initrd(folder.path().join("nothing")))
        .cpus(0)
        .memory_mb(u32::MAX)
        .network(UserNetwork {
            mtu: 1,
            ..UserNetwork::default()
        })
        .require_isolation(Isolation::Hardware)
        .share("/nonexistent", "relative", MountMode::ReadWrite)
        .cmdline_arg("quote=\"")
        .build();
    let Err(Error::InvalidConfig { problems }) = build.await else {
        panic!("a list of problems is expected");
    };
    let fields: Vec<&str> = problems.iter().map(|p| p.field.as_ref()).collect();
    for field in ["cpus", "memory_mb", "network", "initrd", "share", "cmdline"] {
        assert!(fields.contains(&field), "{field} is missing in {fields:?}");
    }
    let hardware = capsa::backends()
        .into_iter()
        .find(|status| Some(status.backend) == backend.kind())
        .and_then(|status| status.info.ok())
        .is_some_and(|info| info.isolation == Isolation::Hardware);
    assert_eq!(fields.contains(&"isolation"), !hardware, "{fields:?}");
}
