//! Boots a Linux VM, logs in on its console and says hello.
//!
//! Expects a kernel, an initrd and a root disk with a login prompt in the current folder.

use capsa::{Capsa, DiskImage, LinuxDirectBootConfig, MountMode};

#[tokio::main]
async fn main() -> capsa::Result<()> {
    let config = LinuxDirectBootConfig {
        kernel: "./bzImage".into(),
        initrd: "./initrd".into(),
        disk: DiskImage::new("./rootfs.qcow2"),
    };
    let vm = Capsa::vm(config)
        .cpus(2)
        .memory_mb(2048)
        .share("./workspace", "/workspace", MountMode::ReadWrite)
        .console_enabled()
        .build()
        .await?;
    vm.start().await?;
    let mut console = vm.console().await?;
    console.wait_for("login:").await?;
    console.write_line("root").await?;
    console.wait_for("#").await?;
    console.write_line("echo hello from VM").await?;
    vm.stop().await?;
    Ok(())
}
