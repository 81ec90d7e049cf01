//! Every refusal with a file that deserves it, made by the tools that make such files.

mod boot;
mod disks;
mod locks;
mod shares;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use capsa_core::problem::{ConfigProblem, ProblemKind};
use proptest::prelude::*;
use tempfile::TempDir;

/// A folder for the files of one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Its path without symbolic links, as the checks give it.
    fn path(&self) -> PathBuf {
        self.0.path().canonicalize().expect("it exists")
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, content).expect("the folder is writable");
        path
    }

    /// Runs a program in the folder and expects it to succeed.
    fn run(&self, program: &str, args: &[&str]) {
        let output = Command::new(program)
            .args(args)
            .current_dir(self.path())
            .output()
            .unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {stderr}");
    }
}

/// Cuts a file to a length.
fn truncate(path: &Path, len: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

/// Overwrites bytes of a file.
fn patch(path: &Path, at: usize, bytes: &[u8]) {
    let mut content = fs::read(path).unwrap();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, content).unwrap();
}

/// Expects a file's problem that names the file and says this.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, ConfigProblem>,
    path: &Path,
    words: &str,
) -> ConfigProblem {
    let problem = result.expect_err(words);
    assert_eq!(problem.kind, ProblemKind::File, "{problem}");
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(problem.message.contains(name), "{problem} lacks {name}");
    assert!(problem.message.contains(words), "{problem} lacks {words:?}");
    problem
}

/// Bytes that get past the first look of a parser.
fn plausible_bytes() -> impl Strategy<Value = Vec<u8>> {
    let qcow2 = (any::<[u8; 4]>(), 0_u8..24).prop_map(|(noise, cluster_bits)| {
        let mut head = b"QFI\xfb\0\0\0\x03".to_vec();
        head.resize(4096, noise[3] & 1);
        head[8..32].fill(0);
        head[14..16].copy_from_slice(&noise[..2]);
        head[19] = noise[2];
        head[23] = cluster_bits;
        head[31] = 1;
        head[32..36].fill(0);
        head[39] = noise[1];
        head[46] = noise[0] & 0x0f;
        head[72..80].fill(0);
        head
    });
    let kernel = any::<[u8; 0x60]>().prop_map(|noise| {
        let mut head = vec![0; 0x1f1];
        head.extend(noise);
        head[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head
    });
    let cpio = "(070701[0-9a-f]{40}0000000[0-9a-f][0-9]{32}0000000[0-9a-f]0{8}[a-zA-Z!]{0,9}){1,4}";
    prop_oneof![
        qcow2,
        kernel,
        cpio.prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..256),
    ]
}

proptest! {
    #[test]
    fn no_bytes_confuse_the_parsers(
        mut data in plausible_bytes(),
        noise in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
    ) {
        for (at, byte) in noise {
            if !data.is_empty() {
                let at = at.index(data.len());
                data[at] = byte;
            }
        }
        super::fuzz::check(&data);
    }
}
