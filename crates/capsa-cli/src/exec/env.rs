//! The command's variables: as they are typed, and from files.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::exit::Failure;

/// A variable, as it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnvArg {
    /// The caller's own value.
    Inherited(String),
    /// This value.
    Set(String, String),
}

impl EnvArg {
    /// Reads `NAME` or `NAME=VALUE`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("a variable is written NAME or NAME=VALUE".into());
        }
        Ok(match value {
            Some(value) => Self::Set(name.into(), value.into()),
            None => Self::Inherited(name.into()),
        })
    }

    /// The variable and its value.
    fn resolve(self) -> Result<(OsString, OsString), String> {
        match self {
            Self::Set(name, value) => Ok((name.into(), value.into())),
            Self::Inherited(name) => match std::env::var_os(&name) {
                Some(value) => Ok((name.into(), value)),
                None => Err(format!(
                    "{name}: there is no such variable here; write {name}=VALUE"
                )),
            },
        }
    }
}

/// All variables: those of the files, in their order, and then those that were typed.
pub(super) fn all(
    files: &[PathBuf],
    typed: Vec<EnvArg>,
) -> Result<Vec<(OsString, OsString)>, Failure> {
    let mut all = Vec::new();
    for file in files {
        let read = fs::read(file).map_err(|error| format!("{}: {error}", file.display()));
        let variables = read.and_then(|bytes| parse_file(file, &bytes));
        all.extend(variables.map_err(|message| Failure::Usage(format!("--env-file {message}")))?);
    }
    for variable in typed {
        let resolved = variable.resolve();
        all.push(resolved.map_err(|message| Failure::Usage(format!("--env {message}")))?);
    }
    Ok(all)
}

/// Reads a file as Docker's `--env-file` does: a variable per line, as `NAME=VALUE` or `NAME`, whose
/// value is everything up to the end of the line. Empty lines and those that begin with `#` do not
/// count, nor does white space before a name. There are no quotes.
fn parse_file(file: &Path, bytes: &[u8]) -> Result<Vec<(OsString, OsString)>, String> {
    // Editors of other systems begin a file so.
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut variables = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let at = |message: String| format!("{}:{}: {message}", file.display(), index + 1);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = str::from_utf8(line).map_err(|_| at("this is not UTF-8".into()))?;
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or(line);
        if name.contains(char::is_whitespace) {
            return Err(at(format!("the name {name:?} contains white space")));
        }
        if line.contains('\0') {
            return Err(at("no variable has a NUL in it".into()));
        }
        let variable = EnvArg::parse(line).and_then(EnvArg::resolve);
        variables.push(variable.map_err(at)?);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_a_name_and_perhaps_a_value() {
        let set = |name: &str, value: &str| Ok(EnvArg::Set(name.into(), value.into()));
        assert_eq!(EnvArg::parse("A=b=c"), set("A", "b=c"));
        assert_eq!(EnvArg::parse("A="), set("A", ""));
        assert_eq!(EnvArg::parse("A"), Ok(EnvArg::Inherited("A".into())));
        EnvArg::parse("=b").expect_err("no name");
    }

    #[test]
    fn a_file_has_a_variable_per_line() {
        let read = |bytes: &[u8]| {
            let variables = parse_file(Path::new("f"), bytes)?;
            let text = |text: OsString| text.into_string().unwrap();
            let pairs = variables.into_iter().map(|(k, v)| (text(k), text(v)));
            Ok::<_, String>(pairs.collect::<Vec<_>>())
        };
        let pairs = |pairs: &[(&str, &str)]| {
            let owned = |(k, v): &(&str, &str)| (k.to_string(), v.to_string());
            Ok(pairs.iter().map(owned).collect::<Vec<_>>())
        };
        let file = "\u{feff}# comment\r\n\r\n  A=b c \nB=\"q\"#x\n\t# more\nC=\nD=e=f";
        let expected = pairs(&[("A", "b c "), ("B", "\"q\"#x"), ("C", ""), ("D", "e=f")]);
        assert_eq!(read(file.as_bytes()), expected);
        let path = std::env::var("PATH").unwrap();
        assert_eq!(read(b"PATH"), pairs(&[("PATH", &path)]));
        assert_eq!(read(b""), pairs(&[]));
        for (bytes, place) in [
            (&b"A=b\n=c\n"[..], "f:2: a variable"),
            (b"A B=c", "f:1: the name"),
            (b"A =c", "f:1: the name"),
            (b"\nA=\xff", "f:2: this is not UTF-8"),
            (b"A=\0", "f:1: no variable"),
            (b"NOSUCHVARIABLE", "f:1: NOSUCHVARIABLE: there is no such"),
        ] {
            let refused = read(bytes).unwrap_err();
            assert!(refused.starts_with(place), "{refused}");
        }
    }
}
