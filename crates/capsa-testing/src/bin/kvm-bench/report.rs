//! Medians, ratios, tables, and the file that they are kept in.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
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
        let Some(before) = self.parts.get(part) else {
            return Ok(());
        };
        for table in &mut tables.0 {
            let rows = before[&table.title].as_array();
            let rows = rows.context("the report is of another benchmark")?;
            ensure!(rows.len() == table.rows.len(), "the report has other peers");
            for (row, before) in table.rows.iter_mut().zip(rows) {
                ensure!(before["name"] == row.name, "the report has other peers");
                let values = before["values"].as_array().into_iter().flatten();
                row.values = values.filter_map(Value::as_f64).collect();
            }
        }
        Ok(())
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

/// One quantity of several contestants, the first of which is Capsa's.
pub(crate) struct Table {
    title: String,
    rows: Vec<Row>,
}

/// The quantity of one contestant.
struct Row {
    name: String,
    /// A value per round.
    values: Vec<f64>,
}

/// Quantities that were measured together.
pub(crate) struct Tables(Vec<Table>);

impl Tables {
    /// Empty tables with these titles, each with a row per name.
    pub(crate) fn new<T: Into<String>>(
        titles: impl IntoIterator<Item = T>,
        names: &[String],
    ) -> Self {
        let titles = titles.into_iter();
        Self(titles.map(|title| Table::new(title, names)).collect())
    }

    /// How many rounds were measured.
    pub(crate) fn rounds(&self) -> usize {
        let rows = self.0.iter().flat_map(|table| &table.rows);
        rows.map(|row| row.values.len()).min().unwrap_or(0)
    }

    /// Adds a round: per contestant, in the order of the names, a value for each table.
    pub(crate) fn add<const TABLES: usize>(&mut self, round: &[[f64; TABLES]]) {
        for (index, values) in round.iter().enumerate() {
            for (table, value) in self.0.iter_mut().zip(values) {
                table.rows[index].values.push(*value);
            }
        }
    }

    pub(crate) fn text(&self) -> String {
        self.0.iter().map(Table::text).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let table = |table: &Table| (table.title.clone(), table.json());
        Value::Object(self.0.iter().map(table).collect())
    }
}

impl Table {
    fn new(title: impl Into<String>, names: &[String]) -> Self {
        let row = |name: &String| Row {
            name: name.clone(),
            values: Vec::new(),
        };
        Self {
            title: title.into(),
            rows: names.iter().map(row).collect(),
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "\n{:32}{:>10}{:>10}{:>10}{:>14}\n",
            self.title, "median", "least", "most", "capsa / this"
        );
        for row in &self.rows {
            let least = row.values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = row.values.iter().copied().fold(0.0, f64::max);
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "  {:30}{:10.1}{least:10.1}{most:10.1}{:14.3}",
                row.name,
                median(&row.values),
                self.ratio(row),
            );
        }
        text
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "name": row.name,
                "median": median(&row.values),
                "capsa_to_this": self.ratio(row),
                "values": row.values,
            })
        };
        self.rows.iter().map(row).collect()
    }

    /// The median of how much Capsa's value is of this row's, round by round.
    fn ratio(&self, row: &Row) -> f64 {
        let capsa = self.rows.first().map_or(&[][..], |first| &first.values);
        let pairs = capsa.iter().zip(&row.values);
        median(&pairs.map(|(capsa, this)| capsa / this).collect::<Vec<_>>())
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_owned();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (None, _) => f64::NAN,
        (Some(&upper), 1) => upper,
        (Some(&upper), _) => f64::midpoint(values[middle - 1], upper),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_ratio_is_taken_within_its_round() {
        let mut table = Table::new("ms", &["capsa".to_owned(), "other".to_owned()]);
        table.rows[0].values = vec![1.0, 10.0, 100.0];
        table.rows[1].values = vec![2.0, 20.0, 400.0];
        assert_eq!(table.ratio(&table.rows[1]), 0.5);
        assert_eq!(table.ratio(&table.rows[0]), 1.0);
    }

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
