//! Disks as they are typed: `FILE[,format=raw|qcow2][,ro][,ephemeral][,backing=FILE]`.

use std::path::PathBuf;
use std::str::FromStr;

use capsa::{DiskImage, ImageFormat};
use clap::ValueEnum;
use serde::Deserialize;

use crate::nearest;

/// A disk as it was typed; [`image`](Self::image) is the disk that it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArg {
    path: PathBuf,
    format: Option<DiskFormat>,
    read_only: bool,
    ephemeral: bool,
    backing: Vec<PathBuf>,
}

/// The formats of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DiskFormat {
    Raw,
    Qcow2,
}

impl From<DiskFormat> for ImageFormat {
    fn from(format: DiskFormat) -> Self {
        match format {
            DiskFormat::Raw => Self::Raw,
            DiskFormat::Qcow2 => Self::Qcow2,
        }
    }
}

impl DiskArg {
    /// The disk, in `default` format where neither the option nor the extension is to say it.
    pub(crate) fn image(self, default: Option<DiskFormat>) -> DiskImage {
        let image = image(self.path, self.format.or(default));
        let image = if self.read_only {
            image.read_only()
        } else {
            image
        };
        let image = if self.ephemeral {
            image.ephemeral()
        } else {
            image
        };
        self.backing
            .into_iter()
            .fold(image, DiskImage::allow_backing)
    }
}

/// A disk image in a format, else in the one that its extension says.
pub(crate) fn image(path: PathBuf, format: Option<DiskFormat>) -> DiskImage {
    match format {
        Some(format) => DiskImage::with_format(path, format.into()),
        None => DiskImage::new(path),
    }
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, options) = text.split_once(',').unwrap_or((text, ""));
        if path.is_empty() {
            return Err("a disk begins with its file".to_owned());
        }
        let mut disk = Self {
            path: path.into(),
            format: None,
            read_only: false,
            ephemeral: false,
            backing: Vec::new(),
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                None if option == "ro" => disk.read_only = true,
                None if option == "ephemeral" => disk.ephemeral = true,
                Some(("backing", file)) if !file.is_empty() => disk.backing.push(file.into()),
                Some(("format", name)) => disk.format = Some(DiskFormat::from_str(name, false)?),
                _ => {
                    let names = [
                        "format=raw",
                        "format=qcow2",
                        "ro",
                        "ephemeral",
                        "backing=FILE",
                    ];
                    return Err(nearest::unknown("disk option", option, &names));
                }
            }
        }
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskImage, String> {
        Ok(text.parse::<DiskArg>()?.image(None))
    }

    #[test]
    fn options_follow_the_file() {
        assert_eq!(parse("a.qcow2"), Ok(DiskImage::new("a.qcow2")));
        assert_eq!(
            parse("a,format=qcow2,ro"),
            Ok(DiskImage::with_format("a", ImageFormat::Qcow2).read_only())
        );
        assert_eq!(
            parse("a.qcow2,ephemeral,backing=b.img"),
            Ok(DiskImage::new("a.qcow2").ephemeral().allow_backing("b.img"))
        );
        let disk: DiskArg = "a.qcow2".parse().unwrap();
        assert_eq!(
            disk.image(Some(DiskFormat::Raw)),
            DiskImage::with_format("a.qcow2", ImageFormat::Raw)
        );
    }

    #[test]
    fn what_is_not_an_option_is_refused_with_the_nearest_one() {
        for (text, nearest) in [
            ("a,ephemral", "`ephemeral`"),
            ("a,rw", "`ro`"),
            ("a,backing=", "`backing=FILE`"),
            ("a,format=vmdk", "vmdk"),
            (",ro", "its file"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(nearest), "{text}: {refused}");
        }
    }
}
