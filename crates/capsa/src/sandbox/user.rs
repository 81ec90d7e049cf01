//! As whom a program runs.

use capsa_agent_proto::exec;

/// A user of the guest: by name, or by number, with a group of its own or the user's.
///
/// ```
/// use capsa::User;
///
/// assert_eq!(User::from("build"), User::name("build"));
/// assert_eq!(User::from("1000"), User::from(1000));
/// assert_eq!(User::from("1000:100"), User::from((1000, 100)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User(exec::User);

impl User {
    /// The user of this name in the guest's `/etc/passwd`, with its groups. Whether there is one is
    /// seen when the program is run.
    pub fn name(name: impl Into<String>) -> Self {
        Self(exec::User::Name(name.into()))
    }

    pub(super) fn into_message(self) -> exec::User {
        self.0
    }
}

/// The user with this number, whether the guest knows it or not. The group is the user's in
/// `/etc/passwd`, else the one with the same number.
impl From<u32> for User {
    fn from(uid: u32) -> Self {
        Self(exec::User::Id { uid, gid: None })
    }
}

/// The user and the group with these numbers, and no other group.
impl From<(u32, u32)> for User {
    fn from((uid, gid): (u32, u32)) -> Self {
        let gid = Some(gid);
        Self(exec::User::Id { uid, gid })
    }
}

/// `NAME`, `UID` or `UID:GID`. What is neither of the last two is a name.
impl From<&str> for User {
    fn from(text: &str) -> Self {
        match text.parse() {
            Ok(user) => Self(user),
            Err(exec::ParseUserError) => Self::name(text),
        }
    }
}
