//! What the rounds come to, as a table.

use std::fmt::Write;

use crate::measure::Value;
use crate::network::Network;

/// What was measured, in the order of the first round.
pub(crate) struct Report {
    networks: Vec<Network>,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    quantity: &'static str,
    /// Of each network, from each round.
    values: Vec<Vec<f64>>,
}

impl Report {
    pub(crate) fn new(networks: &[Network]) -> Self {
        Self {
            networks: networks.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds what was measured of the network at `place`.
    pub(crate) fn add(&mut self, name: &'static str, place: usize, values: Vec<Value>) {
        for (quantity, value) in values {
            let known = self
                .rows
                .iter()
                .position(|row| (row.name, row.quantity) == (name, quantity));
            let index = known.unwrap_or_else(|| {
                self.rows.push(Row {
                    name,
                    quantity,
                    values: vec![Vec::new(); self.networks.len()],
                });
                self.rows.len() - 1
            });
            self.rows[index].values[place].push(value);
        }
    }

    /// Medians of every network, and the ratios of the first to the others.
    pub(crate) fn table(&self, mtu: u16, rounds: usize) -> String {
        let mut table = format!("{:44}", format!("MTU {mtu}, medians of {rounds}"));
        // Writing to a string cannot fail.
        for network in &self.networks {
            let _ = write!(table, "{:>10}", network.name());
        }
        for network in &self.networks[1..] {
            let _ = write!(table, "{:>10}", format!("/{}", network.name()));
        }
        for row in &self.rows {
            let _ = write!(table, "\n{:44}", format!("{}, {}", row.name, row.quantity));
            let (own, others) = (&row.values[0], &row.values[1..]);
            for values in &row.values {
                let _ = write!(table, "{}", cell(median(values.clone())));
            }
            for other in others {
                let pairs = own.iter().zip(other);
                let ratio = median(pairs.map(|(own, other)| own / other).collect());
                let _ = write!(table, "{}", cell(ratio));
            }
        }
        table
    }
}

fn cell(value: f64) -> String {
    match value {
        _ if value.is_nan() => format!("{:>10}", "-"),
        100.0.. => format!("{value:10.0}"),
        _ => format!("{value:10.2}"),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
