//! Measurements in pairs, and what they come to.

use std::fmt::Write;

use serde_json::{Value, json};

/// One quantity, measured in pairs.
pub(crate) struct Paired {
    /// What it is, with its unit.
    pub(crate) name: &'static str,
    /// Through Capsa, and by hand.
    pub(crate) pairs: Vec<(f64, f64)>,
}

/// Quantities that were measured together.
pub(crate) struct Comparison(pub(crate) Vec<Paired>);

impl Comparison {
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "\n{:32}{:>10}{:>10}{:>10}\n",
            "median", "capsa", "by hand", "ratio"
        );
        for paired in &self.0 {
            let (capsa, by_hand) = paired.medians();
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:32}{capsa:10.2}{by_hand:10.2}{:10.3}",
                paired.name,
                capsa / by_hand
            );
        }
        table
    }

    pub(crate) fn json(&self) -> Value {
        let entries = self.0.iter().map(|paired| {
            let (capsa, by_hand) = paired.medians();
            json!({
                "name": paired.name,
                "capsa": capsa,
                "by_hand": by_hand,
                "ratio": capsa / by_hand,
                "pairs": paired.pairs,
            })
        });
        entries.collect()
    }
}

impl Paired {
    fn medians(&self) -> (f64, f64) {
        let side = |take: fn(&(f64, f64)) -> f64| median(self.pairs.iter().map(take).collect());
        (side(|pair| pair.0), side(|pair| pair.1))
    }
}

/// Quantities of one thing, measured several times.
pub(crate) struct Values(Vec<(&'static str, Vec<f64>)>);

impl Values {
    pub(crate) fn new<const N: usize>(titles: [&'static str; N]) -> Self {
        Self(titles.map(|title| (title, Vec::new())).into())
    }

    /// Adds a value for each title.
    pub(crate) fn add<const N: usize>(&mut self, values: [f64; N]) {
        for ((_, all), value) in self.0.iter_mut().zip(values) {
            all.push(value);
        }
    }

    pub(crate) fn table(&self) -> String {
        let mut table = format!("\n{:32}{:>10}\n", "median", "capsa");
        for (title, values) in &self.0 {
            // Writing to a string cannot fail.
            let _ = writeln!(table, "{title:32}{:10.2}", median(values.clone()));
        }
        table
    }

    pub(crate) fn json(&self) -> Value {
        let entry = |(title, values): &(&str, Vec<f64>)| json!({ "name": title, "median": median(values.clone()), "values": values });
        self.0.iter().map(entry).collect()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (None, _) => f64::NAN,
        (Some(&upper), 1) => upper,
        (Some(&upper), _) => (values[middle - 1] + upper) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
