use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

/// A home with toolchains and secrets, in a folder that is not the guest's own.
fn home() -> TempDir {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    for name in [
        ".cargo/bin/cargo",
        ".cargo/credentials.toml",
        ".cargo/config.toml",
        ".rustup/settings.toml",
        ".nvm/versions/node/v1/bin/node",
        ".npmrc",
        ".ssh/id_ed25519",
        ".aws/credentials",
        ".netrc",
        ".local/bin/tool",
        ".local/share/keyrings/login.keyring",
        "work/notes",
    ] {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    home
}

fn places(home: &Path, exposed: &[PathBuf]) -> Vec<PathBuf> {
    host_places(Some(home), exposed).unwrap()
}

fn problem(root: SandboxRoot) -> String {
    let mut problems = inspect(&root).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0).to_string()
}

#[test]
fn of_a_home_only_toolchains_are_there() {
    let home = home();
    let found = places(home.path(), &[]);
    let of_home = relative(home.path());
    let found: Vec<_> = found
        .iter()
        .filter_map(|place| place.strip_prefix(&of_home).ok())
        .filter_map(Path::to_str)
        .collect();
    let expected = [".cargo/bin", ".local/bin", ".nvm/versions", ".rustup"];
    assert_eq!(found, expected);
}

#[test]
fn of_the_host_its_programs_and_some_settings_are_there() {
    let found = host_places(None, &[]).unwrap();
    for place in ["usr", "etc/passwd", "etc/ld.so.cache"] {
        assert!(found.contains(&place.into()), "{place}: {found:?}");
    }
    let tops = [
        "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt",
    ];
    for place in &found {
        let name = place.to_str().unwrap();
        assert!(tops.contains(&name) || name.starts_with("etc/"), "{name}");
    }
    for secret in [
        "shadow",
        "gshadow",
        "sudoers",
        "ssh",
        "ssl/private",
        "machine-id",
    ] {
        let path = Path::new("etc").join(secret);
        let seen = found
            .iter()
            .any(|place| path.starts_with(place) || place.starts_with(&path));
        assert!(!seen, "{secret}");
    }
}

#[test]
fn a_path_that_is_exposed_is_there_once() {
    let home = home();
    let work = home.path().join("work");
    let exposed = [work.clone(), work.join("notes"), "/usr/bin".into()];
    let found = places(home.path(), &exposed);
    assert!(found.contains(&relative(&work)));
    assert!(!found.contains(&relative(&work.join("notes"))));
    assert!(!found.contains(&"usr/bin".into()));
}

#[test]
fn what_cannot_be_exposed_is_refused() {
    let home = home();
    let link = home.path().join("link");
    symlink(home.path().join("work"), &link).unwrap();
    let missing = home.path().join("missing");
    for (path, words) in [
        (Path::new("/"), "not shared as a whole"),
        (Path::new("/dev/null"), "/dev is the guest's own"),
        (Path::new("/proc"), "/proc is the guest's own"),
        (&link, "leads through a symbolic link"),
        (&home.path().join("work/../work"), "leads through"),
        (&missing, "No such file"),
    ] {
        let said = problem(SandboxRoot::host().expose(path));
        assert!(said.contains(words), "{said}");
    }
    let both = SandboxRoot::host().expose(&missing).expose("/dev");
    assert_eq!(inspect(&both).unwrap_err().len(), 2);
}

#[test]
fn a_folder_is_a_root_if_it_can_be_served() {
    let folder = tempfile::tempdir().unwrap();
    let mode = |mode| fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
    mode(0o755);
    let share = inspect(&SandboxRoot::folder(folder.path()))
        .unwrap()
        .unwrap();
    assert!(share.is_root());
    assert_eq!((share.mode, share.places), (MountMode::ReadOnly, None));
    mode(0o700);
    let private = inspect(&SandboxRoot::folder(folder.path()));
    assert_eq!(private.is_err(), geteuid().is_root());

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let own = tempfile::tempdir().unwrap();
    let link = own.path().join("root");
    symlink("/", &link).unwrap();
    for (path, words) in [
        (&file, "is not a folder"),
        (&folder.path().join("missing"), "cannot be opened"),
        (&link, "the host's own root"),
    ] {
        let said = problem(SandboxRoot::folder(path));
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(inspect(&SandboxRoot::initramfs()), Ok(None));
}

#[test]
fn programs_are_found_where_the_caller_has_them() {
    let home = home();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let node = at(".nvm/versions/node/v1/bin");
    let callers = format!("{node}:relative::{}:/usr/games:{}", at("bin"), at(".ssh"));
    let found = of_host(
        &places(home.path(), &[]),
        Some(home.path()),
        Some(callers.into()),
    );
    let value = |name: &str| {
        let found = found.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.to_str().unwrap())
    };
    let (cargo, local) = (at(".cargo/bin"), at(".local/bin"));
    let path = format!("{node}:/usr/games:{cargo}:{local}:{PATH}");
    assert_eq!(value("PATH"), Some(&*path));
    assert_eq!(value("CARGO_HOME"), Some(&*at(".cargo")));
    assert_eq!(value("RUSTUP_HOME"), Some(&*at(".rustup")));
    assert_eq!(value("PYENV_ROOT"), None);
    assert_eq!(found.len(), 3);
    assert_eq!(of_host(&places(home.path(), &[]), None, None).len(), 1);
}
