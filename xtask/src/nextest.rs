//! Runs the tests under cargo-nextest and counts what it says about them.
//!
//! A summary line tells what ran, not what should have run. So the tests are listed first, and
//! each of them has to be in the runner's report.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{fmt, fs, mem};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::{cargo, display, output, target_folder};

/// What cargo builds and tests.
pub(crate) const EVERYTHING: [&str; 3] = ["--locked", "--workspace", "--all-features"];

/// The tests that run a VM: a group in `.config/nextest.toml`.
const VM_TESTS: &str = "group(vm)";

/// How many tests there were.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// A test: the runner's name of its program, and its own.
type Test = (String, String);

/// Runs every test but those for [`Suite::in_bench`], and adds what became of them to `counts`.
///
/// # Errors
///
/// A test failed, or did not run though it should have: those with a VM above all.
pub(crate) fn run(counts: &mut Counts) -> Result<()> {
    let suite = Suite::of("default", Vec::new(), target_folder()?.join("nextest"))?;
    let vm_tests = suite.list(&["--filterset", VM_TESTS])?;
    ensure!(!vm_tests.is_empty(), "there is no test with a VM");
    suite.forget_report()?;
    let mut command = cargo(["nextest", "run", "--no-fail-fast"])?;
    let status = command.args(EVERYTHING).stdin(Stdio::null()).status()?;
    suite.check(counts, status.success())?;
    eprintln!("{} of these tests ran a VM", vm_tests.len());
    Ok(())
}

/// The tests of a profile in `.config/nextest.toml`.
pub(crate) struct Suite {
    profile: &'static str,
    /// The runner's arguments that choose some of the profile's tests; empty for all.
    choice: Vec<String>,
    /// Where the runner keeps what it reports, in a folder for each profile.
    store: PathBuf,
    wanted: BTreeSet<Test>,
    /// Those that are wanted, and those that say that they are not to be run.
    known: BTreeSet<Test>,
}

impl Suite {
    fn of(profile: &'static str, choice: Vec<String>, store: PathBuf) -> Result<Self> {
        let mut suite = Self {
            profile,
            choice,
            store,
            wanted: BTreeSet::new(),
            known: BTreeSet::new(),
        };
        suite.wanted = suite.list(&[])?;
        suite.known = suite.list(&["--run-ignored", "all"])?;
        Ok(suite)
    }

