//! Disk images.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// A disk image on the host, and how the guest may use it.
///
/// The format is never guessed from the file's content, because a guest that can write to a raw
/// disk can write any header: it comes from the file's extension or from [`with_format`].
/// `build` reads the content only to refuse an image whose content contradicts its extension.
///
/// [`with_format`]: DiskImage::with_format
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskImage {
    /// The file. A relative path is resolved when the VM is built.
    pub path: PathBuf,
    /// How the file is laid out.
    pub format: ImageFormat,
    /// Whether writes of the guest are refused.
    pub read_only: bool,
    /// Whether writes of the guest go to a throw-away overlay.
    pub ephemeral: bool,
    /// Backing and data files that the image may name; see [`DiskImage::allow_backing`].
    pub allowed_backing: Vec<PathBuf>,
    /// Whether the caller named the format, as opposed to the extension.
    format_is_explicit: bool,
}

impl DiskImage {
    /// An image whose format follows from its extension: `.qcow2` is qcow2, everything else raw.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let format = match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("qcow2") => ImageFormat::Qcow2,
            _ => ImageFormat::Raw,
        };
        Self {
            path,
            format,
            read_only: false,
            ephemeral: false,
            allowed_backing: Vec::new(),
            format_is_explicit: false,
        }
    }

    /// An image of the given format, whatever its name and content say.
    pub fn with_format(path: impl Into<PathBuf>, format: ImageFormat) -> Self {
        Self {
            format,
            format_is_explicit: true,
            ..Self::new(path)
        }
    }

    /// Refuses every write of the guest. The image is then locked against writers only, and may
    /// be used by any number of VMs.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Lets the guest write to an overlay that is thrown away with the VM. The image itself is
    /// never changed, is locked against writers only, and may be used by any number of VMs.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        self.ephemeral = true;
        self
    }

    /// Allows a qcow2 image to name `path` as its backing or data file. Without this, an image
    /// that names another file is refused: whoever made it could otherwise have the VM read any
    /// file that the caller can read. Every level of a chain is allowed by its own call.
    #[must_use]
    pub fn allow_backing(mut self, path: impl Into<PathBuf>) -> Self {
        self.allowed_backing.push(path.into());
        self
    }

    /// Whether the caller named the format itself.
    #[doc(hidden)]
    #[must_use]
    pub fn format_is_explicit(&self) -> bool {
        self.format_is_explicit
    }

    /// Whether a VM with this disk may change the image.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.read_only && !self.ephemeral
    }
}

impl<P: AsRef<Path>> From<P> for DiskImage {
    fn from(path: P) -> Self {
        Self::new(path.as_ref())
    }
}

/// How a disk image file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImageFormat {
    /// The disk's bytes, nothing else.
    #[default]
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl ImageFormat {
    /// The name that `qemu-img` and the TOML file use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A disk as a backend gets it: absolute paths, and the whole chain of files with their formats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedDisk {
    /// The image and, behind it, every file it is backed by, nearest first.
    pub chain: Vec<ImageFile>,
    /// An external data file that the image names, raw.
    pub data_file: Option<PathBuf>,
    /// Whether writes of the guest are refused.
    pub read_only: bool,
    /// Whether writes of the guest go to a throw-away overlay.
    pub ephemeral: bool,
}

impl ResolvedDisk {
    /// The image that the caller named.
    #[must_use]
    pub fn image(&self) -> &ImageFile {
        &self.chain[0]
    }

    /// Whether a VM with this disk may change the image.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.read_only && !self.ephemeral
    }
}

/// One file of a disk's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Layout.
    pub format: ImageFormat,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_follows_from_the_extension_only() {
        for (name, format) in [
            ("a.qcow2", ImageFormat::Qcow2),
            ("a.QCOW2", ImageFormat::Qcow2),
            ("a.raw", ImageFormat::Raw),
            ("a.img", ImageFormat::Raw),
            ("a", ImageFormat::Raw),
            ("qcow2", ImageFormat::Raw),
            ("a.qcow2.img", ImageFormat::Raw),
        ] {
            assert_eq!(DiskImage::new(name).format, format, "{name}");
        }
    }
}
