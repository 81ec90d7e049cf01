//! The tools of an AI agent: each order is a line of JSON on standard input, each answer one on
//! standard output. All of them work in one sandbox, which has no network and goes with the program.
//!
//! ```text
//! $ cargo run --example agent_tools -- ./results
//! {"tool": "write", "path": "/work/hi.sh", "content": "echo hi > out/greeting; exit 3"}
//! {"ok":{}}
//! {"tool": "run", "argv": ["sh", "hi.sh"], "seconds": 10}
//! {"ok":{"status":3,"stderr":"","stdout":""}}
//! {"tool": "collect", "path": "/work/out"}
//! {"ok":{"bytes":3,"entries":2}}
//! ```
//!
//! What the model's code does wrong is an answer that the model can read; only the end of the sandbox
//! ends the loop.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capsa::{Capsa, CopyLimits, Exec, ExecOutput, Sandbox};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, stdin, stdout};

/// Where the code works.
const WORK: &str = "/work";

/// The most that is collected at a time: a program can make more than anybody wants to keep.
const MOST_FILES: u64 = 10_000;
const MOST_FOLDERS_DEEP: usize = 32;
const MOST_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
#[serde(tag = "tool", rename_all = "lowercase", deny_unknown_fields)]
enum Order {
    /// Writes a file.
    Write { path: PathBuf, content: String },
    /// Reads a file.
    Read { path: PathBuf },
    /// Runs a program for so long at most.
    Run { argv: Vec<String>, seconds: u64 },
    /// Copies a file or folder into the results.
    Collect { path: PathBuf },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let results = std::env::args_os().nth(1).unwrap_or("./results".into());
    std::fs::create_dir_all(&results)?;
    let sandbox = Capsa::sandbox().memory_mb(512).cwd(WORK).start().await?;
    sandbox
        .exec(["mkdir", "-p", "/work/out"])
        .cwd("/")
        .output()
        .await?;

    let mut orders = BufReader::new(stdin()).lines();
    let mut answers = stdout();
    while let Some(line) = orders.next_line().await? {
        let done = match serde_json::from_str(&line) {
            Ok(order) => obey(&sandbox, order, results.as_ref()).await,
            Err(error) => Err(error.to_string()),
        };
        let answer = match done {
            Ok(value) => json!({ "ok": value }),
            Err(message) => json!({ "error": message }),
        };
        answers.write_all(format!("{answer}\n").as_bytes()).await?;
        answers.flush().await?;
        if let Some(error) = sandbox.vm().failure() {
            return Err(error.into());
        }
    }
    sandbox.vm().kill().await?;
    Ok(())
}

/// Does what the model asks for. Everything that goes wrong is for the model to read.
async fn obey(sandbox: &Sandbox, order: Order, results: &Path) -> Result<Value, String> {
    match order {
        Order::Write { path, content } => {
            sandbox.write_file(path, content).await.map_err(said)?;
            Ok(json!({}))
        }
        Order::Read { path } => {
            let content = sandbox.read_file(path).await.map_err(said)?;
            Ok(json!({ "content": String::from_utf8_lossy(&content) }))
        }
        Order::Run { argv, seconds } => {
            let run = sandbox.exec(argv);
            let output = run_for(run, Duration::from_secs(seconds)).await?;
            Ok(json!({
                "status": output.status.code(),
                "stdout": String::from_utf8_lossy(&output.stdout),
                "stderr": String::from_utf8_lossy(&output.stderr),
            }))
        }
        Order::Collect { path } => {
            let name = path.file_name().ok_or("that is no file's name")?;
            let limits = CopyLimits::new(MOST_FILES, MOST_FOLDERS_DEEP, MOST_BYTES);
            let copy = sandbox.copy_from(&path, results.join(name)).limits(limits);
            let copied = copy.replace_existing().await.map_err(said)?;
            Ok(json!({ "entries": copied.entries, "bytes": copied.bytes }))
        }
    }
}

/// Runs a program, and ends it with all that it has started when its time is over.
async fn run_for(run: Exec, limit: Duration) -> Result<ExecOutput, String> {
    let finished = tokio::time::timeout(limit, run.kill_rest().output()).await;
    match finished {
        Ok(output) => output.map_err(said),
        Err(_) => Err(format!(
            "it took longer than {} s and was killed",
            limit.as_secs()
        )),
    }
}

/// An error with its reasons.
fn said(error: capsa::Error) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(error) = reason {
        text.push_str(": ");
        text.push_str(&error.to_string());
        reason = error.source();
    }
    text
}
