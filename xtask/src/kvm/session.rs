//! The command as a script: the only way in which it gets into the guest, so that no argument and
//! no variable is on a command line that others can read.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::workspace::search_path;

/// The variables of the caller that the command gets: where programs and their files are, and what
/// people set to change what Rust programs and these tests do. Not more, as an environment holds
/// secrets too, and what a test does should not depend on who runs it.
const KEPT: [&str; 8] = [
    "CARGO_HOME",
    "CARGO_TARGET_DIR",
    "HOME",
    "LANG",
    "LC_ALL",
    "TERM",
    "TMPDIR",
    "USER",
];
/// How further variables begin that the command gets.
const KEPT_PREFIXES: [&str; 6] = [
    "CAPSA_",
    "CARGO_TERM_",
    "NEXTEST",
    "PROPTEST_",
    "RUST_",
    "RUSTUP_",
];

/// What the tests' guests are spared where KVM is emulated: seconds of their boots, and output by
/// which a console is filled.
const FOR_EMULATED_KVM: [&str; 2] = [
    "CAPSA_TEST_CMDLINE=mitigations=off cryptomgr.notests",
    "CAPSA_TEST_OUTPUT_DIVISOR=32",
];

/// The command, with the environment and the folder in which it runs.
pub(super) struct Session {
    argv: Vec<OsString>,
    folder: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

impl Session {
    /// The command in the caller's folder.
    pub(super) fn new(argv: &[OsString], share: &Path) -> Result<Self> {
        let mut environment: Vec<_> = env::vars_os().filter(|(name, _)| is_kept(name)).collect();
        environment.push(("PATH".into(), env::join_paths(search_path()?)?));
        environment.push(("CAPSA_BENCH_SHARE".into(), share.into()));
        environment.push(("NO_COLOR".into(), "1".into()));
        Ok(Self {
            argv: argv.to_owned(),
            folder: env::current_dir().context("the current folder")?,
            environment,
        })
    }

    /// The command on this machine, with the same environment as in the guest.
    pub(super) fn command(&self) -> Command {
        let (program, args) = self
            .argv
            .split_first()
            .map_or((OsStr::new(""), &[][..]), |(program, args)| (program, args));
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(&self.folder)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// The command as a script for the guest's shell, which turns into it once `ready`, in the same
    /// environment, says that KVM works.
    pub(super) fn script(&self, ready: &[&OsStr]) -> Vec<u8> {
        let mut script = b"cd ".to_vec();
        quote(&mut script, self.folder.as_os_str());
        script.extend(b" || exit 125");
        script.extend(b"\nset --");
        quote_all(&mut script, FOR_EMULATED_KVM.map(OsStr::new));
        for (name, value) in &self.environment {
            let mut assignment = name.clone();
            assignment.push("=");
            assignment.push(value);
            script.push(b' ');
            quote(&mut script, &assignment);
        }
        script.extend(b"\nenv -i \"$@\"");
        quote_all(&mut script, ready.iter().copied());
        script.extend(b" || exit 125\nexec env -i \"$@\"");
        quote_all(&mut script, self.argv.iter().map(OsString::as_os_str));
        script.push(b'\n');
        script
    }
}

fn is_kept(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let begins = |prefix: &&str| name.starts_with(prefix.as_bytes());
    KEPT.iter().any(|kept| name == kept.as_bytes()) || KEPT_PREFIXES.iter().any(begins)
}

fn quote_all<'a>(script: &mut Vec<u8>, words: impl IntoIterator<Item = &'a OsStr>) {
    for word in words {
        script.push(b' ');
        quote(script, word);
    }
}

/// Appends `word` so that a shell takes it as one, as it is.
pub(super) fn quote(script: &mut Vec<u8>, word: &OsStr) {
    script.push(b'\'');
    for byte in word.as_bytes() {
        match byte {
            b'\'' => script.extend(br"'\''"),
            _ => script.push(*byte),
        }
    }
    script.push(b'\'');
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn a_shell_runs_the_command_as_it_was_given() {
        let odd: Vec<u8> = (1..=255).collect();
        let argv = [
            OsString::from("printf"),
            r"%s|%s|%s\n".into(),
            OsString::from_vec(odd.clone()),
            "".into(),
            "it's".into(),
        ];
        let session = Session::new(&argv, Path::new("/a share")).unwrap();
        let run = |script: &[u8]| {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(OsStr::from_bytes(script));
            shell.output().unwrap().stdout
        };
        let expected = [&odd[..], b"||it's\n"].concat();
        let ready = |program| [OsStr::new(program)];
        assert_eq!(run(&session.script(&ready("true"))), expected);
        assert_eq!(run(&session.script(&ready("false"))), b"");
        assert_eq!(session.command().output().unwrap().stdout, expected);

        let session = Session::new(&["env".into()], Path::new("/a share")).unwrap();
        let environment = String::from_utf8(run(&session.script(&ready("true")))).unwrap();
        assert!(environment.contains("CAPSA_BENCH_SHARE=/a share\n"));
    }

    #[test]
    fn what_is_not_on_the_list_stays_with_the_caller() {
        for kept in ["HOME", "CAPSA_KIT", "RUST_BACKTRACE", "NEXTEST_PROFILE"] {
            assert!(is_kept(OsStr::new(kept)), "{kept}");
        }
        for dropped in ["HOMEX", "CARGO_REGISTRY_TOKEN", "CARGO_MANIFEST_DIR", "X"] {
            assert!(!is_kept(OsStr::new(dropped)), "{dropped}");
        }
    }
}
