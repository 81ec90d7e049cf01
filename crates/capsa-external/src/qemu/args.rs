//! The command line of QEMU for a VM: one straight list, top to bottom, of everything that the
//! machine has. What is not named here does not exist in the guest.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use capsa_core::backend::{AGENT_PORT_NAME, Accelerator, Attachments};
use capsa_core::disk::{ImageFormat, ResolvedDisk};
use capsa_core::network::UserNetwork;
use capsa_core::share::{MountMode, Share, ShareKind};
use capsa_core::spec::{BootSpec, VmSpec};
use serde_json::{Value, json};

use super::firmware::UefiFirmware;

/// QEMU's own sandbox: seccomp filters that deny what a running machine never needs.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The id of the port that is the channel to the guest's agent, which QEMU's events carry.
pub(super) const AGENT_PORT: &str = "agent";

/// Builds the argument list. `qmp` is the descriptor of the monitor's socket in QEMU.
pub(super) fn arguments(
    spec: &VmSpec,
    firmware: Option<&UefiFirmware>,
    qmp: RawFd,
    attachments: &Attachments,
) -> Result<Vec<OsString>, UnrepresentablePath> {
    let mut args = Args::default();
    let file_servers = &attachments.file_servers[..];

    // Nothing by default: no devices, no configuration files, no window, no system call that a
    // running machine does not need.
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.option("-display", "none");
    args.option("-sandbox", SANDBOX);
    let name = spec.name.as_deref().unwrap_or("capsa");
    args.option("-name", format!("guest={}", double_commas(name)));
    args.option("-uuid", spec.id.to_string());

    // The board: what a virtual machine does not need costs boot time.
    let board = "q35,hpet=off,i8042=off,smbus=off,sata=off,usb=off,vmport=off";
    let memory = spec.resources.memory_mb;
    match file_servers {
        [] => args.option("-machine", board),
        // The servers map the guest's memory too.
        _ => {
            let shared = format!("memory-backend-memfd,id=memory,share=on,size={memory}M");
            args.option("-object", shared);
            args.option("-machine", format!("{board},memory-backend=memory"));
        }
    }
    match spec.backend.accelerator {
        Accelerator::Kvm => {
            args.option("-accel", "kvm");
            args.option("-cpu", "host");
        }
        _ => {
            args.option("-accel", "tcg,thread=multi");
            args.option("-cpu", "max");
        }
    }
    args.option("-smp", spec.resources.cpus.to_string());
    args.option("-m", format!("{memory}M"));

    // A VM is never restarted behind its owner's back; every end of the guest ends QEMU.
    args.option(
        "-action",
        "reboot=shutdown,shutdown=poweroff,panic=shutdown",
    );
    args.option("-chardev", format!("socket,id=qmp,fd={qmp}"));
    args.option("-mon", "chardev=qmp,mode=control");
    // Standard input and output are pipes; see `ConsolePipes`.
    args.option("-chardev", "stdio,id=console,signal=off");
    args.option("-device", "isa-serial,chardev=console");
    args.option("-device", "pvpanic");
    args.option("-object", "rng-builtin,id=rng");
    args.option("-device", "virtio-rng-pci,rng=rng");

    match &spec.boot {
        BootSpec::Linux {
            kernel,
            initrd,
            cmdline,
        } => {
            args.option("-kernel", kernel);
            match &attachments.initrd {
                // QEMU reads it before it confines itself.
                Some(whole) => {
                    args.option("-initrd", format!("/proc/self/fd/{}", whole.as_raw_fd()));
                }
                None => initrd
                    .iter()
                    .for_each(|initrd| args.option("-initrd", initrd)),
            }
            args.option("-append", cmdline);
        }
        BootSpec::Uefi { variables } => {
            if let Some(firmware) = firmware {
                args.flash(0, &firmware.code, "readonly=on");
                match variables {
                    Some(store) => args.flash(1, store, "readonly=off"),
                    None => args.flash(1, &firmware.variables_template, "snapshot=on"),
                }
            }
        }
    }
    if let Some(agent) = &attachments.agent {
        args.option(
            "-chardev",
            format!("socket,id=agent,fd={}", agent.as_raw_fd()),
        );
        args.option("-device", "virtio-serial-pci,max_ports=2");
        args.option(
            "-device",
            format!("virtserialport,id={AGENT_PORT},chardev=agent,name={AGENT_PORT_NAME}"),
        );
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        args.option("-drive", drive(index, disk)?);
        args.option("-device", format!("virtio-blk-pci,drive=disk{index}"));
    }
    if let (Some(network), Some(frames)) = (&spec.network, &attachments.network) {
        args.network(network, frames.as_raw_fd());
    }
    let mut servers = file_servers.iter();
    for (index, share) in spec.shares.iter().enumerate() {
        match share.mechanism {
            ShareKind::Virtio9p { .. } => args.share_9p(index, share),
            _ => {
                if let Some(server) = servers.next() {
                    args.share_fs(index, share, server.as_raw_fd());
                }
            }
        }
    }
    Ok(args.0)
}

/// A path that cannot be written into JSON because it is not UTF-8.
#[derive(Debug)]
pub(super) struct UnrepresentablePath;

