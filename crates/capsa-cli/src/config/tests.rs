use std::fs;

use capsa::{DiskImage, ImageFormat};

use super::*;

fn parse(text: &str) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.toml");
    fs::write(&path, text).unwrap();
    let prefix = format!("{}/", folder.path().display());
    read(&path).map_err(|error| error.replace(&prefix, ""))
}

#[test]
fn every_key_has_its_effect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.toml");
    fs::write(
        &path,
        r#"
        [guest]
        os = "linux"
        boot = "direct"
        [boot]
        kernel = "bzImage"
        initrd = "/boot/initrd"
        variables = "efivars.fd"
        [disk]
        path = "root.qcow2"
        [[disks]]
        path = "data.img"
        format = "qcow2"
        read_only = true
        [[disks]]
        path = "scratch"
        ephemeral = true
        [resources]
        cpus = 2
        memory = "2G"
        timeout = "5m"
        [network]
        mode = "nat"
        [console]
        mode = "enabled"
        [shares.b]
        host = "src"
        guest = "/src"
        mode = "rw"
        mechanism = "9p"
        [shares.a]
        host = "/usr"
        guest = "/host"
        [cmdline]
        extra = ["quiet", "dyndbg=file drivers/usb/* +p"]
        "#,
    )
    .unwrap();
    let here = |name: &str| folder.path().join(name);
    let expected = Settings {
        kernel: Some(here("bzImage")),
        initrd: Some("/boot/initrd".into()),
        variables: Some(here("efivars.fd")),
        disk: Some(DiskImage::new(here("root.qcow2"))),
        disks: vec![
            DiskImage::with_format(here("data.img"), ImageFormat::Qcow2).read_only(),
            DiskImage::new(here("scratch")).ephemeral(),
        ],
        cpus: Some(2),
        memory_mb: Some(2048),
        timeout: Some(Duration::from_secs(300)),
        network: Some(NetworkSetting::Nat),
        console: Some(ConsoleSetting::Enabled),
        shares: vec![
            SharedDir::new("/usr", "/host", MountMode::ReadOnly),
            SharedDir::new(here("src"), "/src", MountMode::ReadWrite)
                .with_mechanism(ShareMechanism::Virtio9p(Virtio9pConfig::default())),
        ],
        cmdline: KernelCmdline::new()
            .arg("quiet")
            .arg("dyndbg=file drivers/usb/* +p"),
        ..Settings::default()
    };
    assert_eq!(read(&path), Ok(expected));
}

#[test]
fn nothing_has_to_be_said() {
    assert_eq!(parse(""), Ok(Settings::default()));
    let uefi = parse("[guest]\nboot = 'uefi'\nos = 'windows'").unwrap();
    assert_eq!((uefi.boot, uefi.system), (Boot::Uefi, System::Windows));
}

#[test]
fn an_error_names_the_line_and_the_nearest_name() {
    for (text, expected) in [
        (
            "[boot]\nkernle = 'x'",
            "vm.toml:2: unknown key `kernle`; the nearest is `kernel`, \
             of `kernel`, `initrd`, `variables`",
        ),
        (
            "\n[resource]\ncpus = 1",
            "vm.toml:2: unknown key `resource`; the nearest is `resources`",
        ),
        (
            "[guest]\nboot = 'efi'",
            "vm.toml:2: unknown value `efi`; the nearest is `uefi`",
        ),
        ("[guest]\nos = 'linus'", "the nearest is `linux`"),
        (
            "[shares.x]\nhost = '.'\nguest = '/x'\nmode = 'wr'",
            "vm.toml:4: unknown value `wr`",
        ),
        ("[shares.x]\nhost = '.'", "vm.toml:1: missing field `guest`"),
        (
            "[disk]\npath = 'a'\nformat = 'vmdk'",
            "vm.toml:3: unknown value `vmdk`",
        ),
        (
            "[disk]\npath = 'a'\nread_only = true",
            "vm.toml:3: unknown key `read_only`",
        ),
        ("[resources]\nmemory = '2X'", "vm.toml:2: "),
        (
            "[resources]\nmemory = 2048",
            "vm.toml:2: invalid type: integer `2048`, expected a string",
        ),
        ("[resources]\ntimeout = '5'", "a time is written 90s or 5m"),
        ("[resources]\ncpus = -1", "vm.toml:2: "),
        (
            "[resources]\ncpus = 'two'",
            "vm.toml:2: invalid type: string \"two\", expected u32",
        ),
        ("[boot]\nkernel = ", "vm.toml:2: "),
        (
            "[boot]\nkernel = 'a'\nkernel = 'b'",
            "vm.toml:3: duplicate key",
        ),
        ("x", "vm.toml:1: "),
        ("[cmdline]\nextra = 'quiet'", "vm.toml:2: invalid type"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{text:?} gave: {error}");
        assert!(error.starts_with("vm.toml:"), "{error}");
    }
}

#[test]
fn what_is_no_configuration_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.toml");
    let refused = |path: &Path| {
        let error = read(path).unwrap_err();
        assert!(error.contains(&path.display().to_string()), "{error}");
        error
    };
    assert!(refused(&path).contains("No such file"));
    assert!(refused(folder.path()).contains("directory"));
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(refused(&path).contains("UTF-8"));
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(refused(&path).contains("over 1048576 bytes"));
    // A device that never ends must not be read for ever.
    assert!(refused(Path::new("/dev/zero")).contains("over 1048576 bytes"));
}
