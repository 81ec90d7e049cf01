//! `--net`, `--publish`, `--net-log` and `capsa policy learn` with a VM, in a world of its own: this machine,
//! and behind a cable another one with a resolver and a web server at public addresses.
//!
//! The test runs itself again in two namespaces of the kernel, which are the two machines.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use capsa_testing::servers;
use serde_json::Value;

use crate::program::{Program, stderr, stdout};

const NAME: &str = "network::vm_a_learned_policy_lets_the_same_command_pass";

/// Which of the machines the test runs on.
const MACHINE: &str = "CAPSA_TEST_MACHINE";

/// Far away, and the address of this machine's end of the cable.
const FAR: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);
const NEAR: &str = "93.184.215.1/24";

/// Runs the test again as another machine. It can be talked to by its streams.
fn machine(name: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--net", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(MACHINE, name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

fn system(command: &str) {
    // Where `ip` is, and not always on a user's path.
    let command = &format!("PATH=$PATH:/usr/sbin:/sbin\n{command}");
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// Reads lines until one is `line`.
fn wait_for(output: &mut impl BufRead, line: &str) {
    let found = output.lines().any(|read| read.unwrap() == line);
    assert!(found, "{line}");
}

#[test]
fn vm_a_learned_policy_lets_the_same_command_pass() {
    match std::env::var(MACHINE).as_deref() {
        Ok("far") => serve(),
        Ok(_) => near(),
        Err(_) => {
            let ended = machine("near").stdin(Stdio::null()).output().unwrap();
            let text = String::from_utf8_lossy(&ended.stdout);
            let errors = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success(), "{text}{errors}");
            assert!(text.contains("1 passed"), "{text}");
        }
    }
}

/// Says a line to the machine that started this one, behind what the test's own runner has said.
fn tell(line: &str) {
    let line = format!("\n{line}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

/// The other machine: serves until its standard input ends.
fn serve() {
    tell("there");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    system(&format!("ip addr add {FAR}/24 dev far; ip link set far up"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let at = |port| SocketAddr::from((FAR, port));
        servers::names_at(at(53), [("www.example.test", FAR)]).await;
        servers::web_at(at(80), "welcome").await;
    });
    tell("serving");
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Lays the cable to the other machine, whose resolver is this one's from then on.
fn connect(program: &Program) -> Child {
    let mut far = machine("far").spawn().unwrap();
    let mut output = BufReader::new(far.stdout.take().unwrap());
    wait_for(&mut output, "there");
    let resolvers = program.file("resolv.conf", format!("nameserver {FAR}\n"));
    system(&format!(
        "ip link add near type veth peer name far netns {}
         ip addr add {NEAR} dev near; ip link set near up; ip link set lo up
         mount --bind {} /etc/resolv.conf",
        far.id(),
        resolvers.display()
    ));
    let mut input = far.stdin.take().unwrap();
    input.write_all(b"\n").unwrap();
    wait_for(&mut output, "serving");
    far.stdin = Some(input);
    far
}

fn near() {
    let program = Program::with_kit();
    let mut far = connect(&program);
    let fetch = "wget -qO- http://www.example.test/";

    // Its status and its output are the command's, and what it may not is told.
    let script = format!("{fetch}; wget -qO- http://10.9.8.7/; exit 7");
    let learn = ["policy", "learn", "-o", "p.toml", "--", "sh", "-c", &script];
    let ended = program.run(&learn, "").code(7);
    assert_eq!(stdout(&ended), "welcome", "{}", stderr(&ended));
    let policy = std::fs::read_to_string(program.folder().join("p.toml")).unwrap();
    let denied = "#   TCP 10.9.8.7:80: no public address (a private network)";
    assert!(policy.contains(denied), "{policy}");
    let rules = policy.split_once("default = \"deny\"\n").unwrap().1;
    assert_eq!(rules, "rules = [\n    \"www.example.test:80\",\n]\n");
    let check = ["policy", "check", "p.toml", "www.example.test:80"];
    program.run(&check, "").success();

    // The same under that policy, and nothing else; a port leads into it meanwhile.
    let script = format!("{fetch}; wget -qO- http://{FAR}/; echo; echo knock | nc -l -p 7");
    let args = [
        "exec",
        "--net",
        "policy=p.toml",
        "--net-log",
        "log",
        "--publish",
        "0:7",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let mut child = program
        .command(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    let taken = told.find_map(|line| {
        let line = line.unwrap();
        let taken = line.strip_prefix("capsa: TCP ")?;
        let taken = taken.strip_suffix(" leads to port 7 of the guest")?;
        Some(taken.parse::<SocketAddr>().unwrap())
    });
    let taken = taken.unwrap();
    let mut knocked = String::new();
    // As long as nobody listens in the guest, connections are cut.
    while knocked.is_empty() && child.try_wait().unwrap().is_none() {
        if let Ok(mut stream) = TcpStream::connect(taken) {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_string(&mut knocked);
        }
    }
    assert_eq!(knocked, "knock\n");
    let errors: Vec<String> = told.map(Result::unwrap).collect();
    let mut output = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    assert_eq!(output, "welcome\n", "{errors:?}");
    assert!(child.wait().unwrap().success(), "{errors:?}");
    let log = std::fs::read_to_string(program.folder().join("log")).unwrap();
    let events: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let decided = |event: &str, action: &str| {
        let is = |line: &&Value| line["event"] == event && line["action"] == action;
        events.iter().find(is).unwrap_or_else(|| panic!("{log}"))
    };
    for event in ["resolve", "connect", "name"] {
        assert_eq!(decided(event, "allow")["rule"], "www.example.test:80");
    }
    // The address without the name, which the policy does not allow.
    assert_eq!(decided("name", "deny")["reason"], "no-name", "{log}");

    drop(far.stdin.take());
    far.wait().unwrap();
}
