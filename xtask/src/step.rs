//! The steps of a long command: each is announced, timed, and named when it fails.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The steps that were run.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<Step>,
}

struct Step {
    name: &'static str,
    time: Duration,
    failed: bool,
}

impl Steps {
    /// Runs a step that the following ones need.
    pub(crate) fn need<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = work();
        self.done.push(Step {
            name,
            time: start.elapsed(),
            failed: result.is_err(),
        });
        result.map_err(|error| error.context(name))
    }

    /// Runs a step that is one of many checks: when it fails, the others are still run.
    pub(crate) fn check<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        match self.need(name, work) {
            Ok(value) => Some(value),
            Err(error) => {
                eprintln!("error: {error:#}");
                None
            }
        }
    }

    /// Prints the times.
    ///
    /// # Errors
    ///
    /// At least one step failed.
    pub(crate) fn finish(self) -> Result<()> {
        eprintln!();
        for Step { name, time, failed } in &self.done {
            let mark = if *failed { "  FAILED" } else { "" };
            eprintln!("{:8.1} s  {name}{mark}", time.as_secs_f64());
        }
        let failed: Vec<_> = self.done.iter().filter(|step| step.failed).collect();
        if failed.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = failed.iter().map(|step| step.name).collect();
        bail!("failed: {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_is_named_and_does_not_stop_the_others() {
        let mut steps = Steps::default();
        assert_eq!(steps.check("first", || Ok(1)), Some(1));
        assert_eq!(steps.check("second", || bail!("no") as Result<()>), None);
        assert_eq!(steps.check("third", || Ok(3)), Some(3));
        assert_eq!(steps.finish().unwrap_err().to_string(), "failed: second");
    }

    #[test]
    fn a_needed_step_says_what_failed_in_it() {
        let mut steps = Steps::default();
        let error = steps.need("step", || bail!("reason") as Result<()>);
        assert_eq!(format!("{:#}", error.unwrap_err()), "step: reason");
        assert!(steps.finish().is_err());
    }
}
