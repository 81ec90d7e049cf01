//! Landlock: what the kernel lets this process open, whatever it tries.

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest version whose rights are named here. On an older kernel those that it knows count.
const NEWEST: ABI = ABI::V6;

/// Lets this process open only what is below `root`. Returns whether the kernel does so.
pub(super) fn restrict(root: &OwnedFd, writable: bool) -> bool {
    let status = try_restrict(root, writable);
    status.is_ok_and(|status| status != RulesetStatus::NotEnforced)
}

fn try_restrict(root: &OwnedFd, writable: bool) -> Result<RulesetStatus, RulesetError> {
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
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(root, allowed))?;
    Ok(rules.restrict_self()?.ruleset)
}
