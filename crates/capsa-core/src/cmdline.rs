//! The Linux kernel's command line (being written).

use crate::problem::ConfigProblem;

/// A kernel command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelCmdline {}

impl KernelCmdline {
    /// An empty command line.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The line as text.
    pub fn build(&self) -> Result<String, ConfigProblem> {
        Ok(String::new())
    }
}
