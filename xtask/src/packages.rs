//! Programs that come with the distribution: looked for, and installed where that is allowed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{fmt, fs};

use anyhow::Result;

use crate::workspace::{check, command, has_program};

/// A package of Debian, and how to tell that what it brings is there already: not by asking for
/// the package, since a program may come from elsewhere.
pub(crate) struct Package {
    name: &'static str,
    evidence: Evidence,
}

enum Evidence {
    Program(&'static str),
    /// A program that runs without any library, as test guests need it.
    StaticProgram(&'static str),
    /// One of these files.
    File(&'static [&'static str]),
}

/// Runs the VMs.
#[cfg(target_arch = "x86_64")]
pub(crate) const QEMU: Package = Package {
    name: "qemu-system-x86",
    evidence: Evidence::Program("qemu-system-x86_64"),
};
/// Runs the VMs.
#[cfg(target_arch = "aarch64")]
pub(crate) const QEMU: Package = Package {
    name: "qemu-system-arm",
    evidence: Evidence::Program("qemu-system-aarch64"),
};

/// Firmware, for the tests that boot through UEFI.
#[cfg(target_arch = "x86_64")]
pub(crate) const FIRMWARE: Package = Package {
    name: "ovmf",
    evidence: Evidence::File(&[
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_CODE.fd",
    ]),
};
/// Firmware, for the tests that boot through UEFI.
#[cfg(target_arch = "aarch64")]
pub(crate) const FIRMWARE: Package = Package {
    name: "qemu-efi-aarch64",
    evidence: Evidence::File(&["/usr/share/AAVMF/AAVMF_CODE.fd"]),
};

/// The user space of test disks.
pub(crate) const BUSYBOX: Package = Package {
    name: "busybox-static",
    evidence: Evidence::StaticProgram("/bin/busybox"),
};

/// Joins a kernel and its initramfs into one program for firmware.
pub(crate) const OBJCOPY: Package = Package {
    name: "binutils",
    evidence: Evidence::Program("objcopy"),
};

/// Makes the file systems of test disks.
pub(crate) const MKE2FS: Package = Package {
    name: "e2fsprogs",
    evidence: Evidence::Program("mke2fs"),
};

/// Lays cables between the machines of a test.
pub(crate) const IPROUTE2: Package = Package {
    name: "iproute2",
    evidence: Evidence::Program("ip"),
};

/// Makes and checks qcow2 images.
pub(crate) const QEMU_IMG: Package = Package {
    name: "qemu-utils",
    evidence: Evidence::Program("qemu-img"),
};

/// Makes initrds of every kind for the tests that inspect them.
pub(crate) const ARCHIVERS: [Package; 4] = [
    Package {
        name: "cpio",
        evidence: Evidence::Program("cpio"),
    },
    Package {
        name: "xz-utils",
        evidence: Evidence::Program("xz"),
    },
    Package {
        name: "bzip2",
        evidence: Evidence::Program("bzip2"),
    },
    Package {
        name: "zstd",
        evidence: Evidence::Program("zstd"),
    },
];

/// Builds libFuzzer, which is C++.
pub(crate) const CXX: Package = Package {
    name: "g++",
    evidence: Evidence::Program("c++"),
};

impl Package {
    fn is_missing(&self) -> Result<bool> {
        Ok(match self.evidence {
            Evidence::Program(name) => !has_program(name)?,
            Evidence::StaticProgram(path) => !is_static(path),
            Evidence::File(paths) => !paths.iter().any(|path| Path::new(path).exists()),
        })
    }
}

/// Whether the file is a program that names no dynamic linker.
fn is_static(path: &str) -> bool {
    let linker = b"/ld-linux";
    fs::read(path).is_ok_and(|program| !program.windows(linker.len()).any(|part| part == linker))
}

/// Something is missing, and the caller has to install it.
#[derive(Debug)]
pub(crate) struct CannotInstall {
    missing: Vec<&'static str>,
    apt: bool,
}

impl std::error::Error for CannotInstall {}

impl fmt::Display for CannotInstall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.missing.join(" ");
        match self.apt {
            true => write!(
                f,
                "packages are missing; install them with\n\n    sudo apt-get update && sudo \
                 apt-get install --yes --no-install-recommends {names}\n"
            ),
            false => write!(
                f,
                "install what Debian calls {names}, under the names of this system's packages"
            ),
        }
    }
}

