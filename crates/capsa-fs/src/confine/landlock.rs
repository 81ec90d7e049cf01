//! Landlock: what the kernel lets this process open, whatever it tries.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::folder::Places;

/// The newest version whose rights are named here. On an older kernel those that it knows count.
const NEWEST: ABI = ABI::V6;

/// Lets this process open only what is below `root`. Returns whether the kernel does so.
pub(super) fn restrict(root: &OwnedFd, writable: bool) -> bool {
    let mut allowed: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    if writable {
        allowed |= AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::MakeSym
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir
            // Renames and hard links from one folder to another, below the root.
            | AccessFs::Refer;
    }
    enforced([PathBeneath::new(root.as_fd(), allowed)])
}

/// Lets this process read only these places, and what is below those that are folders.
pub(super) fn restrict_to_places(places: &Places) -> bool {
    enforced(places.all().into_iter().map(|(place, is_folder)| {
        let mut allowed: BitFlags<AccessFs> = AccessFs::ReadFile.into();
        if is_folder {
            allowed |= AccessFs::ReadDir;
        }
        PathBeneath::new(place, allowed)
    }))
}

fn enforced<'a>(rules: impl IntoIterator<Item = PathBeneath<BorrowedFd<'a>>>) -> bool {
    let status = enforce(rules);
    status.is_ok_and(|status| status != RulesetStatus::NotEnforced)
}

fn enforce<'a>(
    rules: impl IntoIterator<Item = PathBeneath<BorrowedFd<'a>>>,
) -> Result<RulesetStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(rules.into_iter().map(Ok::<_, RulesetError>))?;
    Ok(ruleset.restrict_self()?.ruleset)
}
