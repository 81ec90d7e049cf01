//! Boots a kernel with the process's standard streams as its console, until the guest powers off.
//!
//! ```text
//! $ cargo run --example attach -- ./vmlinuz ./initramfs
//! ```
//!
//! This is the whole of `ConsoleMode::Stdio`: bytes pass both ways as they are, and the library
//! hands out no console. A program that wants raw mode and keys of its own uses
//! `ConsoleMode::Enabled`, as the `capsa` command does.

use std::env;
use std::path::PathBuf;

use capsa::{Capsa, LinuxBoot};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let (Some(kernel), Some(initrd)) = (args.next(), args.next()) else {
        return Err("usage: attach KERNEL INITRD".into());
    };
    let vm = Capsa::linux(LinuxBoot::new(kernel).initrd(initrd))
        .console_stdio()
        // What the kernel says would come between the lines of programs.
        .cmdline_arg("quiet")
        .build()
        .await?;
    vm.start().await?;
    let status = vm.wait().await?;
    eprintln!("{status}");
    Ok(())
}
