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
        allow = ["a.com", "b.com:443"]
        publish = ["8080:80"]
        host_services = ["15432:5432"]
        subnet = "10.9.8.0/24"
        subnet6 = "fd00:9::/64"
        mac = "02:00:00:00:00:01"
        hostname = "box"
        dns = ["10.0.0.53", "[::1]:5353"]
        log = "net.log"
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
        network: NetworkSettings {
            setting: Some(NetworkSetting::Policy(
                policy::allowing("a.com,b.com:443").unwrap(),
            )),
            publish: vec![publish::parse("8080:80").unwrap()],
            services: vec![services::parse("15432:5432").unwrap()],
            subnet: Some("10.9.8.0/24".parse().unwrap()),
            subnet6: Some("fd00:9::/64".parse().unwrap()),
            mac: Some([2, 0, 0, 0, 0, 1]),
            hostname: Some("box".parse().unwrap()),
            resolvers: vec![
                "10.0.0.53:53".parse().unwrap(),
                "[::1]:5353".parse().unwrap(),
            ],
            log: Some(here("net.log")),
        },
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
            "vm.toml:2:1: unknown key `kernle`; the nearest is `kernel`, \
             of `kernel`, `initrd`, `variables`",
        ),
        (
            "\n[resource]\ncpus = 1",
            "vm.toml:2:2: unknown key `resource`; the nearest is `resources`",
        ),
        (
            "[guest]\nboot = 'efi'",
            "vm.toml:2:8: unknown value `efi`; the nearest is `uefi`",
        ),
        ("[guest]\nos = 'linus'", "the nearest is `linux`"),
        (
            "[shares.x]\nhost = '.'\nguest = '/x'\nmode = 'wr'",
            "vm.toml:4:8: unknown value `wr`",
        ),
        (
            "[shares.x]\nhost = '.'",
            "vm.toml:1:1: the key `guest` is missing",
        ),
        (
            "[disk]\npath = 'a'\nformat = 'vmdk'",
            "vm.toml:3:10: unknown value `vmdk`",
        ),
        (
            "[disk]\npath = 'a'\nread_only = true",
            "vm.toml:3:1: unknown key `read_only`",
        ),
        ("[resources]\nmemory = '2X'", "vm.toml:2:10: "),
        (
            "[resources]\nmemory = 2048",
            "vm.toml:2:10: invalid type: integer `2048`, expected a string",
        ),
        ("[resources]\ntimeout = '5'", "a time is written 90s or 5m"),
        ("[resources]\ncpus = -1", "vm.toml:2:8: "),
        (
            "[resources]\ncpus = 'two'",
            "vm.toml:2:8: invalid type: string \"two\", expected u32",
        ),
        ("[boot]\nkernel = ", "vm.toml:2:10: "),
        (
            "[boot]\nkernel = 'a'\nkernel = 'b'",
            "vm.toml:3:1: duplicate key",
        ),
        ("x", "vm.toml:1:2: "),
        ("[cmdline]\nextra = 'quiet'", "vm.toml:2:9: invalid type"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{text:?} gave: {error}");
        assert!(error.starts_with("vm.toml:"), "{error}");
    }
}

#[test]
fn a_network_is_reached_in_one_way() {
    let reach = |keys: &str| parse(&format!("[network]\n{keys}")).map(|said| said.network.setting);
    assert_eq!(reach("mode = 'nat'"), Ok(Some(NetworkSetting::Nat)));
    assert_eq!(reach("mode = 'none'"), Ok(Some(NetworkSetting::None)));
    assert_eq!(reach("publish = ['80:80']"), Ok(None));
    for (keys, error) in [
        (
            "mode = 'nat'\nallow = ['a.com']",
            "vm.toml:1:1: `mode`, `allow` and `policy`",
        ),
        ("mode = 'bridge'", "vm.toml:2:8: unknown value `bridge`"),
        (
            "allow = ['a.com', '*.com']",
            "vm.toml:2:9: rule `*.com` allows",
        ),
        (
            "publish = ['80:80', '80']",
            "vm.toml:2:11: `80` is only one port",
        ),
        (
            "host_services = ['80']",
            "vm.toml:2:17: a host service is written",
        ),
        ("mac = '52:54'", "vm.toml:2:7: `52:54` is no MAC address"),
        ("dns = ['dns']", "vm.toml:2:7: `dns` is no resolver"),
        ("subnet = '10.0.0.0'", "vm.toml:2:10: "),
        ("hostname = 'a b'", "vm.toml:2:12: "),
        (
            "policy = 'gone.toml'",
            "cannot read gone.toml: No such file",
        ),
    ] {
        let refused = reach(keys).unwrap_err();
        assert!(refused.starts_with(error), "{keys}: {refused}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.toml");
    fs::write(&path, "[network]\npolicy = 'p.toml'").unwrap();
    fs::write(
        folder.path().join("p.toml"),
        "default = 'deny'\nrules = ['a.com']",
    )
    .unwrap();
    let setting = NetworkSetting::Policy(policy::allowing("a.com").unwrap());
    assert_eq!(read(&path).unwrap().network.setting, Some(setting));
}

#[test]
fn every_error_of_a_file_is_told() {
    let text = "[boot]\nkernle = 'x'\n[resources]\nmemory = 2048\ncpus = 'two'\n\
        [shares.x]\nhost = '.'\nguest = 1\n[[disks]]\npath = 'd'\nro = true";
    let error = parse(text).unwrap_err();
    let expected = ["2:1", "4:10", "5:8", "8:9", "11:1"];
    for place in expected {
        let begins = |line: &&str| line.starts_with(&format!("vm.toml:{place}: "));
        assert!(error.lines().any(|line| begins(&line)), "{place}: {error}");
    }
    // That a share needs a `guest` is not said on top of what is wrong with the one that is there.
    assert_eq!(error.lines().count(), expected.len(), "{error}");
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
