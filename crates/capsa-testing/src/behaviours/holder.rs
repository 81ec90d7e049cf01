//! The VM and the program that holds it: neither outlives the other, except where it must.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use capsa::network::{PortForward, Protocol, UserNetwork};
use capsa::{BackendChoice, DiskImage, VmStatus};

use crate::guest::{Guest, LIMIT, kit_vm};
use crate::images;
use crate::processes::{self, Holdings, eventually};

/// The VM of a holder that was killed is gone within 2 s: ten times that, for a machine with much to do.
const ORPHAN_LIMIT: Duration = Duration::from_secs(20);

/// Drops the last handle inside a multi-threaded runtime, inside a current-thread runtime, outside
/// any runtime, and after the runtime that started the VM has ended.
pub async fn dropping_the_last_handle_kills_in_every_context(backend: BackendChoice) {
    let machines = move || processes::machines(backend, std::process::id());
    let gone = move || eventually(LIMIT, || machines() == 0);
    let start = move || async move {
        let vm = kit_vm(backend).build().await.expect("build");
        vm.start().await.expect("start");
        // A thread has its parent's name until it has given itself its own.
        assert!(eventually(LIMIT, || machines() == 1), "{}", machines());
        vm
    };

    let vm = start().await;
    let clone = vm.clone();
    drop(vm);
    assert_eq!(clone.status(), VmStatus::Running, "a clone keeps the VM");
    let console = clone.console().await.expect("console");
    drop(clone);
    assert!(gone(), "dropped inside a multi-threaded runtime");
    drop(console);

    let elsewhere = move |context: &'static str| {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let vm = runtime.block_on(start());
            match context {
                "inside" => runtime.block_on(async move { drop(vm) }),
                "outside" => drop(vm),
                _ => {
                    drop(runtime);
                    assert_eq!(vm.status(), VmStatus::Running, "the VM needs no runtime");
                    drop(vm);
                }
            }
            assert!(gone(), "dropped {context} a current-thread runtime");
        })
    };
    for context in ["inside", "outside", "after the end of"] {
        let thread = elsewhere(context);
        let joined = tokio::task::spawn_blocking(move || thread.join());
        joined
            .await
            .expect("no panic")
            .expect("no panic in the thread");
    }
}

/// A VM that was started from a thread that has ended, as a runtime's blocking threads do when they
/// are idle, still runs and answers.
pub async fn a_vm_outlives_the_thread_that_started_it(backend: BackendChoice) {
    let starter = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(Guest::boot(kit_vm(backend)))
    });
    // Its end is the kernel's occasion to kill what was to die with it.
    let mut guest = starter.join().expect("no panic");
    assert_eq!(guest.ok("echo alive").await, "alive");
    assert_eq!(guest.vm.status(), VmStatus::Running);
    guest.vm.kill().await.expect("kill");
}

/// SIGKILL for the program that holds two VMs: both are gone, and no file is left.
pub async fn the_death_of_the_holder_ends_the_vm_and_leaves_no_file(backend: BackendChoice) {
    let temporary = tempfile::tempdir().expect("a folder");
    let disk = temporary.path().join("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20]).expect("a disk");
    let mut daemon = Daemon::start_with_disk(backend, temporary.path().into(), Some(&disk));
    let stderr = daemon.process.stderr.take().expect("a pipe");
    let mut lines = BufReader::new(stderr)
        .lines()
        .map(|line| line.expect("text"));
    for name in ["one", "two"] {
        daemon.order(&format!("start {name}"));
        let running = format!("{name}: running");
        lines.find(|line| line.starts_with(&running)).expect("a VM");
    }
    let pid = daemon.process.id();
    assert!(eventually(LIMIT, || processes::machines(backend, pid) == 2));
    // Those of Capsa's own monitor are in the holder itself.
    let machines = match backend {
        BackendChoice::Kvm => vec![pid],
        _ => processes::children(pid),
    };
    daemon.process.kill().expect("our own child");
    daemon.process.wait().expect("our own child");
    assert!(
        eventually(ORPHAN_LIMIT, || machines
            .iter()
            .all(|pid| !processes::is_alive(*pid))),
        "the machines outlive their holder"
    );
    let left: Vec<_> = std::fs::read_dir(&temporary)
        .expect("the folder")
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "more than the disk itself: {left:?}");
}

/// Twenty starts and ends, by turns asked and killed, end with the threads, descriptors, processes
/// and files that there were before.
pub async fn twenty_cycles_leave_nothing(backend: BackendChoice) {
    // Where QEMU makes its temporary files.
    let temporary = std::env::var_os("TMPDIR").map_or("/var/tmp".into(), PathBuf::from);
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("a.img");
    std::fs::write(&disk, vec![0; 1 << 20]).expect("a disk");
    let network = UserNetwork {
        forwards: vec![PortForward {
            protocol: Protocol::Tcp,
            listen: "127.0.0.1:0".parse().expect("an address"),
            guest_port: 1,
        }],
        ..UserNetwork::default()
    };
    let builder = kit_vm(backend).disk(DiskImage::new(&disk).ephemeral());
    let builder = builder.network(network);
    let cycle = async |asked: bool| {
        if asked {
            let guest = Guest::boot(builder.clone()).await;
            guest.vm.stop().await.expect("stop");
        } else {
            let vm = builder.clone().build().await.expect("build");
            vm.start().await.expect("start");
            vm.kill().await.expect("kill");
            let listened = vm.forwards()[0];
            let refused = TcpStream::connect(listened).expect_err("nobody listens");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        }
    };
    // The first cycle makes what a process makes once: the runtime's blocking thread.
    cycle(false).await;
    let settled = |holdings: &Holdings| {
        eventually(LIMIT, || {
            let now = Holdings::now(&temporary);
            now.threads <= holdings.threads
                && now.descriptors <= holdings.descriptors
                && now.children == holdings.children
                && now.temporary_files.len() <= holdings.temporary_files.len()
        })
    };
    assert!(eventually(LIMIT, || {
        processes::children(std::process::id()).is_empty()
    }));
    let before = Holdings::now(&temporary);
    for number in 0..20 {
        cycle(number % 4 == 0).await;
    }
    assert!(
        settled(&before),
        "{before:?} before, {:?} after",
        Holdings::now(&temporary)
    );
}

/// The daemon of Capsa's examples.
pub(super) struct Daemon {
    pub(super) process: Child,
}

impl Daemon {
    pub(super) fn start(backend: BackendChoice, temporary: PathBuf) -> Self {
        Self::start_with_disk(backend, temporary, None)
    }

    /// Every VM of the daemon has `disk`, ephemeral.
    fn start_with_disk(backend: BackendChoice, temporary: PathBuf, disk: Option<&Path>) -> Self {
        let kit = images::kit();
        let name = backend.kind().expect("a certain backend").name();
        let process = Command::new(example("daemon"))
            .args([&kit.kernel, &kit.initramfs])
            .arg(name)
            .args(disk)
            .env("TMPDIR", temporary)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        Self { process }
    }

    pub(super) fn order(&mut self, order: &str) {
        let stdin = self.process.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{order}").expect("the daemon reads");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The path of an example of the package under test: cargo builds them with its tests.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.parent().and_then(Path::parent);
    let path = profile.expect("a build folder").join("examples").join(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}
