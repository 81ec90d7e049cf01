//! Extended attributes: those of users. The others are the host's (`security.`, `trusted.`) or would
//! have to be translated (`system.`: access control lists name users).

use std::ffi::CStr;

use fuse_backend_rs::api::filesystem::{GetxattrReply, ListxattrReply};
use rustix::fs::{OFlags, XattrFlags};
use rustix::io::{Errno, Result};

use super::SharedFolder;
use super::attributes::Kind;
use super::nodes::Node;

/// Bytes of one value, and of all the names of a file, at most (Linux, `XATTR_SIZE_MAX` and
/// `XATTR_LIST_MAX`).
const MAX_BYTES: usize = 65536;

const USERS: &[u8] = b"user.";

impl SharedFolder {
    /// Opens a file or folder for its attributes: what only names it has none.
    fn attributed(&self, node: &Node) -> Result<std::os::fd::OwnedFd> {
        match node.kind {
            // Linux keeps no users' attributes of links.
            Kind::Link => Err(Errno::OPNOTSUPP),
            Kind::File | Kind::Folder => self.reopen(node, OFlags::RDONLY),
        }
    }

    pub(super) fn set_xattr(
        &self,
        node: &Node,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        self.check_xattr_change(node, name)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::fsetxattr(self.attributed(node)?, name, value, flags)
    }

    pub(super) fn remove_xattr(&self, node: &Node, name: &CStr) -> Result<()> {
        self.check_xattr_change(node, name)?;
        rustix::fs::fremovexattr(self.attributed(node)?, name)
    }

    fn check_xattr_change(&self, node: &Node, name: &CStr) -> Result<()> {
        self.check_writable()?;
        match is_users(name) && !self.is_around_a_file(node) {
            true => Ok(()),
            false => Err(Errno::PERM),
        }
    }

    /// Where one file is shared, the folder that it is in is not, and neither are its attributes.
    fn is_around_a_file(&self, node: &Node) -> bool {
        self.settings.only.is_some() && node.kind == Kind::Folder
    }

    pub(super) fn get_xattr(&self, node: &Node, name: &CStr, size: u32) -> Result<GetxattrReply> {
        if !is_users(name) || self.is_around_a_file(node) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.attributed(node)?;
        if size == 0 {
            let length = rustix::fs::fgetxattr_query(file, name)?;
            return Ok(GetxattrReply::Count(count(length)));
        }
        let mut value = vec![0; MAX_BYTES.min(size as usize)];
        let length = rustix::fs::fgetxattr(file, name, &mut *value)?;
        value.truncate(length);
        Ok(GetxattrReply::Value(value))
    }

    pub(super) fn list_xattrs(&self, node: &Node, size: u32) -> Result<ListxattrReply> {
        if self.is_around_a_file(node) {
            return Err(Errno::OPNOTSUPP);
        }
        let mut all = vec![0; MAX_BYTES];
        let length = rustix::fs::flistxattr(self.attributed(node)?, &mut *all)?;
        all.truncate(length);
        let names = all.split_inclusive(|byte| *byte == 0);
        let users = names.filter(|name| name.starts_with(USERS));
        let list: Vec<u8> = users.flatten().copied().collect();
        match size as usize {
            0 => Ok(ListxattrReply::Count(count(list.len()))),
            room if room < list.len() => Err(Errno::RANGE),
            _ => Ok(ListxattrReply::Names(list)),
        }
    }
}

fn is_users(name: &CStr) -> bool {
    name.to_bytes().starts_with(USERS)
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
