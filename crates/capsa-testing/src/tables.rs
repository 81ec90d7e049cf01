//! What rounds of a benchmark come to: medians, and ratios that are taken within a round.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// One quantity.
#[derive(Debug)]
struct Table {
    title: String,
    rows: Vec<Row>,
}

/// The quantity of one contestant.
#[derive(Debug)]
struct Row {
    name: String,
    /// A value per round.
    values: Vec<f64>,
}

/// Quantities that were measured together, each of several contestants, the first of which is Capsa's.
#[derive(Debug)]
pub struct Tables(Vec<Table>);

impl Tables {
    /// Empty tables with these titles, each with a row per name.
    pub fn new<T: Into<String>>(titles: impl IntoIterator<Item = T>, names: &[String]) -> Self {
        let titles = titles.into_iter();
        Self(titles.map(|title| Table::new(title, names)).collect())
    }

    /// Puts the rounds of [`Tables::json`] into empty tables.
    ///
    /// # Errors
    ///
    /// They have other titles or rows.
    pub fn restore(&mut self, before: &Value) -> Result<()> {
        for table in &mut self.0 {
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

    /// How many rounds were measured.
    #[must_use]
    pub fn rounds(&self) -> usize {
        let rows = self.0.iter().flat_map(|table| &table.rows);
        rows.map(|row| row.values.len()).min().unwrap_or(0)
    }

    /// Adds a round: per contestant, in the order of the names, a value for each table.
    pub fn add<const TABLES: usize>(&mut self, round: &[[f64; TABLES]]) {
        for (index, values) in round.iter().enumerate() {
            for (table, value) in self.0.iter_mut().zip(values) {
                table.rows[index].values.push(*value);
            }
        }
    }

    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.iter().map(Table::text).collect()
    }

    /// Every value, for a program.
    #[must_use]
    pub fn json(&self) -> Value {
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
}
