//! `capsa policy`, and what `--net` takes, without a VM.

use serde_json::Value;

use crate::program::{Program, stderr, stdout};

/// The page about policies, whose examples are run.
const PAGE: &str = include_str!("../../../../docs/network-policy.md");

#[test]
fn the_pages_examples_are_true() {
    let program = Program::without_kit();
    let (mut policies, mut commands) = (0, 0);
    for block in PAGE.split("\n```").skip(1).step_by(2) {
        if let Some(policy) = block.strip_prefix("toml\n") {
            policies += 1;
            program.file("policy.toml", policy);
            let ended = program.run(&["policy", "check", "policy.toml", "0.0.0.0:1"], "");
            ended.code(1);
        } else if let Some(example) = block.strip_prefix("console\n$ capsa ") {
            commands += 1;
            let (command, expected) = example.split_once('\n').unwrap();
            let args: Vec<&str> = command.split(' ').collect();
            let shown = stdout(&program.run(&args, ""));
            assert_eq!(shown.trim_end(), expected, "{command}");
        }
    }
    assert_eq!((policies, commands), (2, 7));
}

#[test]
fn the_status_says_what_is_decided() {
    let program = Program::without_kit();
    program.file(
        "p.toml",
        "default = 'deny'\nrules = ['crates.io:443', '9.9.9.9:53']",
    );
    for (args, code) in [
        (&["crates.io:443"][..], 0),
        (&["9.9.9.9:53", "--udp"], 0),
        (&["crates.io:80"], 1),
        (&["crates.io:443", "--udp"], 1),
        (&["https://crates.io"], 2),
        (&["0177.0.0.1:80"], 2),
    ] {
        let args = [&["policy", "check", "p.toml"], args].concat();
        program.run(&args, "").code(code);
    }
    program.file(
        "open.toml",
        "default = 'allow'\nrules = [{ deny = '0.0.0.0/0', ports = 25 }]",
    );
    for (to, code, part) in [("a.com:25", 1, Some(true)), ("a.com:80", 0, None)] {
        let ended = program.run(&["policy", "check", "--json", "open.toml", to], "");
        let json: Value = serde_json::from_str(&stdout(&ended.code(code))).unwrap();
        assert_eq!(json.get("in_part").and_then(Value::as_bool), part, "{to}");
    }
    let args = ["policy", "check", "--json", "p.toml", "crates.io:443"];
    let json = stdout(&program.run(&args, "").success());
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["action"], "allow");
    assert_eq!(json["stages"][2]["event"], "name");
    assert_eq!(json["stages"][2]["rule"], "crates.io:443");
}

#[test]
fn everything_that_is_wrong_with_a_policy_is_told_with_its_place() {
    let program = Program::without_kit();
    let check = |text: &str| {
        program.file("p.toml", text);
        let ended = program.run(&["policy", "check", "p.toml", "a.com:443"], "");
        stderr(&ended.code(2))
    };
    let told = check(
        "defualt = 'deny'\n\
         [[rules]]\nallow = '10.0.0.1/8'\nport = 1\n\
         [[rules]]\nid = 'b'\n\
         [[rules]]\nallow = 'c.com'\nports = 0\ncheck = 'sni'\n",
    );
    for line in [
        "p.toml:1:1: unknown key `defualt`; the nearest is `default`",
        "p.toml:3:9: `10.0.0.1/8` has bits behind its prefix; the network is `10.0.0.0/8`",
        "p.toml:4:1: unknown key `port`; the nearest is `ports`",
        "p.toml:5:1: a rule says either what to `allow` or what to `deny`",
        "p.toml:9:9: `0` is no port from 1 to 65535",
        "p.toml:10:9: unknown value `sni`; the nearest is `web`",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    assert_eq!(told.matches("p.toml:").count(), 6, "{told}");
    let told = check("default = 'deny'\nrules = ['*.com',\n 'a.com',\n { deny = 'a.com' }]");
    for line in [
        "p.toml:2:10: rule `*.com` allows",
        "p.toml:4:2: two rules have the id `a.com`",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    assert!(check("rules = []").contains("the key `default` is missing"));
}
