//! What can be wrong with a configuration. `build` reports all of it at once.

use std::borrow::Cow;
use std::fmt;

use crate::escape::one_line;

/// Characters of a message that are shown: file names are in it, which may be anything.
const MAX_SHOWN: usize = 1000;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigProblem {
    /// What it is about: `kernel`, `disk`, `memory_mb`, ...
    pub field: Cow<'static, str>,
    /// What is wrong, naming the file or the value.
    pub message: String,
    /// What to do about it.
    pub hint: Option<Cow<'static, str>>,
    /// What sort of problem it is.
    pub kind: ProblemKind,
}

/// The sort of a [`ConfigProblem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProblemKind {
    /// A value that can never work.
    Value,
    /// Something that must be given was not.
    Missing,
    /// The chosen backend cannot do it.
    Unsupported,
    /// A file on the host is missing, unreadable, truncated, busy or of the wrong format.
    File,
}

impl ConfigProblem {
    /// A problem of the given sort.
    pub fn new(
        kind: ProblemKind,
        field: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
            hint: None,
            kind,
        }
    }

    /// A value that can never work.
    pub fn value(field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(ProblemKind::Value, field, message)
    }

    /// Something that the chosen backend cannot do.
    pub fn unsupported(field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(ProblemKind::Unsupported, field, message)
    }

    /// A file that cannot be used.
    pub fn file(field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(ProblemKind::File, field, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, one_line(&self.message, MAX_SHOWN))
    }
}
