//! Helps who misspelt a name.

/// Says that there is no such `what`, which name is the nearest, and which ones there are.
pub(crate) fn unknown(what: &str, found: &str, valid: &[&str]) -> String {
    let list = valid.join("`, `");
    match nearest(found, valid) {
        Some(name) if valid.len() > 1 => {
            format!("unknown {what} `{found}`; the nearest is `{name}`, of `{list}`")
        }
        Some(name) => format!("unknown {what} `{found}`; the only one here is `{name}`"),
        None => format!("unknown {what} `{found}`; there is none here"),
    }
}

/// The name that takes the fewest changes of a letter.
fn nearest<'a>(found: &str, valid: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &&&str| strsim::damerau_levenshtein(found, name);
    valid.iter().min_by_key(distance).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_told() {
        let text = unknown("key", "kernle", &["initrd", "kernel"]);
        assert_eq!(
            text,
            "unknown key `kernle`; the nearest is `kernel`, of `initrd`, `kernel`"
        );
        assert_eq!(
            unknown("key", "extras", &["extra"]),
            "unknown key `extras`; the only one here is `extra`"
        );
    }
}
