//! A guest that has taken the server over: what each wall leaves to it.
//!
//! Each attack is made by a process of its own, which is this program again: it is confined as the
//! server is, on a machine that lacks a wall or has both, and then tries to leave the folder. Not the
//! usual harness, whose threads would keep that process from entering namespaces.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "it tells the test what it could do")]

use std::env;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use capsa_fs::confine::{self, Confined, Who};
use capsa_fs::folder::Shared;
use libtest_mimic::{Arguments, Trial};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, StatxFlags, Timestamps, chmodat, openat, renameat, statx, utimensat,
};
use rustix::io::Result;
use seccompiler::apply_filter;
use tempfile::TempDir;

mod lacking;

/// How the folder is shared. The last two give root's rights up.
const ACCESS: [&str; 4] = ["ro", "rw", "root", "places"];

/// The secret's mode.
const SECRET: u32 = 0o666;

/// What this program is when its first argument says so.
const TAKEN_OVER: &str = "taken-over";

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    if arguments.next().is_some_and(|first| first == TAKEN_OVER) {
        return taken_over(&arguments.collect::<Vec<_>>());
    }
    let trials = [
        Trial::test("namespaces_and_landlock_hold", || {
            holds("", "namespaces, landlock, seccomp")
        }),
        Trial::test("namespaces_alone_hold", || {
            holds("landlock", "namespaces, seccomp")
        }),
        Trial::test("landlock_alone_holds_but_for_looks", || {
            let looks = ["by path", "from the folder", "from the descriptors"];
            let looks = looks.map(|way| format!("\nlook {way}")).concat();
            holds("namespaces", &format!("landlock, seccomp{looks}"))
        }),
        Trial::test("with_neither_nothing_is_served", || {
            for access in ACCESS {
                let output = Host::new().attack(access, "namespaces landlock");
                assert!(!output.status.success(), "{access}: {output:?}");
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(said.contains("nor by landlock"), "{said}");
            }
            Ok(())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

/// A folder that is shared, and what is beside it.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(TempDir::new().unwrap());
        fs::create_dir(host.path("shared")).unwrap();
        for name in ["shared/file", "secret"] {
            fs::write(host.path(name), name).unwrap();
        }
        // Whoever root becomes, only walls keep it from the secret.
        for (name, mode) in [("", 0o777), ("shared/file", 0o644), ("secret", SECRET)] {
            fs::set_permissions(host.path(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Confines a process to the shared folder on a machine that lacks these, and has it attack.
    fn attack(&self, access: &str, lacking: &str) -> Output {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args([TAKEN_OVER, access, lacking])
            .arg(self.0.path());
        command.output().unwrap()
    }

    fn is_unharmed(&self) {
        assert_eq!(fs::read_to_string(self.path("secret")).unwrap(), "secret");
        let found = fs::metadata(self.path("secret")).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, SECRET);
        assert_ne!(found.modified().unwrap(), std::time::UNIX_EPOCH);
    }
}

fn holds(lacking: &str, walls: &str) -> std::result::Result<(), libtest_mimic::Failed> {
    for access in ACCESS {
        let host = Host::new();
        let output = host.attack(access, lacking);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(said, format!("{walls}\n"));
        host.is_unharmed();
    }
    Ok(())
}

/// Prints what holds this process, and each attack that succeeds.
fn taken_over(arguments: &[String]) -> ExitCode {
    let [access, lacking, outer] = arguments else {
        panic!("{arguments:?}")
    };
    if let Some(filter) = lacking::filter(lacking) {
        apply_filter(&filter).unwrap();
    }
    let outer = Path::new(outer);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| openat(CWD, path, flags, Mode::empty()).unwrap();
    let shared = outer.join("shared");
    let confined = match access.as_str() {
        "places" => confine::enter_places(open(outer), b"shared\0shared/file\0"),
        "root" => confine::enter(open(&shared), Who::OwnerButNotRoot, false),
        access => confine::enter(open(&shared), Who::Owner, access == "rw"),
    };
    let confined = match confined {
        Ok(confined) => confined,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    confine::close(confined.walls).unwrap();
    let Confined {
        shared,
        descriptors,
        walls,
        ..
    } = &confined;
    println!("{walls}");
    let root = &match shared {
        Shared::Folder(folder) => folder.as_fd(),
        Shared::Places(places) => places.all()[0].0,
    };
    // What serving takes is there.
    openat(root, "file", OFlags::RDONLY, Mode::empty()).unwrap();

    let up = format!("{}{}", "../".repeat(40), outer.to_str().unwrap());
    try_all("by path", CWD, outer);
    try_all("from the folder", root, Path::new(&up));
    try_all("from the descriptors", descriptors, Path::new(&up));
    ExitCode::SUCCESS
}

fn try_all(way: &str, from: impl AsFd, outer: &Path) {
    let from = from.as_fd();
    let secret = &outer.join("secret");
    let none = Mode::empty();
    let mode = Mode::from_raw_mode(0o4755);
    let epoch = Timestamps {
        last_access: rustix::fs::Timespec::default(),
        last_modification: rustix::fs::Timespec::default(),
    };
    let tell = |what: &str, result: Result<()>| {
        if result.is_ok() {
            println!("{what} {way}");
        }
    };
    tell("read", openat(from, secret, OFlags::RDONLY, none).map(drop));
    tell(
        "write",
        openat(from, secret, OFlags::WRONLY, none).map(drop),
    );
    tell(
        "list",
        openat(from, outer, OFlags::DIRECTORY, none).map(drop),
    );
    let flags = AtFlags::empty();
    tell(
        "look",
        statx(from, secret, flags, StatxFlags::ALL).map(drop),
    );
    tell("chmod", chmodat(from, secret, mode, flags));
    tell("utimes", utimensat(from, secret, &epoch, flags));
    tell("rename", renameat(from, secret, from, outer.join("moved")));
}
