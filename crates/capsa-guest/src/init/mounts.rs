//! What is mounted where: the kernel's own file systems, the root, the shares.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use capsa_agent_proto::config::{Mechanism, Root, Share, Upper};
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_move, mount_remount, unmount,
};
use rustix::process::{chdir, chroot};

use super::modules::Modules;
use super::network;
use crate::cgroup;
use crate::trouble::{Attempt, Trouble, say};

/// Where the parts of an overlay are mounted. Once it is the root, nobody sees them.
const LOWER: &str = "/capsa/lower";
const CHANGES: &str = "/capsa/changes";
const NEW_ROOT: &str = "/capsa/root";
/// Where the folder around a shared file is mounted for a moment.
const AROUND: &str = "/run/capsa-share";

const PLAIN: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NOEXEC)
    .union(MountFlags::NODEV);
const MEMORY: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

/// Mounts what drivers and the agent need, first of all.
pub(super) fn kernel() -> Result<(), Trouble> {
    mount_all(&[
        ("proc", "/proc", PLAIN, c""),
        ("sysfs", "/sys", PLAIN, c""),
        ("devtmpfs", "/dev", DEVICES, c"mode=0755"),
    ])
}

/// Mounts what else programs expect.
pub(super) fn system() -> Result<(), Trouble> {
    mount_all(&[
        (
            "devpts",
            "/dev/pts",
            DEVICES,
            c"mode=0620,gid=5,ptmxmode=0666",
        ),
        ("tmpfs", "/dev/shm", MEMORY, c"mode=1777"),
        ("tmpfs", "/run", MEMORY, c"mode=0755"),
        ("tmpfs", "/tmp", MEMORY, c"mode=1777"),
    ])?;
    // What programs expect of /dev and the kernel does not make.
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, link).attempt(format_args!("make {link}"))?;
    }
    // Without control groups, programs run all the same. To put a process into one takes the time of
    // an RCU grace period (some ten milliseconds), but not with the option, which Linux has since 6.0.
    let mount_groups = |options| mount("cgroup2", cgroup::MOUNT, "cgroup2", PLAIN, options);
    let grouped = mount_groups(Some(c"favordynmods"))
        .or_else(|_| mount_groups(None))
        .map_err(io::Error::from)
        .and_then(|()| cgroup::found());
    if let Err(e) = grouped {
        say(&format!("no control groups: {e}"));
    }
    Ok(())
}

/// Kind, path, flags and options of mounts.
fn mount_all(mounts: &[(&str, &str, MountFlags, &CStr)]) -> Result<(), Trouble> {
    for &(kind, path, flags, options) in mounts {
        let mounted = make_folder(Path::new(path))
            .and_then(|()| Ok(mount(kind, path, kind, flags, Some(options))?));
        mounted.attempt(format_args!("mount {path}"))?;
    }
    Ok(())
}

/// Makes what is configured the root of this process, and of all that it starts.
pub(super) fn root(root: &Root, modules: &mut Modules) -> Result<(), Trouble> {
    let Root::Overlay {
        tag,
        mechanism,
        upper,
    } = root
    else {
        return Ok(());
    };
    modules.load("overlay").attempt("load the module overlay")?;
    let lower = Path::new(LOWER);
    // Devices of the host's tree would be the guest's.
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    mount_share(tag, mechanism, lower, flags, modules)?;
    mount_changes(upper, modules)?;
    let options = format!("lowerdir={LOWER},upperdir={CHANGES}/upper,workdir={CHANGES}/work");
    let options = CString::new(options).map_err(io::Error::from);
    make_folder(Path::new(NEW_ROOT))
        .and_then(|()| {
            let flags = MountFlags::NODEV;
            Ok(mount(
                "overlay",
                NEW_ROOT,
                "overlay",
                flags,
                Some(&*options?),
            )?)
        })
        .attempt("mount the root's overlay")?;
    for path in ["proc", "sys", "dev", "run", "tmp"] {
        let to = Path::new(NEW_ROOT).join(path);
        make_folder(&to)
            .and_then(|()| Ok(mount_move(Path::new("/").join(path), &to)?))
            .attempt(format_args!("move /{path} to the root"))?;
    }
    let missing = complete(Path::new(NEW_ROOT));
    missing.attempt("make what every root has")?;
    enter(NEW_ROOT).attempt("enter the root")
}