/// A disk as a `-drive`. The block graph is given as JSON, whole: QEMU opens no file and guesses
/// no format that is not in it. `-blockdev` could not make the throw-away overlay by itself.
fn drive(index: usize, disk: &ResolvedDisk) -> Result<String, UnrepresentablePath> {
    let mut graph = Value::Null;
    for (depth, image) in disk.chain.iter().enumerate().rev() {
        let backing = graph.take();
        graph = json!({
            "driver": image.format.name(),
            "file": { "driver": "file", "filename": text(&image.path)? },
        });
        if image.format == ImageFormat::Qcow2 {
            graph["backing"] = backing;
            if depth == 0
                && let Some(data) = &disk.data_file
            {
                graph["data-file"] = json!({
                    "driver": "raw",
                    "file": { "driver": "file", "filename": text(data)? },
                });
            }
        }
    }
    let on = |yes| if yes { "on" } else { "off" };
    // An error of the host's file system, a full disk included, is the guest's to handle: by default
    // QEMU would stop the guest until somebody makes room. What is thrown away need not be flushed.
    let cache = if disk.ephemeral {
        "unsafe"
    } else {
        "writeback"
    };
    Ok(format!(
        "if=none,id=disk{index},read-only={},snapshot={},cache={cache},discard=unmap,\
         werror=report,rerror=report,file=json:{}",
        on(disk.read_only),
        on(disk.ephemeral),
        double_commas(&graph.to_string()),
    ))
}

fn text(path: &Path) -> Result<&str, UnrepresentablePath> {
    path.to_str().ok_or(UnrepresentablePath)
}

/// QEMU's option lists end a value at a comma; a doubled one stands for itself.
fn double_commas(value: &str) -> String {
    value.replace(',', ",,")
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().into());
    }

    fn flash(&mut self, unit: u8, file: &Path, access: &str) {
        let head = format!("if=pflash,unit={unit},format=raw,{access},file=");
        self.option("-drive", with_path(&head, file, ""));
    }

    /// QEMU's 9p server. `multidevs=remap` keeps inode numbers unique when the folder holds other
    /// file systems. Writable shares use `mapped-xattr`: owners, modes, links and device files
    /// that the guest makes are extended attributes of plain files on the host, so that the guest
    /// cannot leave a setuid program or a device there.
    fn share_9p(&mut self, index: usize, share: &Share) {
        let access = match share.mode {
            MountMode::ReadWrite => "security_model=mapped-xattr,fmode=0644,dmode=0755",
            _ => "security_model=none,readonly=on",
        };
        let head = format!("local,id=share{index},multidevs=remap,path=");
        self.option(
            "-fsdev",
            with_path(&head, &share.host_path, &format!(",{access}")),
        );
        self.option(
            "-device",
            format!("virtio-9p-pci,fsdev=share{index},mount_tag={}", share.tag),
        );
    }

    /// A network card whose frames pass on a socket. Without a ROM, as nothing boots from it.
    fn network(&mut self, network: &UserNetwork, frames: RawFd) {
        let netdev = format!("stream,id=net0,server=off,addr.type=fd,addr.str={frames}");
        self.option("-netdev", netdev);
        let mac = network.mac.map(|byte| format!("{byte:02x}")).join(":");
        let mtu = network.mtu;
        self.option(
            "-device",
            format!("virtio-net-pci,netdev=net0,mac={mac},host_mtu={mtu},romfile="),
        );
    }

    /// A virtio-fs device, served at the other end of a socket. A request of Linux takes up to 260
    /// descriptors, where the queue's size is 128 if nothing is said.
    fn share_fs(&mut self, index: usize, share: &Share, server: RawFd) {
        self.option("-chardev", format!("socket,id=share{index},fd={server}"));
        self.option(
            "-device",
            format!(
                "vhost-user-fs-pci,chardev=share{index},tag={},queue-size=1024",
                share.tag
            ),
        );
    }
}

/// `head`, the path with its commas doubled whatever its encoding, and `tail`.
fn with_path(head: &str, path: &Path, tail: &str) -> OsString {
    let mut value = head.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        value.push(byte);
        if byte == b',' {
            value.push(b',');
        }
    }
    value.extend_from_slice(tail.as_bytes());
    OsString::from_vec(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_core::disk::ImageFile;

    #[test]
    fn a_drive_names_its_whole_chain_and_nothing_can_break_out_of_a_file_name() {
        let disk = ResolvedDisk {
            chain: vec![
                ImageFile {
                    path: "/a,readonly=off,\"x\".qcow2".into(),
                    format: ImageFormat::Qcow2,
                },
                ImageFile {
                    path: "/base.img".into(),
                    format: ImageFormat::Raw,
                },
            ],
            data_file: None,
            read_only: true,
            ephemeral: false,
        };
        let drive = drive(3, &disk).unwrap();
        let (options, graph) = drive.split_once("file=json:").unwrap();
        assert!(options.contains("id=disk3,read-only=on,snapshot=off,"));
        let graph: Value = serde_json::from_str(&graph.replace(",,", ",")).unwrap();
        assert_eq!(graph["file"]["filename"], "/a,readonly=off,\"x\".qcow2");
        assert_eq!(graph["backing"]["driver"], "raw");
        assert_eq!(graph["backing"]["file"]["filename"], "/base.img");
    }

    #[test]
    fn a_qcow2_without_a_backing_file_is_told_so() {
        let disk = ResolvedDisk {
            chain: vec![ImageFile {
                path: "/a.qcow2".into(),
                format: ImageFormat::Qcow2,
            }],
            data_file: None,
            read_only: false,
            ephemeral: true,
        };
        let drive = drive(0, &disk).unwrap();
        assert!(drive.contains("\"backing\":null"), "{drive}");
        assert!(drive.contains("snapshot=on,cache=unsafe"), "{drive}");
    }

    #[test]
    fn commas_in_a_shared_folder_do_not_end_its_name() {
        let value = with_path("path=", Path::new("/a,b"), ",readonly=on");
        assert_eq!(value, "path=/a,,b,readonly=on");
    }
}
