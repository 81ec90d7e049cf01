//! How a channel begins: who is there, and in which version they go on.
//!
//! The layout never changes, so that any two versions can tell each other that they do not fit.
//! Numbers are little endian.
//!
//! The guest sends 12 bytes: [`MAGIC`] (8), its lowest version (2), its highest version (2).
//!
//! The host answers with 58: [`MAGIC`] (8), the version that both use from here on, or 0 (2), the
//! host's lowest version (2), its highest version (2), the token (32; zeroes with version 0), the
//! time as seconds since 1970 (8) and the nanoseconds of the second (4). The token proves to the
//! agent that the peer is who made the VM; the time saves the guest, which may have no clock, a
//! request.

use std::fmt;
use std::io;
use std::time::Duration;

use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::{Deserialize, Serialize};

use crate::{HIGHEST_VERSION, LOWEST_VERSION};

/// How both sides begin.
pub const MAGIC: [u8; 8] = *b"capsa\0\r\n";

const HELLO_BYTES: usize = 12;
const ANSWER_BYTES: usize = 58;

/// What the host proves itself with. It is made for one VM and never shown: not even by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token(pub [u8; 32]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What a guest learns from the host's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The version of the messages from here on.
    pub version: u16,
    /// The host's time, since 1970.
    pub clock: Duration,
}

/// Why two sides do not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreambleError {
    /// The channel failed or ended.
    #[error("the channel failed")]
    Io(#[from] io::Error),
    /// The peer is something else.
    #[error("the peer does not speak Capsa's protocol")]
    NotCapsa,
    /// There is no version that both speak.
    #[error(
        "the peer speaks versions {lowest} to {highest} of the agent's protocol, this side {} to {}",
        LOWEST_VERSION,
        HIGHEST_VERSION
    )]
    Versions {
        /// The peer's lowest version.
        lowest: u16,
        /// The peer's highest version.
        highest: u16,
    },
    /// The peer chose a version that this side does not speak, or an impossible time.
    #[error("the peer's answer makes no sense")]
    Malformed,
    /// The peer does not have the token.
    #[error("the peer does not have this VM's token")]
    Token,
}

/// The host's part: hears the guest and answers. Returns the version of the messages from here on.
///
/// `clock` is the time since 1970.
///
/// # Errors
///
/// The channel fails, the peer is no agent, or its versions do not fit; then it has been told.
///
/// Has no time limit, and cancelled halfway it leaves a channel that is of no use.
pub async fn host<S>(stream: &mut S, token: &Token, clock: Duration) -> Result<u16, PreambleError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello).await?;
    let hello = Hello::decode(&hello).ok_or(PreambleError::NotCapsa)?;
    let version = hello.common_version();
    let answer = Answer {
        version: version.unwrap_or(0),
        lowest: LOWEST_VERSION,
        highest: HIGHEST_VERSION,
        token: match version {
            Some(_) => token.clone(),
            None => Token([0; 32]),
        },
        seconds: clock.as_secs(),
        nanoseconds: clock.subsec_nanos(),
    };
    stream.write_all(&answer.encode()).await?;
    stream.flush().await?;
    version.ok_or(PreambleError::Versions {
        lowest: hello.lowest,
        highest: hello.highest,
    })
}

/// The guest's part: speaks first, then checks the host's answer.
///
/// # Errors
///
/// The channel fails, the peer is no host, has no fitting version, or does not have the token.
///
/// Has no time limit, and cancelled halfway it leaves a channel that is of no use.
pub async fn guest<S>(stream: &mut S, token: &Token) -> Result<Welcome, PreambleError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = Hello {
        lowest: LOWEST_VERSION,
        highest: HIGHEST_VERSION,
    };
    stream.write_all(&hello.encode()).await?;
    stream.flush().await?;
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer).await?;
    let answer = Answer::decode(&answer).ok_or(PreambleError::NotCapsa)?;
    answer.check(token)
}

struct Hello {
    lowest: u16,
    highest: u16,
}

impl Hello {
    fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.lowest.to_le_bytes());
        bytes[10..].copy_from_slice(&self.highest.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.take() == Some(MAGIC)).then_some(())?;
        Some(Self {
            lowest: u16::from_le_bytes(fields.take()?),
            highest: u16::from_le_bytes(fields.take()?),
        })
    }

    /// The highest version that both sides speak.
    fn common_version(&self) -> Option<u16> {
        let version = self.highest.min(HIGHEST_VERSION);
        (version >= self.lowest.max(LOWEST_VERSION)).then_some(version)
    }
}

struct Answer {
    version: u16,
    lowest: u16,
    highest: u16,
    token: Token,
    seconds: u64,
    nanoseconds: u32,
}

impl Answer {
    fn encode(&self) -> [u8; ANSWER_BYTES] {
        let mut bytes = [0; ANSWER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.lowest.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.highest.to_le_bytes());
        bytes[14..46].copy_from_slice(&self.token.0);
        bytes[46..54].copy_from_slice(&self.seconds.to_le_bytes());
        bytes[54..].copy_from_slice(&self.nanoseconds.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; ANSWER_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.take() == Some(MAGIC)).then_some(())?;
        Some(Self {
            version: u16::from_le_bytes(fields.take()?),
            lowest: u16::from_le_bytes(fields.take()?),
            highest: u16::from_le_bytes(fields.take()?),
            token: Token(fields.take()?),
            seconds: u64::from_le_bytes(fields.take()?),
            nanoseconds: u32::from_le_bytes(fields.take()?),
        })
    }

    fn check(&self, token: &Token) -> Result<Welcome, PreambleError> {
        if self.version == 0 {
            return Err(PreambleError::Versions {
                lowest: self.lowest,
                highest: self.highest,
            });
        }
        if self.token != *token {
            return Err(PreambleError::Token);
        }
        let is_spoken = (LOWEST_VERSION..=HIGHEST_VERSION).contains(&self.version);
        if !is_spoken || self.nanoseconds >= 1_000_000_000 {
            return Err(PreambleError::Malformed);
        }
        Ok(Welcome {
            version: self.version,
            clock: Duration::new(self.seconds, self.nanoseconds),
        })
    }
}

/// Reads fields of a fixed size one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests;
