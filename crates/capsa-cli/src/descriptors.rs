//! How many files and sockets this program may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as the program may, as servers do: each connection of a guest is a socket here, and
/// the usual 1024 are for programs that use select(2), which neither this one nor any that it starts for a VM
/// does.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // With the old one guests have fewer connections, and are told.
    let _ = setrlimit(Resource::Nofile, most);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_as_high_as_it_may_be() {
        let limit = getrlimit(Resource::Nofile);
        let low = Rlimit {
            current: Some(200),
            ..limit
        };
        setrlimit(Resource::Nofile, low).unwrap();
        raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
    }
}
