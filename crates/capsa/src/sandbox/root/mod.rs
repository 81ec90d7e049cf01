//! A sandbox's root of the host's files: what of the host it is, and what programs must be told of it.
//!
//! ```text
//! SandboxRoot ── inspect ──▶ Share of `/`: its folder, and the places of it that are served
//!                  list         which these are, for the host's own root
//!                  changes      the disk to which the guest writes what it changes
//! ```

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use capsa_core::problem::ConfigProblem;
use capsa_core::root::{RootSource, SandboxRoot};
use capsa_core::share::{MountMode, Share, ShareKind, VirtioFsCache};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::process::geteuid;

pub(super) mod changes;
mod list;
#[cfg(test)]
mod tests;

const FIELD: &str = "root";

/// The tag of the share that is the root.
const TAG: &str = "capsa-root";

/// The folders that are the guest's own with every root.
const OWN: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// What others than the owner must be allowed: to read and to enter.
const FOR_OTHERS: u32 = 0o005;

/// Where programs are in every distribution.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks at what a root consists of: the share that it is, unless it is the guest's own. Blocks.
pub(crate) fn inspect(root: &SandboxRoot) -> Result<Option<Share>, Vec<ConfigProblem>> {
    let (folder, places) = match &root.source {
        RootSource::Initramfs => return Ok(None),
        RootSource::Folder(path) => (folder(path).map_err(|problem| vec![problem])?, None),
        RootSource::Host => {
            let places = host_places(home().as_deref(), &root.exposed)?;
            (PathBuf::from("/"), Some(places))
        }
    };
    let (mode, path) = (MountMode::ReadOnly, "/".to_owned());
    // An overlay takes what is below it to stay as it is, and programs load the same libraries again
    // and again.
    let cache = VirtioFsCache::Always;
    let share = Share::resolved(
        TAG.into(),
        folder,
        path,
        mode,
        ShareKind::VirtioFs { cache },
    );
    Ok(Some(share.places(places)))
}

fn folder(path: &Path) -> Result<PathBuf, ConfigProblem> {
    let shown = path.display();
    let problem = |message| ConfigProblem::file(FIELD, message);
    let folder = fs::canonicalize(path)
        .map_err(|error| problem(format!("the folder {shown} cannot be opened: {error}")))?;
    if folder == Path::new("/") {
        let message = format!("{shown} is the host's own root, which is not shared as a whole");
        return Err(problem(message).hint("ask for `/` by this name: its programs are shared"));
    }
    if !folder.is_dir() {
        return Err(problem(format!("{shown} is not a folder")));
    }
    let cannot = |error| problem(format!("the folder {shown} cannot be read: {error}"));
    fs::read_dir(&folder).map_err(|error| {
        cannot(error).hint("give the user who runs Capsa permission to read and enter it")
    })?;
    let found = fs::metadata(&folder).map_err(cannot)?;
    if found.uid() == 0 && geteuid().is_root() && found.mode() & FOR_OTHERS != FOR_OTHERS {
        let message = format!("only root may read the folder {shown}, and nobody serves it");
        return Err(problem(message).hint("let others read and enter it: chmod o+rx"));
    }
    Ok(folder)
}

/// What is served of the host, relative to its root: the list's, and what a caller adds to it. None of
/// them is below another one.
fn host_places(
    home: Option<&Path>,
    exposed: &[PathBuf],
) -> Result<Vec<PathBuf>, Vec<ConfigProblem>> {
    let mut problems = Vec::new();
    let mut places = list::places(home);
    for path in exposed {
        match check_exposed(path) {
            Ok(path) => places.push(path),
            Err(problem) => problems.push(problem),
        }
    }
    places.sort();
    places.dedup();
    let mut outer: Vec<PathBuf> = Vec::new();
    for place in places {
        match outer.last().filter(|last| place.starts_with(last)) {
            None => outer.push(place),
            Some(around) if exposed.contains(&place) && mount_of(around) != mount_of(&place) => {
                let (place, around) = (place.display(), around.display());
                problems.push(ConfigProblem::file(
                    FIELD,
                    format!(
                        "{place} is on another mount than {around}, which is shared: what is \
                         mounted below a shared folder is not"
                    ),
                ));
            }
            Some(_) => {}
        }
    }
    match problems.is_empty() {
        true => Ok(outer.iter().map(|place| relative(place)).collect()),
        false => Err(problems),
    }
}

