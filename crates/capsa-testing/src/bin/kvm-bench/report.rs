//! The file that measurements are kept in.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result};
use capsa_testing::tables::Tables;
use serde_json::{Value, json};

/// Every measurement so far, as a file.
///
/// It is written after each round and read at the start: whoever measures in a guest that may die
/// goes on in the next one.
pub(crate) struct Report {
    file: PathBuf,
    parts: Value,
}

impl Report {
    /// What `file` has; nothing, when there is none.
    pub(crate) fn open(file: PathBuf) -> Result<Self> {
        let parts = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).context("read what was measured before")?,
            Err(error) if error.kind() == ErrorKind::NotFound => json!({}),
            Err(error) => return Err(error).context("read what was measured before"),
        };
        Ok(Self { file, parts })
    }

    /// Puts the rounds that were measured of `part` before into its empty `tables`.
    pub(crate) fn restore(&self, part: &str, tables: &mut Tables) -> Result<()> {
        match self.parts.get(part) {
            Some(before) => tables.restore(before),
            None => Ok(()),
        }
    }

    /// Keeps what is known of `part` by now.
    pub(crate) fn keep(&mut self, part: &str, tables: &Tables) -> Result<()> {
        self.parts[part] = tables.json();
        // Whole or not at all: the machine may die in the middle.
        let unfinished = self.file.with_extension("unfinished");
        fs::write(&unfinished, format!("{:#}\n", self.parts))
            .and_then(|()| fs::rename(&unfinished, &self.file))
            .with_context(|| format!("cannot write {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_goes_on_where_it_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("report.json");
        let names = ["capsa".to_owned(), "other".to_owned()];
        let empty = || Tables::new(["ms", "KiB"], &names);

        let mut tables = empty();
        tables.add(&[[1.5, 10.0], [2.0, 20.0]]);
        let mut report = Report::open(file.clone()).expect("a new report");
        report.restore("start", &mut tables).expect("nothing yet");
        report.keep("start", &tables).expect("written");

        let report = Report::open(file).expect("the report");
        let mut restored = empty();
        report.restore("start", &mut restored).expect("the same");
        assert_eq!(restored.rounds(), 1);
        assert_eq!(restored.json(), tables.json());
        let mut other = Tables::new(["ms", "KiB"], &names[..1]);
        report
            .restore("start", &mut other)
            .expect_err("other peers");
    }
}
