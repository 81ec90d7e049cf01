//! What the program says and how it ends without ever starting a VM.

use crate::program::{Program, stderr, stdout};
use serde_json::Value;

#[test]
fn the_help_fits_a_screen() {
    let help = stdout(&Program::without_kit().run(&["--help"], "").success());
    assert!(help.lines().count() < 24, "{help}");
    assert!(
        help.lines().all(|line| line.chars().count() <= 80),
        "{help}"
    );
    for command in [
        "run",
        "backends",
        "doctor",
        "setup",
        "completions",
        "version",
    ] {
        assert!(help.contains(&format!("\n  {command}")), "{help}");
    }
}

#[test]
fn every_help_ends_with_an_example() {
    let program = Program::without_kit();
    for command in [
        &["run"][..],
        &["run", "linux"],
        &["run", "uefi"],
        &["backends"],
        &["doctor"],
        &["policy"],
        &["policy", "check"],
        &["policy", "learn"],
        &["version"],
        &["setup"],
        &["completions"],
    ] {
        let help = stdout(&program.run(&[command, &["--help"]].concat(), "").success());
        let example = format!("  capsa {}", command.join(" "));
        let last = help.trim_end().lines().last().unwrap();
        assert!(last.starts_with(&example), "{command:?}: {last}");
        assert!(
            help.lines().all(|line| line.chars().count() <= 80),
            "{help}"
        );
    }
}

#[test]
fn usage_errors_end_with_2_on_standard_error() {
    let program = Program::without_kit();
    for (args, reason) in [
        (&[][..], "Usage"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["ps"], "unrecognized subcommand"),
        (&["run", "--kernle", "x"], "'--kernel'"),
        (&["run", "--memory", "512"], "write 512M"),
        (&["run", "--timeout", "5"], "90s or 5m"),
        (&["run", "--share", "src"], "HOST:GUEST"),
        (&["run", "--disk", "a,ephemral"], "`ephemeral`"),
        (&["run", "--net", "bridge"], "none, nat"),
        (&["run", "--console", "tty"], "stdio, enabled, disabled"),
        (&["run", "--backend", "xen"], "qemu"),
        (&["run", "--disk-format", "raw"], "--disk"),
        (&["run", "--kernel", "a", "linux"], "cannot be used with"),
        (&["run", "uefi", "--kernel", "a"], "'--kernel'"),
        (&["setup", "--kernel", "a"], "--modules"),
        (
            &["setup", "--host", "--kernel", "a", "--modules", "b"],
            "cannot be used with",
        ),
        (&["completions", "tcsh"], "bash"),
    ] {
        let ended = program.run(args, "").code(2);
        assert!(
            stderr(&ended).contains(reason),
            "{args:?}: {}",
            stderr(&ended)
        );
        assert_eq!(stdout(&ended), "", "{args:?}");
    }
}

#[test]
fn what_contradicts_itself_ends_with_2() {
    let program = Program::without_kit();
    for (args, config, reason) in [
        (&["run", "--initrd", "a"][..], "", "E0203"),
        (&["run", "uefi"], "", "E0203"),
        (
            &["run", "--config", "vm.toml"],
            "[boot]\nvariables = 'v'",
            "`capsa run uefi`",
        ),
        (
            &["run", "--config", "vm.toml"],
            "[guest]\nboot = 'uefi'\n[boot]\nkernel = 'k'\n[disk]\npath = 'd'",
            "kernel: firmware boots the disk",
        ),
        (
            &["run", "--config", "vm.toml"],
            "[guest]\nos = 'windows'",
            "only Linux guests",
        ),
        (
            &["run", "--config", "vm.toml"],
            "[boot]\nkernle = 'k'",
            "vm.toml:2:1: unknown key `kernle`",
        ),
        (
            &["run", "--config", "gone.toml"],
            "",
            "gone.toml: No such file",
        ),
        (
            &["run", "--kernel", "k", "--cpus", "0"],
            "",
            "cpus: 0 vCPUs",
        ),
        (
            &["run", "--kernel", "k", "--memory", "1T"],
            "",
            "1048576 MiB",
        ),
        (&["run", "--kernel", "k", "--name", ""], "", "name"),
        (&["run", "--kernel", "k", "--timeout", "0s"], "", "timeout"),
        (&["run", "--kernel", "k", "--share", ".:/a b"], "", "share"),
        (&["run", "--kernel", "k", "--cmdline", "=x"], "", "cmdline"),
    ] {
        program.file("vm.toml", config);
        let ended = program.run(args, "").code(2);
        assert!(
            stderr(&ended).contains(reason),
            "{args:?}: {}",
            stderr(&ended)
        );
        assert_eq!(stdout(&ended), "", "{args:?}");
    }
}

#[test]
fn without_a_kernel_it_says_how_to_get_one() {
    let ended = Program::without_kit().run(&["run"], "").code(3);
    assert!(
        stderr(&ended).contains("hint: `capsa setup`"),
        "{}",
        stderr(&ended)
    );
}