    /// Removes the report of an earlier run, which must not pass for the one of the next.
    pub(crate) fn forget_report(&self) -> Result<()> {
        let report = self.report();
        match fs::remove_file(&report) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context(format!("cannot remove {}", report.display()))
            }
            _ => Ok(()),
        }
    }

    /// The tests that need a KVM which runs stock kernels: those with one of `names` in theirs, unless
    /// it is empty.
    pub(crate) fn in_bench(names: &[String]) -> Result<Self> {
        let store = target_folder()?.join("nextest");
        let suite = Self::of("bench", names.to_owned(), store)?;
        ensure!(
            !suite.wanted.is_empty(),
            "there are no such tests for the bench"
        );
        Ok(suite)
    }

    /// Takes some tests out of it, as a suite of their own whose runner keeps its report in a folder with
    /// this number; with the last ones go those that are not to be run.
    pub(crate) fn split_off(&mut self, count: usize, number: usize) -> Self {
        let wanted: BTreeSet<_> = self.wanted.iter().take(count).cloned().collect();
        self.wanted.retain(|test| !wanted.contains(test));
        let known = match self.wanted.is_empty() {
            true => mem::take(&mut self.known),
            false => wanted.clone(),
        };
        self.known.retain(|test| !known.contains(test));
        let exactly = wanted
            .iter()
            .map(|(program, name)| format!("(binary_id(={program}) & test(={name}))"));
        let filter = exactly.collect::<Vec<_>>().join(" | ");
        Self {
            profile: self.profile,
            choice: vec!["--filterset".to_owned(), filter],
            store: self.store.join(format!("part-{number}")),
            wanted,
            known,
        }
    }

    /// How many of its tests are to be run.
    pub(crate) fn len(&self) -> usize {
        self.wanted.len()
    }

    fn list(&self, choice: &[&str]) -> Result<BTreeSet<Test>> {
        let mut list = cargo(["nextest", "list", "--message-format", "oneline"])?;
        list.args(["--profile", self.profile]).args(EVERYTHING);
        listed(&output(list.args(choice).args(&self.choice))?)
    }

    /// The folder in which the runner leaves its report.
    pub(crate) fn folder(&self) -> PathBuf {
        self.store.join(self.profile)
    }

    fn report(&self) -> PathBuf {
        self.folder().join("junit.xml")
    }

    /// The runner's arguments for running these tests without cargo, from programs that are built.
    /// Writes three files into `folder` for it.
    pub(crate) fn run_built(&self, folder: &Path) -> Result<Vec<OsString>> {
        let mut list = cargo(["nextest", "list", "--list-type", "binaries-only"])?;
        let binaries = output(list.args(["--message-format", "json"]).args(EVERYTHING))?;
        // For one platform: the packages of others are not here, and cargo would fetch them.
        let platform = ["--filter-platform", "x86_64-unknown-linux-gnu"];
        let mut metadata = cargo(["metadata", "--locked", "--all-features"])?;
        metadata.args(platform);
        let metadata = output(metadata.args(["--format-version", "1"]))?;
        let words = ["cargo-nextest", "nextest", "run", "--no-fail-fast"];
        let mut words: Vec<OsString> = words.map(OsString::from).to_vec();
        words.extend(["--profile", self.profile].map(OsString::from));
        let store = self.store.to_str();
        let store =
            store.with_context(|| format!("not a name for a file of settings: {store:?}"))?;
        let settings = folder.join("settings.toml");
        // TOML's quoting is Rust's for what is in names of folders.
        fs::write(&settings, format!("[store]\ndir = {store:?}\n"))
            .with_context(|| format!("write {}", settings.display()))?;
        let mut option = OsString::from("--tool-config-file=capsa:");
        option.push(settings);
        words.push(option);
        for (option, name, text) in [
            ("--binaries-metadata", "binaries.json", binaries),
            ("--cargo-metadata", "cargo.json", metadata),
        ] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            words.extend([option.into(), path.into()]);
        }
        words.extend(self.choice.iter().map(OsString::from));
        Ok(words)
    }

    /// Adds to `counts` what the runner reports.
    ///
    /// # Errors
    ///
    /// A test failed or is not in the report, there is no report, or the runner had no success.
    pub(crate) fn check(&self, counts: &mut Counts, success: bool) -> Result<()> {
        let path = self.report();
        let text = fs::read_to_string(&path)
            .with_context(|| format!("the test runner left no report {}", path.display()))?;
        let outcomes = outcomes(&text)?;
        *counts += count(&self.known, &outcomes);
        let absent: Vec<_> = self
            .wanted
            .iter()
            .filter(|test| !outcomes.contains_key(*test))
            .map(|(program, name)| format!("{program} {name}"))
            .collect();
        ensure!(absent.is_empty(), "did not run: {}", absent.join(", "));
        ensure!(success, "the test runner failed");
        Ok(())
    }
}

/// Runs the examples in the documentation, and adds what became of them to `counts`.
///
/// # Errors
///
/// An example failed, or none was found.
pub(crate) fn run_doc_tests(counts: &mut Counts) -> Result<()> {
    let mut command = cargo(["test", "--doc", "--no-fail-fast"])?;
    let mut child = command
        .args(EVERYTHING)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("no pipe to cargo")?;
    let mut found = Counts::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        writeln!(io::stderr(), "{line}")?;
        if let Some(result) = doc_test_result(&line) {
            found += result;
        }
    }
    let status = child.wait()?;
    *counts += found;
    ensure!(status.success(), "{}: {status}", display(&command));
    ensure!(found != Counts::default(), "there is no doc test");
    Ok(())
}

/// Reads `nextest list --message-format oneline`.
fn listed(text: &str) -> Result<BTreeSet<Test>> {
    text.lines()
        .map(|line| {
            let (program, name) = line
                .split_once(' ')
                .with_context(|| format!("not the name of a test: {line:?}"))?;
            Ok((program.to_owned(), name.to_owned()))
        })
        .collect()
}

