//! What the fuzz target runs: a script of requests, on several kinds of disk, against a model of the
//! disk's bytes.

#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use capsa_core::disk::{ImageFile, ImageFormat, ResolvedDisk};
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder};

use super::*;
use crate::devices::driver_ring::{Bench, Buffer, DATA, OUTSIDE, UPPER};
use crate::script::Script;

/// Sectors and bytes of every disk here. The last cluster is not a whole one.
const SECTORS: u64 = SIZE as u64 / SECTOR;
const SIZE: usize = 255 * 512;
/// Bytes of a cluster: several of them and of their parts are in a disk and in a request.
const CLUSTER: usize = 4096;

/// Most steps of a script: an input is not worth more time.
const STEPS: usize = 300;

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFERS: u64 = DATA + 0x1000;

/// Carries out the requests that `data` describes, and panics when an answer or a byte differs from
/// the model's. Bounded work for any input.
///
/// # Panics
///
/// When the device is at fault, or the host has no file or descriptor left.
pub fn check(data: &[u8]) {
    let mut script = Script::new(data);
    // In memory: a disk of the host's would have to write each of the many flushes.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let kind = script.byte() % 8;
    let disk = match kind {
        0 | 1 => raw(folder.path()),
        2 => ResolvedDisk {
            ephemeral: true,
            ..raw(folder.path())
        },
        3 => ResolvedDisk {
            read_only: true,
            ..raw(folder.path())
        },
        _ => qcow2(folder.path()),
    };
    let corrupt = kind > 5;
    if corrupt {
        let file = File::options()
            .write(true)
            .open(&disk.image().path)
            .unwrap();
        for _ in 0..1 + script.byte() % 16 {
            // The tables lie in the first clusters of a new image.
            let at = u64::from(script.u16()) % (8 * CLUSTER as u64);
            file.write_all_at(&[script.byte()], at).unwrap();
        }
    }
    let image = match Image::open(&disk) {
        Ok(image) => image,
        Err(_) if corrupt => return,
        Err(error) => panic!("{error}"),
    };
    let writable = !disk.read_only;
    let bench = start(image);
    let mut play = Play {
        bench: Some(bench),
        model: (!corrupt).then(|| content().into_iter().map(Some).collect()),
        writable,
    };
    for _ in 0..STEPS {
        if script.is_at_end() {
            break;
        }
        play.step(&mut script);
    }
    play.compare();
    if disk.is_writable() && !corrupt {
        // What was written is there for the next one.
        play.bench = None;
        play.bench = Some(start(Image::open(&disk).unwrap()));
        play.compare();
    }
}

fn start(image: Image) -> Bench<Block> {
    let block = Block::new(image, "fuzz").unwrap();
    let features = block.features();
    Bench::new(block, features)
}

/// What is on each disk at first: the number of the sector, and nothing on the second half.
fn content() -> Vec<u8> {
    let mut content = vec![0; SIZE];
    for (byte, position) in content[..SIZE / 2].iter_mut().zip(0_usize..) {
        *byte = (position / 512).to_le_bytes()[0];
    }
    content
}

fn raw(folder: &Path) -> ResolvedDisk {
    let path = folder.join("raw");
    std::fs::write(&path, content()).unwrap();
    disk(vec![(path, ImageFormat::Raw)])
}

/// A new image over another one.
fn qcow2(folder: &Path) -> ResolvedDisk {
    let path = folder.join("top");
    let mut disk = raw(folder);
    let below = disk.image().path.to_str().unwrap().to_owned();
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path);
    let image = Qcow2::<Storage>::create_builder(Storage::try_from(file.unwrap()).unwrap())
        .size(SIZE as u64)
        .cluster_size(CLUSTER)
        .backing(below, "raw".to_owned())
        .create_open(DenyImplicitOpenGate::default(), |file| {
            Ok(Qcow2::builder(file).backing(None))
        });
    drop(FormatAccess::new(image.unwrap()));
    disk.chain.insert(
        0,
        ImageFile {
            path,
            format: ImageFormat::Qcow2,
        },
    );
    disk
}

fn disk(chain: Vec<(std::path::PathBuf, ImageFormat)>) -> ResolvedDisk {
    let image = |(path, format)| ImageFile { path, format };
    ResolvedDisk {
        chain: chain.into_iter().map(image).collect(),
        data_file: None,
        read_only: false,
        ephemeral: false,
    }
}

