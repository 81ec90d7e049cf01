//! The program under test, in a folder of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use tempfile::TempDir;

/// Longer than any test's VM takes on a busy machine; a program that hangs fails its test.
const LIMIT: Duration = Duration::from_secs(240);

/// The program, in an empty folder and with an environment in which nothing of the user's is found.
pub(crate) struct Program {
    folder: TempDir,
    /// Keeps what the probe found out of the folder.
    cache: TempDir,
    kit: PathBuf,
}

impl Program {
    /// Without a guest kit.
    pub(crate) fn without_kit() -> Self {
        Self::with(PathBuf::from("no-kit"))
    }

    /// With the guest kit of the tests.
    pub(crate) fn with_kit() -> Self {
        let kit = capsa_testing::images::kit();
        Self::with(kit.kernel.parent().unwrap().to_owned())
    }

    fn with(kit: PathBuf) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            cache: tempfile::tempdir().unwrap(),
            kit,
        }
    }

    /// The folder of its guest kit.
    pub(crate) fn kit(&self) -> &Path {
        &self.kit
    }

    /// Where the program runs.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a file into the folder.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The names of what is in the folder.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The program, for a test that starts it itself.
    pub(crate) fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_capsa"));
        command
            .args(args)
            .current_dir(self.folder())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("TERM", "xterm")
            .env("CAPSA_KIT", &self.kit)
            // The first process of sandboxes; cargo's configuration says where it is.
            .envs(std::env::vars_os().filter(|(name, _)| name == "CAPSA_GUEST"))
            .env("XDG_CACHE_HOME", self.cache.path())
            // Files that are left behind are seen.
            .env("TMPDIR", self.folder());
        command
    }

    /// Runs the program with this standard input to its end.
    pub(crate) fn run(&self, args: &[&str], input: impl Into<Vec<u8>>) -> Assert {
        Command::from_std(self.command(args))
            .timeout(LIMIT)
            .write_stdin(input)
            .assert()
    }
}

/// What the program wrote to standard output.
pub(crate) fn stdout(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stdout).into_owned()
}

/// What the program wrote to standard error.
pub(crate) fn stderr(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}
