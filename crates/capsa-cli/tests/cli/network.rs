//! What may be said about a network, and `capsa policy learn`, with VMs in a world of their own: this machine,
//! and behind a cable another one with a resolver and a web server at public addresses.
//!
//! The test runs itself again in two namespaces of the kernel, which are the two machines.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::Duration;

use capsa_testing::{images, servers};
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

    // The same under that policy, and nothing else; ports lead into it meanwhile.
    let script = format!(
        "cat > /peer; chmod +x /peer; /peer serve 9 > /dev/null & \
         {fetch}; wget -qO- http://{FAR}/; echo; hostname; echo knock | nc -l -p 7"
    );
    let args = [
        "exec",
        "--net",
        "policy=p.toml",
        "--net-log",
        "log",
        "--hostname",
        "box",
        "--publish",
        "0:9/udp",
        "--publish",
        "0:7",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let peer = images::guest_program("net-peer");
    let mut running = Running::start(&program, &args, &peer);
    assert_eq!(ask(running.taken("UDP", 9)), b"ping");
    let port = running.taken("TCP", 7);
    assert_eq!(running.knock(port), "knock\n");
    assert_eq!(running.end(), "welcome\nbox\n");
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

    boot(&program);

    // A port is taken: that is told before there is a VM.
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = taken.local_addr().unwrap();
    let publish = format!("{taken}:80");
    let refused = program.run(&["run", "--publish", &publish], "").code(3);
    let refused = stderr(&refused);
    assert!(
        refused.contains(&format!("cannot listen on {taken} (TCP)"))
            && refused.contains("choose another address or port"),
        "{refused}"
    );

    drop(far.stdin.take());
    far.wait().unwrap();
}

/// `capsa run`, which has all of it from a file.
fn boot(program: &Program) {
    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = service.local_addr().unwrap().port();
    let serving = thread::spawn(move || {
        let (mut stream, _) = service.accept().unwrap();
        let mut request = BufReader::new(stream.try_clone().unwrap());
        wait_for(&mut request, "");
        let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nlocal";
        stream.write_all(answer).unwrap();
    });
    program.file(
        "vm.toml",
        format!(
            "[network]\n\
             mode = 'nat'\n\
             publish = ['0:7']\n\
             host_services = ['web.internal={port}:8000']\n\
             subnet = '10.9.8.0/24'\n\
             subnet6 = 'fd00:9:8::/64'\n\
             mac = '02:00:00:00:00:07'\n\
             hostname = 'box'\n\
             log = 'run.log'\n"
        ),
    );
    let script = "hostname; cat /sys/class/net/eth0/address
        ip -4 -o addr show dev eth0 | grep -o 'inet [0-9.]*/24'
        until ip -6 -o addr show dev eth0 | grep -o 'fd00:9:8:'; do usleep 100000; done
        wget -qO- http://web.internal:8000/; echo; echo knock | nc -l -p 7\n";
    let mut running = Running::start(program, &["run", "--config", "vm.toml"], script.as_bytes());
    let port = running.taken("TCP", 7);
    assert_eq!(running.knock(port), "knock\n");
    let output = running.end();
    for said in [
        "box\n",
        "02:00:00:00:00:07\n",
        "inet 10.9.8.3/24\n",
        "fd00:9:8:",
        "local\n",
    ] {
        assert!(output.replace('\r', "").contains(said), "{said}: {output}");
    }
    serving.join().unwrap();
    let log = std::fs::read_to_string(program.folder().join("run.log")).unwrap();
    assert!(
        log.contains(r#""event":"connect""#) && log.contains("web.internal"),
        "{log}"
    );
}

/// The program, with what it says on standard error. What it prints is read meanwhile.
struct Running {
    child: Child,
    output: thread::JoinHandle<String>,
    told: Vec<String>,
    errors: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(program: &Program, args: &[&str], input: &[u8]) -> Self {
        let mut child = program
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input).unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let output = thread::spawn(move || {
            let mut output = String::new();
            stdout.read_to_string(&mut output).unwrap();
            output
        });
        let errors = BufReader::new(child.stderr.take().unwrap()).lines();
        Self {
            child,
            output,
            told: Vec::new(),
            errors,
        }
    }

    /// The port that was taken for one of the guest's.
    fn taken(&mut self, protocol: &str, port: u16) -> SocketAddr {
        let begins = format!("capsa: {protocol} ");
        let ends = format!(" leads to port {port} of the guest");
        loop {
            let taken = self.told.iter().find_map(|line| {
                let taken = line.strip_prefix(&begins)?.strip_suffix(&ends)?;
                Some(taken.parse().unwrap())
            });
            if let Some(taken) = taken {
                return taken;
            }
            let line = self.errors.next();
            let line = line.unwrap_or_else(|| panic!("{ends}: {:?}", self.told));
            self.told.push(line.unwrap());
        }
    }

    /// What the guest says there. As long as nobody listens in it, connections are cut.
    fn knock(&mut self, at: SocketAddr) -> String {
        let mut knocked = String::new();
        while knocked.is_empty() && self.child.try_wait().unwrap().is_none() {
            // Not so often that it takes the guest's processor.
            thread::sleep(Duration::from_millis(20));
            if let Ok(mut stream) = TcpStream::connect(at) {
                let _ = stream.read_to_string(&mut knocked);
            }
        }
        knocked
    }

    /// What it has printed, when it has ended well.
    fn end(mut self) -> String {
        self.told.extend(self.errors.map(Result::unwrap));
        let output = self.output.join().unwrap();
        assert!(
            self.child.wait().unwrap().success(),
            "{output}{:?}",
            self.told
        );
        output
    }
}

/// Sends a datagram until there is an answer: those before the guest's program are lost.
fn ask(to: SocketAddr) -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(to).unwrap();
    let second = Duration::from_secs(1);
    socket.set_read_timeout(Some(second)).unwrap();
    let mut answer = [0; 100];
    let answers = (0..100).find_map(|_| {
        socket.send(b"ping").unwrap();
        socket.recv(&mut answer).ok()
    });
    answer[..answers.expect("an answer")].to_vec()
}
