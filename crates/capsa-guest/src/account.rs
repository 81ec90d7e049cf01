//! As whom a program runs: the guest's `/etc/passwd` and `/etc/group`.
//!
//! They are read as files, since a statically linked C library cannot load the modules that it would
//! ask. What they say is of consequence only in the guest.

use std::fs::File;
use std::io::{self, Read};

use capsa_agent_proto::exec::User;
use capsa_agent_proto::{Failure, FailureKind};
use rustix::process::{Gid, Uid};

/// The most that is read of either file: some ten thousand users.
const MAX_BYTES: u64 = 1 << 20;

/// The kernel takes no more groups (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// The numbers by which the kernel knows a user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

impl Identity {
    pub(crate) fn of(user: &User) -> Result<Self, Failure> {
        let read = |path| read(path).map_err(|e| Failure::io(format_args!("read {path}"), &e));
        Self::find(user, &read("/etc/passwd")?, &read("/etc/group")?)
    }

    fn find(user: &User, passwd: &str, group: &str) -> Result<Self, Failure> {
        let mut entries = passwd.lines().filter_map(Entry::parse);
        let (uid, gid, name) = match user {
            User::Name(name) => {
                let entry = entries.find(|entry| entry.name == name).ok_or_else(|| {
                    Failure::new(FailureKind::User, format!("there is no user {name:?}"))
                })?;
                (entry.uid, entry.gid, Some(entry.name))
            }
            User::Id { uid, gid } => {
                let entry = entries.find(|entry| entry.uid == *uid);
                let default = entry.as_ref().map_or(*uid, |entry| entry.gid);
                // Who asks for a group asks for this one alone.
                let name = entry.filter(|_| gid.is_none()).map(|entry| entry.name);
                (*uid, gid.unwrap_or(default), name)
            }
        };
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Failure::new(
                FailureKind::User,
                "-1 is no user and no group",
            ));
        }
        let mut groups = vec![Gid::from_raw(gid)];
        if let Some(name) = name {
            let others = group.lines().filter_map(|line| membership(line, name));
            groups.extend(others.filter(|other| *other != gid).map(Gid::from_raw));
            groups.truncate(MAX_GROUPS);
        }
        Ok(Self {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups,
        })
    }
}

/// `name:password:uid:gid:...`
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        Some(Self {
            name: fields.next()?,
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    }
}

/// The group of a line `name:password:gid:member,member`, if `user` is one of them.
fn membership(line: &str, user: &str) -> Option<u32> {
    let mut fields = line.split(':').skip(2);
    let gid = fields.next()?.parse().ok()?;
    let mut members = fields.next()?.split(',');
    members.any(|member| member == user).then_some(gid)
}

fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_BYTES).read_to_end(&mut bytes)?,
        // A guest without users still knows numbers.
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnonsense\nann:x:1000:100::/home/ann:\n";
    const GROUP: &str = "users:x:100:\nwheel:x:10:bob,ann\naudio:x:20:anna\ndisk:x:6:ann\n";

    fn find(user: &str) -> Result<(u32, u32, Vec<u32>), FailureKind> {
        let identity = Identity::find(&user.parse().unwrap(), PASSWD, GROUP).map_err(|e| e.kind)?;
        let groups = identity.groups.iter().map(|gid| gid.as_raw()).collect();
        Ok((identity.uid.as_raw(), identity.gid.as_raw(), groups))
    }

    #[test]
    fn a_name_has_its_groups() {
        assert_eq!(find("ann"), Ok((1000, 100, vec![100, 10, 6])));
        assert_eq!(find("root"), Ok((0, 0, vec![0])));
        assert_eq!(find("bob"), Err(FailureKind::User));
        assert_eq!(find("nonsense"), Err(FailureKind::User));
    }

    #[test]
    fn a_number_needs_no_entry() {
        assert_eq!(find("1000"), Ok((1000, 100, vec![100, 10, 6])));
        assert_eq!(find("1000:5"), Ok((1000, 5, vec![5])));
        assert_eq!(find("77"), Ok((77, 77, vec![77])));
    }
}