/// Makes what programs expect of any root and a part of a host's may lack. What is there stays.
fn complete(root: &Path) -> io::Result<()> {
    for (path, mode) in [("root", 0o700), ("var/tmp", 0o1777)] {
        let path = root.join(path);
        if !path.is_dir() {
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        }
    }
    let hosts = root.join("etc/hosts");
    if !hosts.exists() {
        make_folder(&root.join("etc"))?;
        fs::write(hosts, network::LOCAL_HOSTS)?;
    }
    Ok(())
}

fn mount_changes(upper: &Upper, modules: &mut Modules) -> Result<(), Trouble> {
    let what = "mount what holds the root's changes";
    let changes = Path::new(CHANGES);
    make_folder(changes).attempt(what)?;
    match upper {
        Upper::Memory => mount(
            "tmpfs",
            changes,
            "tmpfs",
            MountFlags::NODEV,
            Some(c"mode=0755"),
        )
        .map_err(io::Error::from)
        .attempt(what)?,
        Upper::Disk {
            device,
            file_system,
        } => {
            // ext4 asks for its checksum by another name than the module's.
            for module in ["virtio_blk", "crc32c_generic", file_system] {
                let loaded = modules.load(module);
                loaded.attempt(format_args!("load the module {module}"))?;
            }
            // Otherwise ext4 fills its tables with zeroes, and with them the file of the host's.
            let options = (file_system == "ext4").then_some(c"noinit_itable");
            mount(
                &**device,
                changes,
                &**file_system,
                MountFlags::NODEV,
                options,
            )
            .map_err(io::Error::from)
            .attempt(format_args!("mount the disk {device}"))?;
        }
    }
    for path in ["upper", "work"] {
        make_folder(&changes.join(path)).attempt(what)?;
    }
    Ok(())
}

/// Goes where everything new happens. The initramfs stays behind, with the modules and the program
/// that the kernel runs to load them.
fn enter(root: &str) -> io::Result<()> {
    chdir(root)?;
    mount_move(".", "/")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

/// Mounts a share at its path.
pub(super) fn share(share: &Share, modules: &mut Modules) -> Result<(), Trouble> {
    let path = Path::new(&share.guest_path);
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if share.read_only {
        flags |= MountFlags::RDONLY;
    }
    let Some(name) = &share.file else {
        return mount_share(&share.tag, &share.mechanism, path, flags, modules);
    };
    let around = Path::new(AROUND);
    mount_share(&share.tag, &share.mechanism, around, flags, modules)?;
    let bind = || {
        make_file(path)?;
        mount_bind(around.join(std::ffi::OsStr::from_bytes(name)), path)?;
        // A bind mount has the flags of the mount; told again, they are its own.
        mount_remount(path, flags | MountFlags::BIND, "")?;
        Ok(unmount(around, UnmountFlags::DETACH)?)
    };
    let bound: io::Result<()> = bind();
    bound.attempt(format_args!(
        "mount the file {} at {}",
        share.tag,
        path.display()
    ))
}

fn mount_share(
    tag: &str,
    mechanism: &Mechanism,
    path: &Path,
    flags: MountFlags,
    modules: &mut Modules,
) -> Result<(), Trouble> {
    let (kind, needed, options) = match mechanism {
        Mechanism::VirtioFs => ("virtiofs", "virtiofs", String::new()),
        Mechanism::Virtio9p { msize } => (
            "9p",
            "9pnet_virtio",
            format!("trans=virtio,version=9p2000.L,msize={msize}"),
        ),
    };
    for module in [needed, kind] {
        let loaded = modules.load(module);
        loaded.attempt(format_args!("load the module {module}"))?;
    }
    let options = CString::new(options).map_err(io::Error::from);
    make_folder(path)
        .and_then(|()| Ok(mount(tag, path, kind, flags, Some(&*options?))?))
        .attempt(format_args!("mount the share {tag} at {}", path.display()))
}

/// Makes a folder and those that it is in, unless they are there.
fn make_folder(path: &Path) -> io::Result<()> {
    match path.is_dir() {
        true => Ok(()),
        false => fs::create_dir_all(path),
    }
}

/// Makes an empty file for a mount to cover, unless something is there.
fn make_file(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let folder: PathBuf = path.parent().unwrap_or(Path::new("/")).into();
    make_folder(&folder)?;
    File::create(path).map(drop)
}
