//! The kit without a network and without a real kernel: everything is made of small fakes. That a
//! real one boots is tested where VMs are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use object::write::Object;
use object::{Architecture, BinaryFormat, Endianness, SectionKind};
use proptest::prelude::*;

use super::modules::Module;
use super::*;
use crate::Error;

const RELEASE: &str = "6.1.0-7-test";

/// An ELF file with one section.
fn elf(section: &str, content: &[u8]) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let id = object.add_section(Vec::new(), section.into(), SectionKind::ReadOnlyData);
    object.append_section_data(id, content, 1);
    object.write().unwrap()
}

/// A kernel module that says this of itself.
fn module_file(depends: &str) -> Vec<u8> {
    let info =
        format!("alias=fs-x\0alias=two words\0depends={depends}\0vermagic={RELEASE} SMP preempt\0");
    elf(".modinfo", info.as_bytes())
}

/// What the kit takes for busybox: a program without a loader that has its version in it.
fn busybox_file() -> Vec<u8> {
    elf(".rodata", b"\0BusyBox v1.99.9 (fake)\0")
}

/// An uncompressed kernel that can be entered as a PVH guest, as far as the kit looks.
fn pvh_kernel() -> Vec<u8> {
    let mut image = vec![0; 64 + 56];
    image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    image[20] = 1; // e_version
    image[32] = 64; // e_phoff
    image[54] = 56; // e_phentsize
    image[56] = 1; // e_phnum
    let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\0\0\0\x01\0\0\0\0";
    image[64] = 4; // p_type: PT_NOTE
    image[64 + 8] = 120; // p_offset
    image[64 + 32] = u8::try_from(note.len()).unwrap(); // p_filesz
    image[64 + 48] = 4; // p_align
    image.extend_from_slice(note);
    image
}