/// Installs those of the packages that are missing.
///
/// # Errors
///
/// [`CannotInstall`] when this user may not, or when this system has no apt.
pub(crate) fn provide<'a>(packages: impl IntoIterator<Item = &'a Package>) -> Result<()> {
    let mut missing = Vec::new();
    for package in packages {
        if package.is_missing()? {
            missing.push(package.name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let apt = has_program("apt-get")?;
    let privilege = if apt { privilege()? } else { None };
    let Some(privilege) = privilege else {
        return Err(CannotInstall { missing, apt }.into());
    };
    eprintln!("installing {}", missing.join(" "));
    // Without lists, as in a fresh container, or with old ones, apt does not find every package.
    if !are_known(&missing)? {
        check(apt_get(privilege)?.args(["update", "--quiet"]))?;
    }
    install(privilege, &missing).or_else(|_| {
        check(apt_get(privilege)?.args(["update", "--quiet"]))?;
        install(privilege, &missing)
    })
}

/// What to put before `apt-get`; `None` when it would ask for a password.
fn privilege() -> Result<Option<&'static [&'static str]>> {
    let succeeds = |program: &mut Command| {
        program
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())
    };
    let id = succeeds(command("id")?.arg("-u"));
    if id.is_some_and(|output| output.stdout.trim_ascii() == b"0") {
        return Ok(Some(&[]));
    }
    let sudo = succeeds(command("sudo")?.args(["--non-interactive", "true"]));
    Ok(sudo.map(|_| ["sudo", "--non-interactive"].as_slice()))
}

fn are_known(packages: &[&str]) -> Result<bool> {
    let status = command("apt-cache")?
        .args(["show", "--quiet", "--no-all-versions"])
        .args(packages)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(status.success())
}

fn install(privilege: &[&str], packages: &[&str]) -> Result<()> {
    check(
        apt_get(privilege)?
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            // Another apt, such as the daily update of the lists, may be at work.
            .args(["--option", "DPkg::Lock::Timeout=120"])
            .args(packages),
    )
}

fn apt_get(privilege: &[&str]) -> Result<Command> {
    // `env` because sudo does not pass variables on.
    let words = [
        privilege,
        &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"],
    ]
    .concat();
    let mut apt_get = command(words[0])?;
    apt_get.args(&words[1..]);
    Ok(apt_get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_or_a_file_shows_that_a_package_is_there() {
        let missing = |evidence| {
            let name = "any";
            Package { name, evidence }.is_missing().unwrap()
        };
        assert!(!missing(Evidence::Program("sh")));
        assert!(missing(Evidence::Program("no-such-program")));
        assert!(missing(Evidence::StaticProgram("/no/such/program")));
        // Cargo's tests are linked with the C library.
        let dynamic = std::env::current_exe().unwrap().leak().to_str().unwrap();
        assert!(missing(Evidence::StaticProgram(dynamic)));
        assert!(!missing(Evidence::File(&["/no/such/file", "/"])));
        assert!(missing(Evidence::File(&["/no/such/file"])));
    }

    #[test]
    fn a_user_is_given_the_command_to_type() {
        let refusal = |apt| {
            let missing = vec!["a", "b"];
            CannotInstall { missing, apt }.to_string()
        };
        assert!(refusal(true).contains("apt-get install --yes --no-install-recommends a b"));
        assert!(!refusal(false).contains("apt-get"));
    }
}
