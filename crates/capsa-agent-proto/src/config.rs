//! What a guest must know before there is a channel: the file `/capsa/config` of its initramfs.
//!
//! It begins with [`MAGIC`] and the format's number (two bytes, little endian), so that a guest that
//! is older than the host can say so; the rest is postcard. It travels in the initramfs and not on
//! the kernel's command line, which every process of the guest can read.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::frame;
use crate::preamble::Token;

/// Where the guest finds it. It is removed once it has been read.
pub const PATH: &str = "/capsa/config";

/// How it begins.
pub const MAGIC: [u8; 8] = *b"capsacfg";

/// The format that this crate reads and writes.
pub const FORMAT: u16 = 2;

/// The most bytes that a guest reads: some thousand shares.
pub const MAX_BYTES: usize = 1 << 20;

/// Everything that PID 1 and the agent are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// What the host must show on the channel.
    pub token: Token,
    /// Where the channel is.
    pub channel: Channel,
    /// The guest's name; 64 bytes at most, as Linux has it.
    pub hostname: String,
    /// What the guest's programs see as `/`.
    pub root: Root,
    /// The folders and files to mount, in this order: a share may lie below an earlier one.
    pub shares: Vec<Share>,
    /// The network card; none is no network.
    pub network: Option<Network>,
}

/// Where the channel is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// The virtio-serial port of this name.
    SerialPort(String),
    /// A socket to the host, on this port: the guest connects.
    Vsock(u32),
}

/// What the guest's programs see as `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// The initramfs itself, in memory.
    Initramfs,
    /// A share that is read, and what is changed goes elsewhere.
    Overlay {
        /// The mount tag of the share.
        tag: String,
        /// How the share reaches the guest.
        mechanism: Mechanism,
        /// Where changes go.
        upper: Upper,
    },
}

/// Where the changes to a root go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    /// Into the guest's memory, half of it at most.
    Memory,
    /// Onto a disk that the host has formatted.
    Disk {
        /// Its device: `/dev/vda`, ...
        device: String,
        /// Its file system: `ext4`, ...
        file_system: String,
    },
}

/// How a share reaches the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mechanism {
    /// virtio-fs.
    VirtioFs,
    /// 9p over virtio.
    Virtio9p {
        /// Bytes of one message.
        msize: u32,
    },
}

/// A folder or file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The mount tag.
    pub tag: String,
    /// How it reaches the guest.
    pub mechanism: Mechanism,
    /// Where it is mounted: an absolute path, whose missing folders are made.
    pub guest_path: String,
    /// Whether it is mounted read-only. The host enforces this by itself.
    pub read_only: bool,
    /// For the share of a single file: its name in the folder behind the tag. Only the file appears
    /// in the guest, at `guest_path`.
    pub file: Option<Vec<u8>>,
}

/// What the guest has on the link of its network card. Its gateway resolves names too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The largest packet in bytes.
    pub mtu: u16,
    /// IPv4.
    pub v4: Addresses<Ipv4Addr>,
    /// IPv6, where there is any.
    pub v6: Option<Addresses<Ipv6Addr>>,
}

/// A guest's place in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses<A> {
    /// The guest's address.
    pub guest: A,
    /// How many bits of it are the network's.
    pub prefix: u8,
    /// The way to everywhere else.
    pub gateway: A,
}

/// Why a config cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It does not begin like one.
    #[error("not a config of Capsa's guest")]
    NotConfig,
    /// It is of another version of Capsa.
    #[error("the config has format {found}, this guest reads {FORMAT}: make the guest kit anew")]
    Format {
        /// Its format.
        found: u16,
    },
    /// It is damaged.
    #[error("the config is damaged")]
    Malformed(#[source] frame::FrameError),
    /// It is longer than guests read.
    #[error("the config has {length} bytes, at most {MAX_BYTES} are read")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

impl Config {
    /// The content of the file.
    ///
    /// # Errors
    ///
    /// It would be longer than [`MAX_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, ConfigError> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        let bytes = postcard::to_extend(self, bytes)
            .map_err(|e| ConfigError::Malformed(frame::FrameError::Malformed(e)))?;
        match bytes.len() {
            0..=MAX_BYTES => Ok(bytes),
            length => Err(ConfigError::TooLong { length }),
        }
    }

    /// Reads the content of the file.
    ///
    /// # Errors
    ///
    /// It is no config, of another format, damaged or too long.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > MAX_BYTES {
            let length = bytes.len();
            return Err(ConfigError::TooLong { length });
        }
        let rest = bytes.strip_prefix(&MAGIC).ok_or(ConfigError::NotConfig)?;
        let (format, rest) = rest.split_first_chunk().ok_or(ConfigError::NotConfig)?;
        match u16::from_le_bytes(*format) {
            FORMAT => frame::decode(rest).map_err(ConfigError::Malformed),
            found => Err(ConfigError::Format { found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            token: Token([7; 32]),
            channel: Channel::SerialPort(crate::PORT_NAME.into()),
            hostname: "box".into(),
            root: Root::Overlay {
                tag: "root".into(),
                mechanism: Mechanism::VirtioFs,
                upper: Upper::Memory,
            },
            shares: vec![Share {
                tag: "capsa0".into(),
                mechanism: Mechanism::Virtio9p { msize: 262_144 },
                guest_path: "/work".into(),
                read_only: true,
                file: Some(vec![0xff]),
            }],
            network: Some(Network {
                mtu: 1500,
                v4: Addresses {
                    guest: Ipv4Addr::new(10, 0, 2, 3),
                    prefix: 24,
                    gateway: Ipv4Addr::new(10, 0, 2, 1),
                },
                v6: None,
            }),
        }
    }

    #[test]
    fn a_config_survives_the_journey() {
        let bytes = config().encode().unwrap();
        assert_eq!(Config::decode(&bytes).unwrap(), config());
    }

    #[test]
    fn each_kind_of_damage_has_its_error() {
        let mut bytes = config().encode().unwrap();
        assert!(matches!(
            Config::decode(&bytes[..bytes.len() - 1]),
            Err(ConfigError::Malformed(_))
        ));
        bytes.push(0);
        assert!(matches!(
            Config::decode(&bytes),
            Err(ConfigError::Malformed(_))
        ));
        bytes[8] = 9;
        assert!(matches!(
            Config::decode(&bytes),
            Err(ConfigError::Format { found: 9 })
        ));
        assert!(matches!(
            Config::decode(b"hello"),
            Err(ConfigError::NotConfig)
        ));
        assert!(matches!(
            Config::decode(&vec![0; MAX_BYTES + 1]),
            Err(ConfigError::TooLong { .. })
        ));
    }

    #[test]
    fn a_config_that_no_guest_would_read_is_not_written() {
        let mut config = config();
        config.hostname = "x".repeat(MAX_BYTES);
        assert!(matches!(config.encode(), Err(ConfigError::TooLong { .. })));
    }

    #[test]
    fn the_token_is_not_shown() {
        assert!(!format!("{:?}", config()).contains('7'));
    }
}
