//! A policy's file.

use std::path::Path;

use capsa::network::{NetworkPolicy, PolicyProblem};
use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

use crate::toml_file::TomlFile;

/// Where the rules are: behind the data, which says what they are.
#[derive(Deserialize)]
struct Places {
    #[serde(default)]
    rules: Vec<Spanned<IgnoredAny>>,
}

/// Reads a policy. An error is a line for each thing that is wrong, with its place.
pub(crate) fn read(path: &Path) -> Result<NetworkPolicy, String> {
    let file = TomlFile::read(path, "a policy")?;
    let policy: NetworkPolicy = file.parse()?;
    let problems = policy.problems();
    if problems.is_empty() {
        return Ok(policy);
    }
    let places: Places = file.parse()?;
    let told = problems.iter().map(|problem| {
        let place = rule_of(problem, &policy).and_then(|rule| places.rules.get(rule));
        file.at(place.map(Spanned::span), &problem.to_string())
    });
    Err(told.collect::<Vec<_>>().join("\n"))
}

/// Which rule has the problem.
fn rule_of(problem: &PolicyProblem, policy: &NetworkPolicy) -> Option<usize> {
    let mut rules = policy.rules.iter();
    match problem {
        PolicyProblem::Id(rule) => Some(*rule),
        PolicyProblem::DuplicateId(id) => rules.rposition(|rule| rule.id == *id),
        PolicyProblem::PublicSuffix { id, .. } => rules.position(|rule| rule.id == *id),
        _ => None,
    }
}