#[test]
fn an_unusable_file_is_named_and_nothing_is_left_behind() {
    let program = Program::with_kit();
    program.file("text", "no kernel, no initrd");
    program.file("empty", "");
    program.file("disk.qcow2", "not qcow2");
    program.file("raw.img", b"QFI\xfb\0\0\0\x03");
    for (args, file) in [
        (&["--kernel", "gone"][..], "gone does not exist"),
        (&["--kernel", "."], "is a folder"),
        (&["--kernel", "text"], "text"),
        (&["--kernel", "empty"], "empty"),
        (&["--kernel", "/dev/null"], "/dev/null"),
        (&["--disk", "gone.img"], "gone.img"),
        (&["--disk", "disk.qcow2"], "disk.qcow2"),
        (&["--disk", "raw.img"], "raw.img"),
        (&["--share", "gone:/x"], "gone"),
        (&["--share", "/dev/null:/x"], "/dev/null"),
    ] {
        let before = program.files();
        let ended = program.run(&[&["run"], args].concat(), "").code(3);
        let said = stderr(&ended);
        assert!(
            said.contains("error[E0202]") && said.contains(file),
            "{args:?}: {said}"
        );
        assert_eq!(program.files(), before, "{args:?}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let program = Program::without_kit();
    program.file(
        "vm.toml",
        "[boot]\nkernel = 'gone'\ninitrd = 'gone2'\n[resources]\ncpus = 0",
    );
    let ended = program
        .run(&["run", "--config", "vm.toml", "--share", "gone3:/x"], "")
        .code(2);
    for problem in ["cpus", "gone does not exist", "gone2", "gone3"] {
        assert!(
            stderr(&ended).contains(problem),
            "{problem}: {}",
            stderr(&ended)
        );
    }
}

#[test]
fn options_override_the_file() {
    let program = Program::without_kit();
    program.file(
        "vm.toml",
        "[boot]\nkernel = 'in-file'\n[disk]\npath = 'disk-in-file'",
    );
    let ended = program.run(
        &[
            "run",
            "--config",
            "vm.toml",
            "--kernel",
            "typed",
            "--disk",
            "disk-typed",
        ],
        "",
    );
    let said = stderr(&ended);
    assert!(
        said.contains("typed does not exist") && said.contains("disk-typed"),
        "{said}"
    );
    assert!(!said.contains("in-file"), "{said}");
}

#[test]
fn json_is_json_and_nothing_else() {
    let program = Program::without_kit();
    let doctor = stdout(&program.run(&["doctor", "--json"], "").success());
    let report: Value = serde_json::from_str(&doctor).unwrap();
    let names: Vec<&str> = report["requirements"]
        .as_array()
        .unwrap()
        .iter()
        .map(|requirement| requirement["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"qemu") && names.contains(&"guest kit"),
        "{names:?}"
    );
    let chosen = report["chosen"].as_str().unwrap();
    assert!(
        chosen.starts_with("kvm") || chosen.starts_with("qemu"),
        "{report}"
    );

    for name in ["backends", "info"] {
        let list = stdout(&program.run(&[name, "--json"], "").success());
        let backends: Value = serde_json::from_str(&list).unwrap();
        let backends = backends.as_array().unwrap();
        let named = |name| backends.iter().find(|status| status["backend"] == name);
        let (kvm, qemu) = (named("kvm").unwrap(), named("qemu").unwrap());
        assert!(qemu["capabilities"]["max_cpus"].as_u64().unwrap() > 0);
        // Where it does not work it says why.
        assert_ne!(
            kvm["capabilities"].is_null(),
            kvm["info"]["unavailable"].is_null(),
            "{kvm}"
        );
    }
}

#[test]
fn the_doctor_says_what_mends_what_is_missing() {
    let program = Program::without_kit();
    for name in ["doctor", "--check-system"] {
        let text = stdout(&program.run(&[name], "").success());
        assert!(text.contains("mend: capsa setup"), "{text}");
        assert!(
            text.lines().last().unwrap().starts_with("VMs run on qemu"),
            "{text}"
        );
    }
    let text = stdout(&program.run(&["doctor"], "").success());
    let mke2fs = text.lines().find(|line| line.starts_with("mke2fs"));
    assert!(mke2fs.unwrap().contains("found"), "{text}");
    let mut command = program.command(&["doctor"]);
    command.env("PATH", "/nonexistent");
    let ended = assert_cmd::Command::from_std(command).assert().code(3);
    assert!(
        stdout(&ended).contains("No VM can run"),
        "{}",
        stdout(&ended)
    );
}

#[test]
fn there_is_no_colour_on_a_pipe() {
    let program = Program::without_kit();
    for args in [
        &["doctor"][..],
        &["backends"],
        &["run"],
        &["run", "-x"],
        &["--help"],
    ] {
        let ended = program.run(args, "");
        let said = stdout(&ended) + &stderr(&ended);
        assert!(!said.contains('\x1b'), "{args:?}: {said:?}");
    }
}

#[test]
fn completions_are_scripts_of_their_shell() {
    let program = Program::without_kit();
    for (shell, sign) in [
        ("bash", "complete -F _capsa"),
        ("zsh", "#compdef capsa"),
        ("fish", "complete -c capsa"),
    ] {
        let script = stdout(&program.run(&["completions", shell], "").success());
        assert!(script.contains(sign), "{shell}: {script}");
        assert!(script.contains("require-isolation"), "{shell}");
    }
}

#[test]
fn the_version_is_on_standard_output() {
    let program = Program::without_kit();
    let version = concat!("capsa ", env!("CARGO_PKG_VERSION"), "\n");
    for name in ["version", "--version", "-V"] {
        assert_eq!(stdout(&program.run(&[name], "").success()), version);
    }
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    let program = Program::without_kit();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = program.command(&["completions", "bash"]);
    command.stdout(writer).stderr(std::process::Stdio::piped());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn setup_names_what_it_cannot_use_and_makes_no_kit() {
    let program = Program::without_kit();
    program.file("text", "no kernel");
    std::fs::create_dir(program.folder().join("modules")).unwrap();
    let args = [
        "setup",
        "--folder",
        "kit",
        "--kernel",
        "text",
        "--modules",
        "modules",
    ];
    let ended = program.run(&args, "").code(3);
    assert!(stderr(&ended).contains("modules/"), "{}", stderr(&ended));
    assert_eq!(stdout(&ended), "");
    assert!(!program.folder().join("kit/manifest.json").exists());
}
