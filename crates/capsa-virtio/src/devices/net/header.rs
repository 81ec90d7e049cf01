//! What stands before each frame in a buffer (5.1.6), and what it may ask of the receiver.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_DATA_VALID,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};

/// `struct virtio_net_hdr` with `num_buffers`, as every driver of a modern device writes it.
pub(super) const HEADER: usize = 12;

/// Work that the sender of a frame leaves to its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Computes TCP's and UDP's checksums.
    pub checksum: bool,
    /// Cuts up to 64 KiB of a TCP stream into segments, over IPv4. Needs `checksum`.
    pub tso4: bool,
    /// The same over IPv6. Needs `checksum`.
    pub tso6: bool,
}

impl Offloads {
    /// A receiver that wants finished frames only.
    pub const NONE: Self = Self {
        checksum: false,
        tso4: false,
        tso6: false,
    };

    /// A receiver that does all of it.
    pub const ALL: Self = Self {
        checksum: true,
        tso4: true,
        tso6: true,
    };

    /// The features, one of the sets below, that say this of a receiver.
    pub(super) fn features(self, [checksum, tso4, tso6]: [u32; 3]) -> u64 {
        u64::from(self.checksum) << checksum
            | u64::from(self.checksum && self.tso4) << tso4
            | u64::from(self.checksum && self.tso6) << tso6
    }

    /// What accepted features say.
    pub(super) fn accepted(features: u64, bits: [u32; 3]) -> Self {
        let [checksum, tso4, tso6] = bits.map(|bit| features & 1 << bit != 0);
        Self {
            checksum,
            tso4: checksum && tso4,
            tso6: checksum && tso6,
        }
    }
}

/// What the host does for the guest.
pub(super) const HOST: [u32; 3] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
];

/// What the guest does for the host.
pub(super) const GUEST: [u32; 3] = [
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
];

/// Rewrites the header of a frame of `length` bytes to what a receiver of these offloads
/// understands. Returns whether it may get the frame at all: not when it would have to do what it
/// does not, or the header contradicts itself.
#[must_use]
pub(super) fn restrict(header: &mut [u8; HEADER], length: usize, allowed: Offloads) -> bool {
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let [flags, gso_type] = [header[0], header[1]].map(u32::from);
    let [header_length, gso_size, start, offset] = [2, 4, 6, 8].map(field);

    let mut kept = 0;
    if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
        // The checksum itself, two bytes, lies within the frame.
        if !allowed.checksum || usize::from(start) + usize::from(offset) + 2 > length {
            return false;
        }
        kept = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    } else if allowed.checksum {
        // A statement, of which nothing follows for whoever does not know it.
        kept = flags & VIRTIO_NET_HDR_F_DATA_VALID;
    }
    let segmented = match gso_type {
        VIRTIO_NET_HDR_GSO_NONE => false,
        VIRTIO_NET_HDR_GSO_TCPV4 if allowed.tso4 => true,
        VIRTIO_NET_HDR_GSO_TCPV6 if allowed.tso6 => true,
        _ => return false,
    };
    if segmented && (gso_size == 0 || kept != VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        return false;
    }

    header[0] = u8::try_from(kept).unwrap_or(0);
    // A hint, which some receivers refuse when it is beyond the end.
    let header_length = if segmented {
        header_length.min(u16::try_from(length).unwrap_or(u16::MAX))
    } else {
        header[4..6].fill(0);
        0
    };
    header[2..4].copy_from_slice(&header_length.to_le_bytes());
    if kept != VIRTIO_NET_HDR_F_NEEDS_CSUM {
        header[6..10].fill(0);
    }
    header[10..].fill(0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso_type: u8, fields: [u16; 5]) -> [u8; HEADER] {
        let mut header = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (place, field) in header[2..].chunks_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        header
    }

    #[test]
    fn only_what_the_receiver_does_passes() {
        let checksum = Offloads {
            checksum: true,
            ..Offloads::NONE
        };
        let plain = header(0, 0, [0; 5]);
        let partial = header(1, 0, [0, 0, 34, 16, 0]);
        let tcp4 = header(1, 1, [54, 1448, 34, 16, 0]);
        let tcp6 = header(1, 4, [74, 1428, 54, 16, 0]);
        for (frame, passes) in [
            (plain, [true, true, true]),
            (partial, [false, true, true]),
            (tcp4, [false, false, true]),
            (tcp6, [false, false, true]),
            // A datagram to be cut, ECN, and nothing known: never offered.
            (header(1, 3, [42, 1448, 34, 6, 0]), [false; 3]),
            (header(1, 0x81, [54, 1448, 34, 16, 0]), [false; 3]),
            (header(1, 0xff, [54, 1448, 34, 16, 0]), [false; 3]),
            // Segments without a size, without a checksum, a checksum beyond the end.
            (header(1, 1, [54, 0, 34, 16, 0]), [false; 3]),
            (header(0, 1, [54, 1448, 34, 16, 0]), [false; 3]),
            (header(2, 1, [54, 1448, 34, 16, 0]), [false; 3]),
            (header(1, 0, [0, 0, 99, 0, 0]), [false; 3]),
            (header(1, 0, [0, 0, u16::MAX, u16::MAX, 0]), [false; 3]),
        ] {
            let outcome = [Offloads::NONE, checksum, Offloads::ALL]
                .map(|allowed| restrict(&mut frame.clone(), 100, allowed));
            assert_eq!(outcome, passes, "{frame:?}");
        }
    }

    #[test]
    fn a_receiver_sees_nothing_that_it_need_not() {
        let mut full = header(0xfe, 0, [1, 2, 3, 4, 5]);
        assert!(restrict(&mut full, 100, Offloads::NONE));
        assert_eq!(full, [0; HEADER]);
        let mut full = header(0xfe, 0, [1, 2, 3, 4, 5]);
        assert!(restrict(&mut full, 100, Offloads::ALL));
        assert_eq!(full, header(2, 0, [0; 5]));
        let mut tcp = header(0xff, 1, [2000, 1448, 34, 16, 9]);
        assert!(restrict(&mut tcp, 100, Offloads::ALL));
        assert_eq!(tcp, header(1, 1, [100, 1448, 34, 16, 0]));
    }

    #[test]
    fn segments_need_the_checksum() {
        let odd = Offloads {
            checksum: false,
            tso4: true,
            tso6: true,
        };
        assert_eq!(odd.features(HOST), 0);
        for bits in [HOST, GUEST] {
            let features = Offloads::ALL.features(bits);
            assert_eq!(Offloads::accepted(features, bits), Offloads::ALL);
            assert_eq!(Offloads::accepted(!features, bits), Offloads::NONE);
            // A driver that accepts segments alone, and one that accepts those of IPv4.
            let alone = features & !(1 << bits[0]);
            assert_eq!(Offloads::accepted(alone, bits), Offloads::NONE);
            let expected = Offloads {
                tso6: false,
                ..Offloads::ALL
            };
            assert_eq!(
                Offloads::accepted(features & !(1 << bits[2]), bits),
                expected
            );
        }
    }
}
