//! What of the host is in a sandbox whose root is the host's: what programs need to run, and no data.
//!
//! A list of what is in, not of what is out: what nobody thought of stays out. README.md shows it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Programs and libraries.
const PROGRAMS: [&str; 8] = [
    "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt",
];

/// What in `/etc` programs need to start, and to speak to others: names of users, the linker's cache,
/// chosen alternatives, certificates, the time zone, what shells and interpreters read first. Neither
/// passwords, keys and tokens nor what says who this machine is and with whom it speaks.
const SETTINGS: [&str; 38] = [
    // The C library.
    "passwd",
    "group",
    "nsswitch.conf",
    "host.conf",
    "gai.conf",
    "protocols",
    "services",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "timezone",
    "locale.conf",
    "locale.alias",
    // The distribution.
    "os-release",
    "debian_version",
    "alpine-release",
    "fedora-release",
    "redhat-release",
    "alternatives",
    // Certificates, of authorities only.
    "ssl/certs",
    "ssl/cert.pem",
    "ssl/openssl.cnf",
    "ca-certificates",
    "ca-certificates.conf",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "pki/tls/openssl.cnf",
    "pki/ca-trust/extracted",
    "crypto-policies",
    // Shells, terminals, interpreters.
    "profile",
    "bash.bashrc",
    "shells",
    "inputrc",
    "terminfo",
    "mime.types",
    "fonts",
    "perl",
];

/// The same, by how the name begins: each version has a folder of its own.
const SETTINGS_OF_VERSIONS: [&str; 2] = ["python3", "java-"];

/// What a toolchain keeps in the home of its user.
struct Toolchain {
    /// Where its programs, libraries and choices are; its credentials and its configuration are not.
    places: &'static [&'static str],
    /// Where its programs are started from.
    path: &'static [&'static str],
    /// The variable that tells its programs where it is, as the home is another one in the guest.
    variable: Option<(&'static str, &'static str)>,
}

const TOOLCHAINS: [Toolchain; 10] = [
    Toolchain {
        places: &[".cargo/bin"],
        path: &[".cargo/bin"],
        variable: Some(("CARGO_HOME", ".cargo")),
    },
    Toolchain {
        places: &[".rustup"],
        path: &[],
        variable: Some(("RUSTUP_HOME", ".rustup")),
    },
    Toolchain {
        places: &[".pyenv"],
        path: &[".pyenv/shims", ".pyenv/bin"],
        variable: Some(("PYENV_ROOT", ".pyenv")),
    },
    Toolchain {
        places: &[".rbenv"],
        path: &[".rbenv/shims", ".rbenv/bin"],
        variable: Some(("RBENV_ROOT", ".rbenv")),
    },
    // Which version is in use, the caller's PATH says; the same holds for the next one.
    Toolchain {
        places: &[".nvm/versions"],
        path: &[],
        variable: None,
    },
    Toolchain {
        places: &[".sdkman/candidates"],
        path: &[],
        variable: None,
    },
    Toolchain {
        places: &[".deno/bin"],
        path: &[".deno/bin"],
        variable: None,
    },
    Toolchain {
        places: &[".bun/bin"],
        path: &[".bun/bin"],
        variable: None,
    },
    Toolchain {
        places: &["go/bin"],
        path: &["go/bin"],
        variable: None,
    },
    Toolchain {
        places: &[".local/bin", ".local/share/uv"],
        path: &[".local/bin"],
        variable: None,
    },
];

/// The paths of the list that this machine has, for a user with this home. Blocks.
pub(super) fn places(home: Option<&Path>) -> Vec<PathBuf> {
    let etc = Path::new("/etc");
    let programs = PROGRAMS.iter().map(|name| Path::new("/").join(name));
    let settings = SETTINGS.iter().map(|name| etc.join(name));
    let of_versions = fs::read_dir(etc).into_iter().flatten().flatten();
    let of_versions = of_versions.filter(|entry| is_of_a_version(&entry.file_name()));
    let toolchains = home.into_iter().flat_map(|home| {
        let places = TOOLCHAINS.iter().flat_map(|toolchain| toolchain.places);
        places.map(move |place| home.join(place))
    });
    let all = programs
        .chain(settings)
        .chain(of_versions.map(|entry| entry.path()))
        .chain(toolchains);
    all.filter(|path| path.symlink_metadata().is_ok()).collect()
}

fn is_of_a_version(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let mut beginnings = SETTINGS_OF_VERSIONS.iter();
    beginnings.any(|beginning| name.starts_with(beginning.as_bytes()))
}

/// Where the programs of toolchains in this home are, and the variables that they need, of all that
/// are on the list.
pub(super) fn environment(home: &Path) -> (Vec<PathBuf>, Vec<(&'static str, PathBuf)>) {
    let path = TOOLCHAINS.iter().flat_map(|toolchain| toolchain.path);
    let variables = TOOLCHAINS.iter().filter_map(|toolchain| toolchain.variable);
    (
        path.map(|folder| home.join(folder)).collect(),
        variables
            .map(|(name, folder)| (name, home.join(folder)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_list_is_in_the_readme() {
        let readme = include_str!("../../../../../README.md");
        let words: Vec<_> = readme
            .split_whitespace()
            .map(|word| word.trim_matches(|c| matches!(c, '`' | ';' | '*' | ',')))
            .collect();
        let toolchains = TOOLCHAINS.iter().flat_map(|toolchain| toolchain.places);
        let others = SETTINGS.iter().chain(&SETTINGS_OF_VERSIONS);
        let programs = PROGRAMS.map(|name| format!("/{name}"));
        let programs = programs.iter().map(String::as_str);
        for name in toolchains.chain(others).copied().chain(programs) {
            assert!(words.contains(&name), "{name}");
        }
    }
}
