//! `capsa doctor`.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use capsa::{Finding, Report};

use crate::exit::{Done, Exit};
use crate::stdout;

/// Shows what this machine has of what Capsa needs.
pub(crate) fn doctor(json: bool) -> Done {
    let report = capsa::doctor();
    match json {
        true => stdout::json(&report)?,
        false => stdout::text(&table(&report))?,
    };
    Ok(match report.can_run() {
        true => Exit::SUCCESS,
        false => Exit::ENVIRONMENT,
    })
}

fn table(report: &Report) -> String {
    let requirements = &report.requirements;
    let width = requirements.iter().map(|r| r.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for requirement in requirements {
        let style = style(requirement.finding);
        let (name, finding, detail) = (requirement.name, requirement.finding, &requirement.detail);
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:width$}  {style}{finding:7}{style:#}  {detail}");
        if let Some(mend) = &requirement.mend {
            let _ = writeln!(text, "{:width$}  {:7}  mend: {mend}", "", "");
        }
    }
    let _ = match &report.chosen {
        Some(backend) => writeln!(text, "\nVMs run on {backend}"),
        None => writeln!(text, "\nNo VM can run on this machine."),
    };
    text
}

fn style(finding: Finding) -> Style {
    match finding {
        Finding::Found => AnsiColor::Green,
        Finding::Limited => AnsiColor::Yellow,
        _ => AnsiColor::Red,
    }
    .on_default()
}
