//! Progress for people who wait at a terminal. On a pipe there is none.

use std::time::Duration;

use capsa::kit::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// A line that moves as long as nothing is known about the end. Dropping it clears it.
pub(crate) struct Spinner(ProgressBar);

impl Spinner {
    /// Shows what is being done.
    pub(crate) fn new(doing: &'static str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(doing);
        bar.enable_steady_tick(TICK);
        Self(bar)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The steps of a longer task: a bar where the end is known, else a spinner. Dropping it clears it.
pub(crate) struct Steps {
    bar: ProgressBar,
    step: &'static str,
}

impl Steps {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(TICK);
        Self { bar, step: "" }
    }

    /// Shows how far the task is.
    pub(crate) fn show(&mut self, progress: Progress) {
        if self.step != progress.step {
            self.step = progress.step;
            self.bar.set_message(progress.step);
            self.bar.set_style(ProgressStyle::default_spinner());
        }
        if progress.total > 0 {
            self.bar.set_length(progress.total);
            self.bar.set_style(bytes());
        }
        self.bar.set_position(progress.done);
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn bytes() -> ProgressStyle {
    // The template is a constant; one that does not parse would show in the first test run.
    ProgressStyle::with_template("{spinner} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
