//! Files in TOML, and everything that is wrong with one, each with its place.
//!
//! serde stops at the first error. What an error is about is therefore cut out of the document, and the rest
//! read again, until nothing is wrong with it: so that the definition of the data is the only one there is.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use crate::nearest;

/// Most bytes of a file: far more than anybody writes, and bounded for who names a disk image or a
/// device by mistake.
const MAX_BYTES: u64 = 1 << 20;

/// How many errors are told at once.
const MAX_ERRORS: usize = 20;

/// A file that is there, and is text.
pub(crate) struct TomlFile {
    name: String,
    text: String,
}

impl TomlFile {
    /// Reads the file, which is to be `what`: "a configuration".
    pub(crate) fn read(path: &Path, what: &str) -> Result<Self, String> {
        let name = path.display().to_string();
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
            .map_err(|error| format!("cannot read {name}: {error}"))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(format!(
                "{name} is not {what}: it has over {MAX_BYTES} bytes"
            ));
        }
        Ok(Self { name, text })
    }

    /// What the file says. An error is a line for each thing that is wrong with it.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, String> {
        let mut document = DeTable::parse(&self.text)
            .map_err(|error| self.at(error.span(), &explain(error.message())))?;
        let whole = document.span();
        let mut errors = Vec::new();
        // Where something was cut out. That it is missing then is no error of the file.
        let mut cut_from = Vec::new();
        while errors.len() < MAX_ERRORS {
            let error = match T::deserialize(Deserializer::from(document.clone())) {
                Ok(data) if errors.is_empty() => return Ok(data),
                Ok(_) => break,
                Err(error) => error,
            };
            let span = error.span();
            if !span.as_ref().is_some_and(|span| cut_from.contains(span)) {
                errors.push(self.at(span.clone(), &explain(error.message())));
            }
            match span.and_then(|span| cut_of_table(document.get_mut(), &whole, &span)) {
                Some(container) => cut_from.push(container),
                None => break,
            }
        }
        Err(errors.join("\n"))
    }

    /// A message about a place in the file, which begins with that.
    pub(crate) fn at(&self, span: Option<Range<usize>>, message: &str) -> String {
        let name = &self.name;
        let before = span.and_then(|span| self.text.get(..span.start));
        let Some(before) = before else {
            return format!("{name}: {message}");
        };
        let line = 1 + before.matches('\n').count();
        let column = 1 + before.chars().rev().take_while(|c| *c != '\n').count();
        format!("{name}:{line}:{column}: {message}")
    }
}

/// Cuts what `span` is about out of a table that is at `own`. Returns where it was.
fn cut_of_table(
    table: &mut DeTable<'_>,
    own: &Range<usize>,
    span: &Range<usize>,
) -> Option<Range<usize>> {
    // The innermost comes first. A table's own place is that of its head, so all have to be looked at.
    for (_, value) in table.iter_mut() {
        if let Some(container) = cut_of_value(value, span) {
            return Some(container);
        }
    }
    let about = |(key, value): &(&Spanned<_>, &Spanned<_>)| {
        holds(&key.span(), span) || holds(&value.span(), span)
    };
    let (key, _) = table.iter().find(about)?;
    let key = key.clone();
    table.remove(&key);
    Some(own.clone())
}

fn cut_of_value(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<Range<usize>> {
    let own = value.span();
    match value.get_mut() {
        DeValue::Table(table) => cut_of_table(table, &own, span),
        DeValue::Array(array) => {
            for item in array.iter_mut() {
                if let Some(container) = cut_of_value(item, span) {
                    return Some(container);
                }
            }
            let kept: DeArray<'_> = array
                .iter()
                .filter(|item| !holds(&item.span(), span))
                .cloned()
                .collect();
            let cut = kept.len() < array.len();
            *array = kept;
            cut.then_some(own)
        }
        _ => None,
    }
}

fn holds(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// What serde says, with the nearest name. It says ``unknown field `a`, expected one of `b`, `c` ``
/// (serde::de::Error::unknown_field and unknown_variant), so every second part is a name.
fn explain(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let says = |start| message.starts_with(start);
    match names.as_slice() {
        [found, valid @ ..] if says("unknown field") => nearest::unknown("key", found, valid),
        [found, valid @ ..] if says("unknown variant") => nearest::unknown("value", found, valid),
        [missing] if says("missing field") => format!("the key `{missing}` is missing"),
        _ => message.to_owned(),
    }
}