/// Reads the runner's JUnit report: which tests ran, and whether they passed.
fn outcomes(junit: &str) -> Result<BTreeMap<Test, bool>> {
    let document = roxmltree::Document::parse(junit).context("the report is not XML")?;
    let cases = document
        .descendants()
        .filter(|node| node.has_tag_name("testcase"));
    cases
        .map(|case| {
            let (Some(program), Some(name)) = (case.attribute("classname"), case.attribute("name"))
            else {
                bail!("the report has a test without a name");
            };
            let failed = case
                .children()
                .any(|node| node.has_tag_name("failure") || node.has_tag_name("error"));
            Ok(((program.to_owned(), name.to_owned()), !failed))
        })
        .collect()
}

fn count(known: &BTreeSet<Test>, outcomes: &BTreeMap<Test, bool>) -> Counts {
    let passed = outcomes.values().filter(|passed| **passed).count();
    Counts {
        passed,
        failed: outcomes.len() - passed,
        skipped: known
            .iter()
            .filter(|test| !outcomes.contains_key(*test))
            .count(),
    }
}

/// Reads the line with which a doc test program ends.
fn doc_test_result(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in numbers.split("; ") {
        let Some((number, what)) = part.split_once(' ') else {
            continue;
        };
        let Ok(number) = number.parse::<usize>() else {
            continue;
        };
        match what {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" | "filtered out" => counts.skipped += number,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" skipped="0" failures="1" errors="1">
  <testsuite name="capsa" tests="2">
    <testcase name="a::good" classname="capsa" time="0.009"/>
    <testcase name="a::bad" classname="capsa" time="0.010">
      <failure message="no"/><system-out>&lt;testcase&gt;</system-out>
    </testcase>
  </testsuite>
  <testsuite name="capsa::tests" tests="1">
    <testcase name="vm_lost" classname="capsa::tests" time="60.0"><error type="timeout"/></testcase>
  </testsuite>
</testsuites>"#;

    #[test]
    fn the_report_is_compared_with_the_list() {
        let known = listed("capsa a::good\ncapsa a::bad\ncapsa b::absent\ncapsa::tests vm_lost\n");
        let outcomes = outcomes(REPORT).unwrap();
        assert_eq!(
            count(&known.unwrap(), &outcomes).to_string(),
            "1 passed, 2 failed, 1 skipped"
        );
        assert!(outcomes[&("capsa".to_owned(), "a::good".to_owned())]);
    }

    #[test]
    fn a_suite_falls_into_parts() {
        let tests = |names: &str| listed(names).unwrap();
        let mut suite = Suite {
            profile: "bench",
            choice: Vec::new(),
            store: PathBuf::from("nextest"),
            wanted: tests("p a\np b\np c"),
            known: tests("p a\np b\np c\np ignored"),
        };
        let first = suite.split_off(2, 1);
        let last = suite.split_off(2, 2);
        assert_eq!(first.wanted, tests("p a\np b"));
        assert_eq!(first.known, first.wanted);
        assert_eq!(last.wanted, tests("p c"));
        assert_eq!(last.known, tests("p c\np ignored"));
        assert_eq!(suite.len(), 0);
        let filter = "(binary_id(=p) & test(=a)) | (binary_id(=p) & test(=b))";
        assert_eq!(first.choice, ["--filterset", filter]);
        assert_ne!(first.folder(), last.folder());
    }

    #[test]
    fn what_is_no_list_and_no_report_is_refused() {
        assert!(listed("capsa").is_err());
        assert!(outcomes("").is_err());
        assert!(outcomes("<testcase/>").is_err());
    }

    #[test]
    fn the_result_of_doc_tests_is_read() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; \
                    4 filtered out; finished in 0.10s";
        let expected = Counts {
            passed: 3,
            failed: 1,
            skipped: 6,
        };
        assert_eq!(doc_test_result(line), Some(expected));
        assert_eq!(doc_test_result("test a ... ok"), None);
    }
}