/// A bzImage of `release` around `payload`.
fn bzimage(release: &str, payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1; // setup_sects
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x0080_u16.to_le_bytes());
    image[0x280..0x280 + release.len()].copy_from_slice(release.as_bytes());
    image[0x280 + release.len()] = b' ';
    let length = u32::try_from(payload.len()).unwrap();
    image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A place with everything that a kit can be made from.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fixture.write("vmlinuz", &bzimage(RELEASE, &gzip(&pvh_kernel())));
        fixture.write("busybox", &busybox_file());
        fixture.write("modules/modules.builtin", b"kernel/fs/ext4/ext4.ko\n");
        fixture.write(
            "modules/kernel/virtio_pci.ko",
            &module_file("virtio,virtio-ring"),
        );
        fixture.write(
            "modules/kernel/virtio_blk.ko.gz",
            &gzip(&module_file("virtio_ring")),
        );
        fixture.write("modules/kernel/a/virtio.ko", &module_file("virtio_ring"));
        fixture.write("modules/kernel/a/virtio-ring.ko", &module_file(""));
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn options(&self) -> KitOptions {
        KitOptions {
            source: KitSource::Files {
                kernel: self.path("vmlinuz"),
                modules: self.path("modules"),
            },
            busybox: Some(self.path("busybox")),
            folder: Some(self.path("kit")),
            modules: Vec::new(),
        }
    }

    fn make(&self) -> Result<Kit> {
        make(&self.options(), &mut |_| {})
    }

    fn open(&self) -> Result<Option<Kit>> {
        Kit::open(&self.path("kit"))
    }

    fn names(&self) -> BTreeSet<String> {
        fs::read_dir(self.path("kit"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn message(error: &Error) -> String {
    error.full_message()
}

#[test]
fn the_folder_follows_the_variables_in_order() {
    fn with(set: &[(&str, &str)]) -> Result<PathBuf> {
        folder_from(|name| {
            let (_, value) = set.iter().find(|(known, _)| *known == name)?;
            Some(PathBuf::from(value))
        })
    }
    let home = ("HOME", "/home/u");
    assert_eq!(with(&[("CAPSA_KIT", "k"), home]).unwrap(), Path::new("k"));
    assert_eq!(
        with(&[("CAPSA_KIT", ""), ("XDG_DATA_HOME", "/d"), home]).unwrap(),
        Path::new("/d/capsa/kit")
    );
    assert_eq!(
        with(&[("XDG_DATA_HOME", "relative"), home]).unwrap(),
        Path::new("/home/u/.local/share/capsa/kit")
    );
    assert_eq!(with(&[]).unwrap_err().code(), "E0801");
}

#[test]
fn a_kit_is_what_it_was_made_from_and_reads_back_the_same() {
    let fixture = Fixture::new();
    let made = fixture.make().unwrap();
    assert_eq!(fs::read(&made.kernel).unwrap(), pvh_kernel());
    assert_eq!(
        fs::read(&made.firmware_kernel).unwrap(),
        fs::read(fixture.path("vmlinuz")).unwrap()
    );

    let found = fixture.open().unwrap().unwrap();
    assert_eq!(found.manifest, made.manifest);
    found.verify().unwrap();
    assert!(found.is_current());
    assert_eq!(found.manifest.kernel_release, RELEASE);
    assert_eq!(found.manifest.busybox, "BusyBox v1.99.9 (fake)");
    assert_eq!(
        found.manifest.modules,
        ["virtio_ring", "virtio", "virtio_pci", "virtio_blk"]
    );
    assert_eq!(found.manifest.builtin, ["ext4"]);
    assert!(found.manifest.missing.contains(&"9p".to_owned()));
}

#[test]
fn a_kit_has_the_modules_that_were_asked_for_too_or_is_not_made() {
    let fixture = Fixture::new();
    fixture.write("modules/kernel/kvm-amd.ko", &module_file("kvm"));
    fixture.write("modules/kernel/kvm.ko", &module_file(""));
    let make_with = |name: &str| {
        let options = KitOptions {
            modules: vec![name.to_owned()],
            ..fixture.options()
        };
        make(&options, &mut |_| {})
    };
    let kit = make_with("kvm-amd").unwrap();
    assert!(
        kit.manifest
            .modules
            .ends_with(&["kvm".into(), "kvm_amd".into()])
    );
    let refusal = message(&make_with("kvm_intel").unwrap_err());
    assert!(refusal.contains("it has no module kvm_intel"), "{refusal}");
}

#[test]
fn signatures_are_left_out() {
    let module = module_file("");
    let signed = |length: u32| {
        let mut content = module.clone();
        content.extend_from_slice(b"signature");
        content.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0]);
        content.extend_from_slice(&length.to_be_bytes());
        content.extend_from_slice(b"~Module signature appended~\n");
        content
    };
    assert_eq!(modules::unsigned(signed(9)), module);
    assert_eq!(modules::unsigned(module.clone()), module);
    // Longer than the file: no signature that the kernel would take for one.
    let damaged = signed(u32::MAX);
    assert_eq!(modules::unsigned(damaged.clone()), damaged);
}

#[test]
fn the_same_input_gives_the_same_kit() {
    let (one, two) = (Fixture::new(), Fixture::new());
    assert_eq!(one.make().unwrap().manifest, two.make().unwrap().manifest);
}

#[test]
fn a_folder_without_a_kit_is_none_and_a_damaged_kit_is_an_error() {
    let fixture = Fixture::new();
    assert!(fixture.open().unwrap().is_none());
    fs::create_dir(fixture.path("kit")).unwrap();
    assert!(fixture.open().unwrap().is_none());

    let kit = fixture.make().unwrap();
    let manifest = fs::read_to_string(fixture.path("kit/manifest.json")).unwrap();
    let expect = |wanted: &str| {
        let error = fixture.open().unwrap_err();
        assert_eq!(error.code(), "E0801");
        assert!(message(&error).contains(wanted), "{}", message(&error));
        assert!(error.hint().unwrap().contains("capsa setup"));
    };
    for cut in [0, 1, manifest.len() / 2, manifest.len() - 2] {
        fs::write(fixture.path("kit/manifest.json"), &manifest[..cut]).unwrap();
        expect("not a manifest");
    }
    fixture.write("kit/manifest.json", br#"{"format": 99, "new": true}"#);
    expect("format 99");
    let outside = manifest.replace(&kit.manifest.kernel.name, "../vmlinuz");
    fixture.write("kit/manifest.json", outside.as_bytes());
    expect("no name of a kit's file");

    fixture.write("kit/manifest.json", manifest.as_bytes());
    fs::write(&kit.initramfs, "short").unwrap();
    expect("has 5 bytes");
    fs::remove_file(&kit.initramfs).unwrap();
    expect("is missing");
    fs::create_dir(&kit.initramfs).unwrap();
    expect("not a regular file");
}

#[test]
fn verify_sees_what_a_size_does_not() {
    let fixture = Fixture::new();
    let kit = fixture.make().unwrap();
    let mut content = fs::read(&kit.initramfs).unwrap();
    content[1000] ^= 1;
    fs::write(&kit.initramfs, content).unwrap();
    let error = fixture.open().unwrap().unwrap().verify().unwrap_err();
    assert!(message(&error).contains("SHA-256"), "{}", message(&error));
}

#[test]
fn a_new_kit_keeps_the_last_one_and_what_is_not_its_own() {
    let fixture = Fixture::new();
    let mut kits = Vec::new();
    for version in 0..3_u8 {
        fixture.write("kit/vmlinuz-mine", b"not the kit's");
        fixture.write("kit/.making-killed/half", b"left by a killed maker");
        fixture.write(
            "busybox",
            &elf(".rodata", &[b"BusyBox v1.", &[b'0' + version][..]].concat()),
        );
        kits.push(fixture.make().unwrap().manifest);
    }
    let expected: BTreeSet<String> = [&kits[1], &kits[2]]
        .into_iter()
        .flat_map(Manifest::files)
        .map(|file| file.name.clone())
        .chain(["lock", "manifest.json", "vmlinuz-mine"].map(str::to_owned))
        .collect();
    assert_eq!(fixture.names(), expected);
}

#[test]
fn a_make_that_fails_leaves_the_old_kit() {
    let fixture = Fixture::new();
    let old = fixture.make().unwrap();
    let before = fixture.names();
    for (file, content, wanted) in [
        ("vmlinuz", &b"no kernel"[..], "neither a bzImage"),
        ("vmlinuz", &bzimage("5.0.0", &[])[..], "the kernel is 5.0.0"),
        ("busybox", b"#!/bin/sh", "not a 64-bit ELF"),
        ("busybox", &module_file(""), "not busybox"),
        ("modules/kernel/virtio_pci.ko", &[], "not an ELF"),
        (
            "modules/kernel/virtio_pci.ko",
            &elf(".text", &[]),
            "no .modinfo",
        ),
        (
            "modules/kernel/virtio_pci.ko",
            &module_file("absent"),
            "absent",
        ),
        (
            "modules/kernel/virtio_blk.ko.gz",
            &gzip(&module_file(""))[..40],
            "unpacked",
        ),
    ] {
        let fixture_file = fs::read(fixture.path(file)).unwrap();
        fixture.write(file, content);
        let error = fixture.make().unwrap_err();
        assert!(message(&error).contains(wanted), "{}", message(&error));
        fixture.write(file, &fixture_file);
    }
    assert_eq!(fixture.names(), before);
    assert_eq!(fixture.open().unwrap().unwrap().manifest, old.manifest);

    fs::remove_file(fixture.path("modules/kernel/virtio_pci.ko")).unwrap();
    let error = fixture.make().unwrap_err();
    assert!(
        message(&error).contains("no module virtio_pci"),
        "{}",
        message(&error)
    );
}

#[test]
fn two_makers_at_once_both_end_with_a_whole_kit() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fixture.make().unwrap().verify().unwrap());
        }
    });
    fixture.open().unwrap().unwrap().verify().unwrap();
    assert!(
        !fixture
            .names()
            .iter()
            .any(|name| name.starts_with(".making"))
    );
}

