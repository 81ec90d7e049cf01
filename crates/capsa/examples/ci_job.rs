//! A CI job: a project is copied into a fresh VM, its steps run one after the other, and what they
//! made is copied back. The job's status is that of the first step that fails.
//!
//! ```text
//! $ cargo run --example ci_job -- ./project ./artifacts "make" "make test"
//! ```
//!
//! The project is copied and not shared: nothing that a step does, from a clean-up gone wrong to a
//! planted hook, reaches the checkout. Steps run as an ordinary user.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use capsa::{Capsa, Sandbox, User};
use tokio::io::{AsyncWrite, copy, stderr, stdout};

/// The longest that a job may take.
const JOB: Duration = Duration::from_secs(30 * 60);

/// Who runs the steps.
const BUILDER: u32 = 1000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut args = env::args_os().skip(1);
    let usage = "usage: ci_job PROJECT ARTIFACTS STEP...";
    let project = PathBuf::from(args.next().ok_or(usage)?);
    let artifacts = PathBuf::from(args.next().ok_or(usage)?);

    let sandbox = Capsa::sandbox()
        .memory_mb(1024)
        .timeout(JOB)
        .cwd("/work")
        .env("CI", "true")
        .env("HOME", "/work")
        .start()
        .await?;
    sandbox.copy_to(&project, "/work").await?;
    let owner = format!("{BUILDER}:{BUILDER}");
    let own = sandbox
        .exec(["chown", "-R", &owner, "/work"])
        .user(User::from(0));
    own.output().await?;

    let mut status = 0;
    for step in args {
        eprintln!("== {}", step.display());
        status = run(&sandbox, ["sh".into(), "-ec".into(), step]).await?;
        if status != 0 {
            eprintln!("== failed with status {status}");
            break;
        }
    }
    // Also of a job that failed: its logs are what one wants to see.
    if sandbox.exists("/work/artifacts").await? {
        let copied = sandbox.copy_from("/work/artifacts", &artifacts).await?;
        eprintln!("== {} artifacts, {} bytes", copied.entries, copied.bytes);
    }
    sandbox.vm().kill().await?;
    Ok(status.into())
}

/// Runs a step, whose output appears as it comes, and returns its status.
async fn run<const N: usize>(
    sandbox: &Sandbox,
    argv: [std::ffi::OsString; N],
) -> Result<u8, Box<dyn std::error::Error>> {
    let step = sandbox.exec(argv).user(BUILDER).kill_rest();
    let mut step = step.spawn().await?;
    drop(step.stdin.take());
    let output = show(step.stdout.take(), stdout());
    let errors = show(step.stderr.take(), stderr());
    tokio::try_join!(output, errors)?;
    Ok(step.wait().await?.code())
}

async fn show(
    from: Option<capsa::ProcessOutput>,
    mut to: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    match from {
        Some(mut from) => copy(&mut from, &mut to).await.map(drop),
        None => Ok(()),
    }
}