struct Play {
    /// None only between two drivers.
    bench: Option<Bench<Block>>,
    /// The disk's bytes, where they are known. None for a disk that may fail.
    model: Option<Vec<Option<u8>>>,
    writable: bool,
}

impl Play {
    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 8 {
            0 | 1 => self.read(sector(script), length(script), script.byte()),
            2 | 3 => self.write(sector(script), length(script), script.byte()),
            4 => self.list(abi::VIRTIO_BLK_T_DISCARD, script),
            5 => self.list(abi::VIRTIO_BLK_T_WRITE_ZEROES, script),
            6 => {
                let kind = u32::from(script.byte());
                let known = [
                    abi::VIRTIO_BLK_T_IN,
                    abi::VIRTIO_BLK_T_OUT,
                    abi::VIRTIO_BLK_T_DISCARD,
                    abi::VIRTIO_BLK_T_WRITE_ZEROES,
                ];
                if !known.contains(&kind) {
                    let expected = match kind {
                        abi::VIRTIO_BLK_T_FLUSH | abi::VIRTIO_BLK_T_GET_ID => abi::VIRTIO_BLK_S_OK,
                        _ => abi::VIRTIO_BLK_S_UNSUPP,
                    };
                    let status = self.send(kind, sector(script), &[]);
                    self.expect(status, expected);
                }
            }
            _ => self.anything(script),
        }
    }

    fn bench(&mut self) -> &mut Bench<Block> {
        self.bench.as_mut().expect("a driver")
    }

    /// A disk that may fail may also have another size.
    fn expect(&self, status: u32, expected: u32) {
        match self.model {
            Some(_) => assert_eq!(status, expected),
            None => assert!(status <= abi::VIRTIO_BLK_S_UNSUPP, "no status: {status}"),
        }
    }

    /// What a request for this range must be answered with.
    fn verdict(sector: u64, length: u64) -> u32 {
        let fits = sector <= SECTORS && length.is_multiple_of(SECTOR) && {
            length / SECTOR <= SECTORS - sector
        };
        match fits {
            true => abi::VIRTIO_BLK_S_OK,
            false => abi::VIRTIO_BLK_S_IOERR,
        }
    }

    fn read(&mut self, sector: u64, length: u32, split: u8) {
        let status = self.send(abi::VIRTIO_BLK_T_IN, sector, &parts(length, split, true));
        self.expect(status, Self::verdict(sector, length.into()));
        if status == abi::VIRTIO_BLK_S_OK {
            let bytes = self.bench().read(BUFFERS, length as usize);
            let start = usize::try_from(sector * SECTOR).unwrap();
            for (position, byte) in (start..).zip(bytes) {
                if let Some(Some(expected)) = self.model.as_ref().map(|model| model[position]) {
                    assert_eq!(byte, expected, "byte {position}");
                }
            }
        }
    }

    fn write(&mut self, sector: u64, length: u32, fill: u8) {
        let bytes: Vec<u8> = (0..length).map(|at| fill ^ at.to_le_bytes()[1]).collect();
        self.bench().write(BUFFERS, &bytes);
        let status = self.send(abi::VIRTIO_BLK_T_OUT, sector, &parts(length, fill, false));
        let expected = match self.writable {
            true => Self::verdict(sector, length.into()),
            false => abi::VIRTIO_BLK_S_IOERR,
        };
        self.expect(status, expected);
        if status == abi::VIRTIO_BLK_S_OK {
            self.set(sector, &bytes.into_iter().map(Some).collect::<Vec<_>>());
        }
    }

    /// A request with a list of ranges.
    fn list(&mut self, kind: u32, script: &mut Script<'_>) {
        let count = script.byte() % 4;
        let mut ranges = Vec::new();
        let mut bytes = Vec::new();
        let mut expected = abi::VIRTIO_BLK_S_OK;
        let discards = kind == abi::VIRTIO_BLK_T_DISCARD;
        let limits = if discards { DISCARD } else { WRITE_ZEROES };
        if count == 0 || u32::from(count) > limits.ranges {
            expected = abi::VIRTIO_BLK_S_IOERR;
        }
        for _ in 0..count {
            let (sector, sectors) = (sector(script), u32::from(script.byte()));
            let flags = u32::from(script.byte() % 32 / 15);
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            ranges.push((sector, sectors));
            if expected == abi::VIRTIO_BLK_S_OK {
                expected = match flags {
                    0 => Self::verdict(sector, u64::from(sectors) * SECTOR),
                    1 if !discards => Self::verdict(sector, u64::from(sectors) * SECTOR),
                    _ => abi::VIRTIO_BLK_S_UNSUPP,
                };
            }
        }
        if !self.writable {
            expected = abi::VIRTIO_BLK_S_UNSUPP;
        }
        self.bench().write(BUFFERS, &bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        let status = self.send(kind, sector(script), &parts(length, script.byte(), false));
        self.expect(status, expected);
        let after = (!discards).then_some(0);
        if status == abi::VIRTIO_BLK_S_OK {
            for (sector, sectors) in ranges {
                self.set(sector, &vec![after; 512 * sectors as usize]);
            }
        }
    }

    /// Any buffers at all.
    fn anything(&mut self, script: &mut Script<'_>) {
        let header: Vec<u8> = (0..16).map(|_| script.byte() % 16).collect();
        self.bench().write(HEADER, &header);
        let buffers: Vec<Buffer> = (0..1 + script.byte() % 8)
            .map(|_| {
                let near = u64::from(script.u16());
                let address = match script.byte() % 8 {
                    0..=3 => HEADER + near % 32,
                    4 => OUTSIDE - near % 1024,
                    5 => UPPER + near,
                    6 => u64::MAX - near,
                    _ => DATA + near,
                };
                let length = match script.byte() % 8 {
                    0 => u32::MAX - u32::from(script.u16()),
                    1 => 0,
                    2 => u32::from(script.u16()) * 512,
                    _ => u32::from(script.byte()) % 32 * 16,
                };
                (address, length, script.byte().is_multiple_of(2))
            })
            .collect();
        let bench = self.bench();
        bench.rings[0].offer(&buffers);
        let fault = bench.kick(0).and_then(|()| bench.settle()).is_err();
        if fault {
            self.bench = self.bench.take().map(Bench::restart);
        } else {
            assert_eq!(bench.rings[0].used().len(), 1);
        }
        self.forget();
    }

    /// Sends a request with these buffers between header and status, and returns its status.
    fn send(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) -> u32 {
        let bench = self.bench();
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        bench.write(HEADER, &header);
        bench.write(STATUS, &[0xff]);
        let mut chain = vec![(HEADER, 7, false), (HEADER + 7, 9, false)];
        chain.extend(buffers);
        chain.push((STATUS, 1, true));
        bench.rings[0].offer(&chain);
        bench.kick(0).unwrap();
        bench.settle().unwrap();
        assert_eq!(bench.rings[0].used().len(), 1);
        bench.read(STATUS, 1)[0].into()
    }

    fn set(&mut self, sector: u64, bytes: &[Option<u8>]) {
        if let Some(model) = &mut self.model {
            let start = usize::try_from(sector * SECTOR).unwrap();
            model[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Takes what is on the disk now for right: a request that is not modelled may have changed it.
    fn forget(&mut self) {
        if let Some(model) = &mut self.model {
            model.fill(None);
        }
    }

    /// Reads the whole disk.
    fn compare(&mut self) {
        for sector in (0..SECTORS).step_by(51) {
            self.read(sector, 51 * 512, 0);
        }
    }
}

/// The data of a request, in two buffers or in one.
fn parts(length: u32, split: u8, writable: bool) -> Vec<Buffer> {
    let first = u32::from(split).min(length);
    vec![
        (BUFFERS, first, writable),
        (BUFFERS + u64::from(first), length - first, writable),
    ]
}

/// A sector on the disk or just behind it, or, seldom, far away.
fn sector(script: &mut Script<'_>) -> u64 {
    match script.byte() {
        255 => u64::MAX - u64::from(script.byte()),
        254 => (u64::MAX / SECTOR).wrapping_add(u64::from(script.byte())),
        253 => SECTORS + u64::from(script.byte() % 4),
        sector => sector.into(),
    }
}

/// Bytes of a request: mostly whole sectors.
fn length(script: &mut Script<'_>) -> u32 {
    match script.byte() {
        255 => script.byte().into(),
        count => u32::from(count % 24) * 512,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::script::replay;

    /// Inputs that once reached something new, or found a fault.
    #[test]
    fn stored_inputs_behave() {
        replay("virtio_blk", 50, check);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn generated_requests_behave(data in prop::collection::vec(any::<u8>(), 200..1500)) {
            check(&data);
        }
    }
}