#[test]
fn a_second_maker_waits_and_says_so() {
    let fixture = Fixture::new();
    fixture.make().unwrap();
    let holder = fs::File::open(fixture.path("kit/lock")).unwrap();
    holder.lock().unwrap();
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            make(&fixture.options(), &mut |progress| {
                said.send(progress.step).unwrap()
            })
        });
        assert_eq!(heard.recv().unwrap(), "wait for another capsa");
        holder.unlock().unwrap();
        assert_eq!(heard.recv().unwrap(), "read the modules");
    });
}

#[test]
fn a_kernel_that_cannot_be_unpacked_boots_as_it_is() {
    let fixture = Fixture::new();
    for payload in [
        &b"\x5d\0\0\x80 lzma"[..],
        &gzip(b"no kernel"),
        &gzip(&pvh_kernel())[..30],
    ] {
        let image = bzimage(RELEASE, payload);
        fixture.write("vmlinuz", &image);
        assert_eq!(fs::read(fixture.make().unwrap().kernel).unwrap(), image);
    }
}

#[test]
fn modules_that_depend_on_each_other_end_the_search() {
    let fixture = Fixture::new();
    fixture.write("modules/kernel/a/virtio.ko", &module_file("virtio_pci"));
    let kit = fixture.make().unwrap();
    assert!(kit.manifest.modules.contains(&"virtio_pci".to_owned()));
}