/// Checks that a path can be at the same place in the guest.
fn check_exposed(path: &Path) -> Result<PathBuf, ConfigProblem> {
    let shown = path.display();
    let problem = |message| ConfigProblem::file(FIELD, message);
    let cannot = |error| problem(format!("{shown} cannot be shared: {error}"));
    let given = std::path::absolute(path).map_err(cannot)?;
    let found = fs::canonicalize(path).map_err(cannot)?;
    if given != found {
        let found = found.display();
        let message = format!("{shown} leads through a symbolic link or `..` to {found}");
        return Err(problem(message).hint("name the path that it leads to"));
    }
    if found == Path::new("/") {
        return Err(problem("the host's root is not shared as a whole".into()));
    }
    if let Some(own) = OWN.iter().find(|own| found.starts_with(own)) {
        let message = format!("{shown} would be hidden: {own} is the guest's own");
        return Err(problem(message).hint("share it at another path of the guest"));
    }
    if !found.is_dir() && !found.is_file() {
        return Err(problem(format!("{shown} is neither a folder nor a file")));
    }
    Ok(found)
}

/// The caller's home, where toolchains are.
fn home() -> Option<PathBuf> {
    let home = env::home_dir().filter(|home| home.is_absolute())?;
    // In a home in `/`, as some services have it, nobody has installed a toolchain.
    fs::canonicalize(home)
        .ok()
        .filter(|home| home != Path::new("/"))
}

/// The mount that a path is on, where the kernel tells (Linux 5.8).
fn mount_of(path: &Path) -> Option<u64> {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).ok()?;
    let told = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    told.then_some(found.stx_mnt_id)
}

fn relative(place: &Path) -> PathBuf {
    place.strip_prefix("/").unwrap_or(place).to_owned()
}

/// What programs have in their environment because of these shares: with the host's root its toolchains
/// are found where the caller has them.
pub(super) fn environment(shares: &[Share]) -> Vec<(OsString, OsString)> {
    let root = shares.iter().find(|share| share.is_root());
    match root.and_then(|root| root.places.as_deref()) {
        Some(places) => of_host(places, home().as_deref(), env::var_os("PATH")),
        None => Vec::new(),
    }
}

fn of_host(
    places: &[PathBuf],
    home: Option<&Path>,
    callers: Option<OsString>,
) -> Vec<(OsString, OsString)> {
    let is_seen = |path: &PathBuf| places.iter().any(|place| relative(path).starts_with(place));
    let (toolchains, variables) = home.map(list::environment).unwrap_or_default();
    let callers: Vec<PathBuf> = callers
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default();
    let mut path: Vec<PathBuf> = Vec::new();
    let seen = callers.into_iter().chain(toolchains).filter(is_seen);
    for folder in seen.chain(env::split_paths(PATH)) {
        if folder.is_absolute() && !path.contains(&folder) {
            path.push(folder);
        }
    }
    // A place is in the folder that a variable names, or is that folder.
    let has_places = |folder: &PathBuf| {
        let folder = relative(folder);
        places
            .iter()
            .any(|place| place.starts_with(&folder) || folder.starts_with(place))
    };
    let variables = variables
        .into_iter()
        .filter(|(_, folder)| has_places(folder))
        .map(|(name, folder)| (name.into(), folder.into()));
    // Folders with a colon in their name cannot have come from a PATH.
    let path = env::join_paths(path).map(|path| ("PATH".into(), path));
    path.into_iter().chain(variables).collect()
}
