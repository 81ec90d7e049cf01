//! The Linux kernel's command line.
//!
//! A line is put together from layers (a backend's defaults, the root device, the user's own), so
//! there must be one rule for what happens when two of them set the same parameter, and one place
//! that knows how the kernel splits the line again. The kernel reads from left to right
//! (`parse_args` in its kernel/params.c), so a parameter that is given again is taken out at its
//! old place and put at the end: the line then means what the layers mean one after the other,
//! without what has no effect any more.
//!
//! How long a line may be is a property of the kernel image, so it is not checked here.

mod arg;

pub use arg::{CmdlineArg, CmdlineError};

use arg::{Repeat, quoted_word, same_key, split};

/// What separates the kernel's own arguments from those of the guest's init.
const INIT_SEPARATOR: &str = "--";

/// A kernel command line in the making.
///
/// The last value of a parameter wins; `-` and `_` are the same in its name, as they are for the
/// kernel. A parameter that Linux accepts repeatedly (`console`, `earlycon`,
/// `systemd.mount-extra`, ...) keeps every distinct value, the one given last at the end. What
/// follows `--` belongs to the guest's init and stays last, word by word as it was given.
///
/// ```
/// # use capsa_core::cmdline::KernelCmdline;
/// let defaults = KernelCmdline::new().console("ttyS0").arg("panic=-1");
/// let user = KernelCmdline::new().arg("panic=5").arg("quiet").console("tty0");
/// let line = defaults.root("/dev/vda").merge(user).build()?;
/// assert_eq!(line, "console=ttyS0 root=/dev/vda panic=5 quiet console=tty0");
/// # Ok::<(), capsa_core::cmdline::CmdlineError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelCmdline {
    /// The kernel's arguments, in order, without those that a later one replaced.
    args: Vec<CmdlineArg>,
    /// The words after `--`; `None` as long as there was no `--`.
    init: Option<Vec<String>>,
    /// A whole line that stands in for everything else.
    line: Option<Box<Override>>,
}

/// A line that the caller wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Override {
    /// The line, to the letter.
    text: String,
    /// What the kernel finds in it, or why it cannot be used.
    read: Result<KernelCmdline, CmdlineError>,
}

impl KernelCmdline {
    /// An empty command line.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Splits a whole line as the kernel does: at white space, except between double quotes,
    /// which are not part of a value.
    ///
    /// A non-ASCII character is never split, although the kernel takes its byte 0xA0 for a space:
    /// [`build`](Self::build) quotes it, so that the kernel gets the value that was meant.
    ///
    /// # Errors
    ///
    /// [`CmdlineError::UnbalancedQuote`]. What is wrong with single arguments is told by `build`.
    pub fn parse_line(line: &str) -> Result<Self, CmdlineError> {
        Ok(Self::new().args(split(line)?))
    }

