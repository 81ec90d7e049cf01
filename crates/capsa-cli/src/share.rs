//! Shared folders as they are typed: `HOST:GUEST[:ro|rw]`.

use capsa::{MountMode, SharedDir};

/// Reads a share. The host's folder may contain colons: what follows the last ones is the guest's.
pub(crate) fn parse(text: &str) -> Result<SharedDir, String> {
    const FORM: &str = "a share is written HOST:GUEST, HOST:GUEST:ro or HOST:GUEST:rw";
    let (folders, mode) = match text.rsplit_once(':') {
        Some((folders, "ro")) => (folders, MountMode::ReadOnly),
        Some((folders, "rw")) => (folders, MountMode::ReadWrite),
        _ => (text, MountMode::ReadOnly),
    };
    let (host, guest) = folders.rsplit_once(':').ok_or(FORM)?;
    if host.is_empty() || guest.is_empty() {
        return Err(FORM.to_owned());
    }
    if !guest.starts_with('/') {
        return Err(format!(
            "{guest:?} is neither a mode (ro, rw) nor an absolute path in the guest; {FORM}"
        ));
    }
    Ok(SharedDir::new(host, guest, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_two_folders_and_a_mode() {
        use MountMode::{ReadOnly, ReadWrite};
        for (text, host, guest, mode) in [
            (".:/work", ".", "/work", ReadOnly),
            ("./a:/work:ro", "./a", "/work", ReadOnly),
            ("/a b:/work:rw", "/a b", "/work", ReadWrite),
            ("/a:b:/work:rw", "/a:b", "/work", ReadWrite),
        ] {
            assert_eq!(parse(text), Ok(SharedDir::new(host, guest, mode)), "{text}");
        }
        for text in [
            "", "/a", "/a:", ":/b", ":", "/a:ro", "/a:/b:rx", "/a:b", "::rw",
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains("HOST:GUEST"), "{text}: {refused}");
        }
    }
}
