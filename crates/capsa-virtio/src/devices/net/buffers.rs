//! A frame between a buffer of ours and the guest's descriptor chains.

use std::io::{Read, Write};
use std::sync::Arc;

use super::header::HEADER;
use super::link::FRAME_MINIMUM;
use crate::device::DriverFault;
use crate::queue::{Chain, Virtqueue};

/// What became of a frame for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Done,
    /// No buffers of the guest can hold it.
    TooLong,
    /// The guest has to add buffers first, and will notify.
    Later,
    /// The guest has added buffers meanwhile.
    Again,
}

/// Copies a header and its frame into the guest's next buffer, or as many as it takes if they may
/// be merged.
pub(super) fn deliver(
    queue: &mut Virtqueue,
    frame: &mut [u8],
    mergeable: bool,
) -> Result<Delivery, DriverFault> {
    let memory = Arc::clone(queue.memory());
    let mut buffers = Vec::new();
    let mut room = 0;
    let wanting = loop {
        let Some(chain) = queue.pop()? else {
            // Asked with the queue at its end, so that the next buffer is the one that notifies.
            break Some(match queue.enable_notification()? {
                true => Delivery::Again,
                false => Delivery::Later,
            });
        };
        let head = chain.head_index();
        let buffer = chain.writer(&memory)?;
        if buffer.available_bytes() == 0 {
            return Err(DriverFault::Chain("no room for a byte of a frame"));
        }
        room += buffer.available_bytes();
        buffers.push((head, buffer));
        if room >= frame.len() {
            break None;
        }
        if !mergeable || buffers.len() == usize::from(queue.size()) {
            break Some(Delivery::TooLong);
        }
    };
    if let Some(wanting) = wanting {
        for _ in &buffers {
            queue.put_back();
        }
        return Ok(wanting);
    }

    // Without merging it is 1 (5.1.6.4.1).
    let count = u16::try_from(buffers.len()).unwrap_or(u16::MAX);
    frame[HEADER - 2..HEADER].copy_from_slice(&count.to_le_bytes());
    let mut rest = &*frame;
    let mut used = Vec::with_capacity(buffers.len());
    for (head, mut buffer) in buffers {
        let written = buffer.write(rest).unwrap_or(0);
        rest = &rest[written..];
        used.push((head, u32::try_from(written).unwrap_or(0)));
    }
    queue.push_used_together(&used)?;
    Ok(Delivery::Done)
}

/// Copies a header and its frame out of a chain. Returns how many bytes they are, or nothing for
/// what is no frame: a runt, or one longer than `frame`.
pub(super) fn take(
    chain: Chain,
    queue: &Virtqueue,
    frame: &mut [u8],
) -> Result<Option<usize>, DriverFault> {
    let mut reader = chain.reader(queue.memory())?;
    let length = reader.available_bytes();
    if length < HEADER {
        return Err(DriverFault::Chain("a frame without a header"));
    }
    if length < HEADER + FRAME_MINIMUM || length > frame.len() {
        return Ok(None);
    }
    let read = reader.read_exact(&mut frame[..length]);
    Ok(read.ok().map(|()| length))
}
