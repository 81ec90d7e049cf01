//! A daemon that holds several VMs and takes orders, a line each, on its standard input.
//!
//! ```text
//! $ cargo run --example daemon -- ./vmlinuz ./initramfs
//! start web
//! web: running on qemu (QEMU 7.2.22, TCG emulation)
//! type web uname -r
//! stop web
//! web: gone
//! quit
//! ```
//!
//! This is what replaces a daemon that runs a script per VM and guesses from its exit status: the
//! state of a VM comes by itself, its console can be read and typed to while it runs, and when the
//! daemon dies, even by SIGKILL, so do its VMs.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;

use capsa::{BackendChoice, Capsa, DiskImage, LinuxBoot, VmConsole, VmHandle};
use tokio::io::{AsyncBufReadExt, BufReader};

/// What every VM of this daemon boots.
struct Template {
    boot: LinuxBoot,
    backend: BackendChoice,
    /// A disk that each VM may write to, for itself and for as long as it lives.
    disk: Option<PathBuf>,
}

/// A VM that the daemon holds, and the console through which it types.
struct Held {
    vm: VmHandle,
    console: VmConsole,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let (Some(kernel), Some(initrd)) = (args.next(), args.next()) else {
        return Err("usage: daemon KERNEL INITRD [BACKEND [DISK]]".into());
    };
    let backend = args
        .next()
        .map_or("auto".into(), |name| name.to_string_lossy().into_owned());
    let template = Template {
        boot: LinuxBoot::new(kernel).initrd(initrd),
        backend: backend.parse()?,
        disk: args.next(),
    };

    let mut held: BTreeMap<String, Held> = BTreeMap::new();
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        let words: Vec<&str> = order.splitn(3, ' ').collect();
        let done = match words.as_slice() {
            ["start", name] if !held.contains_key(*name) => {
                start(&template, name).await.map(|vm| {
                    held.insert((*name).to_owned(), vm);
                })
            }
            ["type", name, line] => match held.get_mut(*name) {
                Some(held) => held.console.write_line(line).await,
                None => Ok(()),
            },
            ["stop", name] => match held.remove(*name) {
                Some(held) => held.vm.stop().await,
                None => Ok(()),
            },
            ["list"] => {
                for (name, held) in &held {
                    eprintln!("{name}: {}", held.vm.status());
                }
                Ok(())
            }
            ["quit"] => break,
            _ => {
                eprintln!("orders: start NAME, type NAME LINE, stop NAME, list, quit");
                Ok(())
            }
        };
        // An order that fails is told; the daemon and its other VMs go on.
        if let Err(error) = done {
            eprintln!("error[{}]: {}", error.code(), error.full_message());
        }
    }
    // Dropping the handles kills what is left.
    Ok(())
}

/// Starts a VM and a task that passes its console on and tells of its end.
async fn start(template: &Template, name: &str) -> capsa::Result<Held> {
    let mut builder = Capsa::with_backend(template.backend)
        .vm(template.boot.clone())
        .name(name)
        .memory_mb(256)
        .console_enabled();
    if let Some(disk) = &template.disk {
        builder = builder.disk(DiskImage::new(disk).ephemeral());
    }
    let vm = builder.build().await?;
    vm.start().await?;
    eprintln!("{name}: running on {}", vm.backend());

    let console = vm.console().await?;
    let mut output = console.clone();
    let prefix = name.to_owned();
    tokio::spawn(async move {
        // A console does not keep its VM alive, and ends when the VM does.
        while let Ok(line) = output.wait_for("\n").await {
            eprintln!("{prefix}| {}", capsa::escape::one_line(&line, 200));
        }
        eprintln!("{prefix}: gone");
    });

    Ok(Held { vm, console })
}