    /// Adds an argument. The flag `--` makes itself and all later calls add to the arguments of
    /// the guest's init.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<CmdlineArg>) -> Self {
        let arg = arg.into();
        match &mut self.init {
            Some(words) => words.push(arg.into_word()),
            None if arg == CmdlineArg::flag(INIT_SEPARATOR) => self.init = Some(Vec::new()),
            None => self.put(arg),
        }
        self
    }

    /// Adds arguments one after the other, see [`arg`](Self::arg).
    #[must_use]
    pub fn args<A: Into<CmdlineArg>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets the root file system: `/dev/vda`, `LABEL=..`, `UUID=..`, `PARTUUID=..`.
    #[must_use]
    pub fn root(mut self, device: impl Into<String>) -> Self {
        self.put(CmdlineArg::kv("root", device));
        self
    }

    /// Adds a console such as `ttyS0`. The one added last becomes the guest's /dev/console.
    #[must_use]
    pub fn console(mut self, device: impl Into<String>) -> Self {
        self.put(CmdlineArg::kv("console", device));
        self
    }

    /// Replaces everything by a line that is used to the letter, whatever was or will be added or
    /// merged; only a later override replaces it.
    #[must_use]
    pub fn override_with(mut self, line: impl Into<String>) -> Self {
        let text = line.into();
        let read = Self::parse_line(&text);
        self.line = Some(Box::new(Override { text, read }));
        self
    }

    /// Whether [`override_with`](Self::override_with) was called.
    #[must_use]
    pub fn is_overridden(&self) -> bool {
        self.line.is_some()
    }

    /// Whether the line that [`build`](Self::build) writes has this parameter.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// The value that this parameter has in the line that [`build`](Self::build) writes: the last
    /// one where there are several, `None` where it has none.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        match self.find(key)? {
            CmdlineArg::KeyValue { value, .. } => Some(value),
            CmdlineArg::Flag(_) => None,
        }
    }

    /// Takes out every argument of this name. An override is left as it was written.
    #[must_use]
    pub fn remove(mut self, key: &str) -> Self {
        self.args.retain(|arg| !same_key(arg.key(), key));
        self
    }

    /// This line, then `later` on top of it: the arguments of `later` win, its words for init
    /// come after those of this line, and its override, if it has one, replaces all.
    #[must_use]
    pub fn merge(mut self, later: Self) -> Self {
        for arg in later.args {
            self.put(arg);
        }
        if let Some(words) = later.init {
            self.init.get_or_insert_default().extend(words);
        }
        self.line = later.line.or(self.line);
        self
    }

    /// The line as text, quoted so that the kernel reads back the same arguments.
    ///
    /// # Errors
    ///
    /// The first of [`problems`](Self::problems).
    pub fn build(&self) -> Result<String, CmdlineError> {
        if let Some(problem) = self.problems().into_iter().next() {
            return Err(problem);
        }
        if let Some(line) = &self.line {
            return Ok(line.text.clone());
        }
        let mut words: Vec<String> = self.args.iter().map(CmdlineArg::quoted).collect();
        if let Some(init) = &self.init {
            words.push(INIT_SEPARATOR.to_owned());
            words.extend(init.iter().map(|word| quoted_word(word)));
        }
        Ok(words.join(" "))
    }

    /// Everything that keeps the kernel from reading the line as it was meant.
    #[must_use]
    pub fn problems(&self) -> Vec<CmdlineError> {
        match self.line.as_deref() {
            None => {
                let args = self.args.iter().map(CmdlineArg::check);
                let init = self.init.iter().flatten().map(|word| check_init(word));
                args.chain(init).filter_map(Result::err).collect()
            }
            // Between arguments a line break is only white space, but this text is not rewritten.
            Some(Override { text, .. }) if text.contains('\n') => {
                vec![CmdlineError::Forbidden {
                    argument: text.clone(),
                    what: "a line break",
                }]
            }
            Some(Override { read, .. }) => match read {
                Ok(read) => read.problems(),
                Err(problem) => vec![problem.clone()],
            },
        }
    }

    /// Adds one of the kernel's arguments in place of those that it replaces.
    fn put(&mut self, arg: CmdlineArg) {
        match Repeat::of(arg.key()) {
            Repeat::LastWins => self.args.retain(|old| !same_key(old.key(), arg.key())),
            Repeat::Distinct => self
                .args
                .retain(|old| !(same_key(old.key(), arg.key()) && old.value() == arg.value())),
            Repeat::Each => {}
        }
        self.args.push(arg);
    }

    /// The last argument of this name that the kernel would see.
    fn find(&self, key: &str) -> Option<&CmdlineArg> {
        match self.line.as_deref() {
            None => self.args.iter().rev().find(|arg| same_key(arg.key(), key)),
            Some(line) => line.read.as_ref().ok()?.find(key),
        }
    }
}

/// Whether init gets this word: the kernel stops reading at a second `--`.
fn check_init(word: &str) -> Result<(), CmdlineError> {
    match word {
        INIT_SEPARATOR => Err(CmdlineError::SecondSeparator),
        _ => arg::check_text(word),
    }
}

#[cfg(test)]
mod tests;