#[test]
fn another_cpio_reads_the_archive() {
    let module = Module {
        name: "m".into(),
        depends: Vec::new(),
        aliases: vec!["fs-m".into()],
        release: RELEASE.into(),
        content: b"odd".to_vec(),
    };
    let dependent = Module {
        name: "n".into(),
        depends: vec!["m".into()],
        ..module.clone()
    };
    let archive = initramfs::build(b"program".to_vec(), RELEASE, vec![module, dependent]).unwrap();
    let cpio = |args: &[&str]| -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("busybox")
            .arg("cpio")
            .args(args)
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let list = cpio(&["-t"]);
    let names: Vec<&str> = list.lines().collect();
    assert!(names.is_sorted(), "{list}");
    let details: BTreeMap<String, String> = cpio(&["-tv"])
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = words
                .iter()
                .position(|w| w.starts_with("00:"))
                .map_or("?", |i| words[i + 1]);
            (name.to_owned(), line.to_owned())
        })
        .collect();
    for (name, start) in [
        ("dev", "drwxr-xr-x"),
        ("dev/console", "crw-------"),
        ("init", "-rwxr-xr-x"),
        ("bin/sh", "lrwxrwxrwx"),
        ("bin/busybox", "-rwxr-xr-x"),
    ] {
        assert!(details[name].starts_with(start), "{}", details[name]);
    }
    // busybox does not list device numbers: the fields of the header, 32 bytes before its end.
    let console = memchr::memmem::find(&archive, b"dev/console\0").unwrap();
    assert_eq!(&archive[console - 32..console - 16], b"0000000500000001");

    let text = |path: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("archive"), &archive).unwrap();
        let status = Command::new("busybox")
            .args(["cpio", "-i", "-d", "-F", "archive", path])
            .current_dir(folder.path())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        fs::read_to_string(folder.path().join(path)).unwrap()
    };
    let tree = format!("lib/modules/{RELEASE}");
    assert_eq!(text(&format!("{tree}/m.ko")), "odd");
    assert_eq!(text(&format!("{tree}/modules.dep")), "m.ko:\nn.ko: m.ko\n");
    assert_eq!(
        text(&format!("{tree}/modules.alias")),
        "alias fs-m m\nalias fs-m n\n"
    );
    assert_eq!(text("init"), include_str!("guest/init.sh"));
}

#[test]
fn the_newest_host_kernel_with_modules_is_taken() {
    let fixture = Fixture::new();
    let error = source::host_kernel(fixture.folder.path()).unwrap_err();
    assert!(message(&error).contains("container"), "{}", message(&error));
    for release in ["6.9.1-a", "6.10.0-a", "6.11.0-no-modules"] {
        fixture.write(&format!("boot/vmlinuz-{release}"), b"");
        if !release.ends_with("modules") {
            fixture.write(&format!("lib/modules/{release}/modules.builtin"), b"");
        }
    }
    let origin = source::host_kernel(fixture.folder.path()).unwrap();
    assert!(origin.image.ends_with("vmlinuz-6.10.0-a"), "{origin:?}");
}

/// A valid file, cut and with one byte changed: far more hostile than random bytes.
fn mutilated(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = valid.len();
    (0..=length, 0..length, any::<u8>()).prop_map(move |(cut, at, byte)| {
        let mut bytes = valid.clone();
        bytes[at] = byte;
        bytes.truncate(cut);
        bytes
    })
}

proptest! {
    #[test]
    fn no_module_makes_the_reader_panic(bytes in mutilated(module_file("a,b"))) {
        if let Ok(module) = modules::parse("m", bytes) {
            prop_assert!(modules::is_release(&module.release));
        }
    }

    #[test]
    fn no_kernel_makes_the_reader_panic(
        image in mutilated(bzimage(RELEASE, &gzip(&pvh_kernel()))),
        elf in mutilated(pvh_kernel()),
    ) {
        if let Some(kernel) = kernel::uncompressed(&image) {
            prop_assert!(kernel::is_pvh(&kernel));
        }
        if let Some(release) = kernel::release(&image) {
            prop_assert!(modules::is_release(&release));
        }
        kernel::is_pvh(&elf);
    }

    #[test]
    fn no_packed_file_makes_the_reader_panic(
        magic in prop::sample::select(vec![
            &[0x1f, 0x8b, 8][..],
            b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36",
            &[0x28, 0xb5, 0x2f, 0xfd],
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = packed::unpack(&[magic, &rest].concat());
    }
}

#[test]
fn the_programs_that_busybox_is_are_read_from_it() {
    let applets = source::busybox_applets;
    assert_eq!(
        applets(b"\x7fELF\0[\0[[\0ash\0cat\0zcat\0\0more"),
        ["[", "[[", "ash", "cat", "zcat"]
    );
    // Out of order, not a name, cut off: the list is over.
    assert_eq!(applets(b"\0[\0[[\0b\0a\0"), ["[", "[[", "b"]);
    assert_eq!(applets(b"\0[\0[[\0../x\0"), ["[", "[["]);
    assert_eq!(applets(b"no list"), [""; 0]);
    let hosts = fs::read("/bin/busybox").unwrap();
    let hosts = applets(&hosts);
    assert!(hosts.contains(&"sh") && hosts.contains(&"cat"), "{hosts:?}");
}
