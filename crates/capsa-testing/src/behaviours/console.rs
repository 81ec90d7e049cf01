//! The console as a machine serves it.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use capsa::{BackendChoice, ConsoleMode, Error, VmStatus};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::holder::Daemon;
use crate::guest::{Guest, LIMIT, kit_vm, output};

/// A guest writes more than the ring holds while nobody reads, comes to its end of it, and is killed
/// all the same.
pub async fn output_that_nobody_reads_stalls_neither_guest_nor_kill(backend: BackendChoice) {
    const RING: usize = 1 << 20;
    let bytes = output(RING + RING / 4);
    let mut guest = Guest::boot(kit_vm(backend)).await;
    let mut unread = guest.vm.console().await.expect("console");
    guest
        .type_line(&format!(
            "head -c {bytes} /dev/zero | tr '\\0' x; echo; echo all-'written'"
        ))
        .await;
    guest
        .console
        .wait_for_timeout("all-written", LIMIT)
        .await
        .expect("the guest goes on");
    // `kill` itself fails when it takes longer than it promises.
    guest.vm.kill().await.expect("kill");
    if bytes > RING {
        match unread.read_available().await {
            Err(Error::ConsoleOverrun { bytes }) => assert!(bytes > 0),
            other => panic!("the oldest output should be gone: {other:?}"),
        }
    }
    let rest = unread.read_available().await.expect("what is left");
    assert!(rest.contains("all-written"));
}

/// While the program that holds a VM does not get to run, the guest prints on, and all of it is
/// there in the end.
pub async fn a_holder_that_stands_still_costs_the_guest_no_byte(backend: BackendChoice) {
    let last = output(20_000);
    let temporary = tempfile::tempdir().expect("a folder");
    let mut daemon = Daemon::start(backend, temporary.path().into());
    let stderr = daemon.process.stderr.take().expect("a pipe");
    let mut lines = BufReader::new(stderr)
        .lines()
        .map(|line| line.expect("text"));
    daemon.order("start one");
    let shell = lines.find(|line| line.contains("Enter 'help'"));
    shell.expect("the guest's shell");
    // Not between a word of the kernel's.
    daemon.order(&format!(
        "type one dmesg -n 1; seq 1 {last}; echo the-'end'"
    ));
    let pid = Pid::from_child(&daemon.process);
    let stalls = std::thread::spawn(move || {
        for _ in 0..10 {
            kill_process(pid, Signal::STOP).expect("our own child");
            std::thread::sleep(Duration::from_millis(200));
            kill_process(pid, Signal::CONT).expect("our own child");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let printed = lines.map(|line| line.trim_start_matches("one| ").trim().to_owned());
    let numbers: Vec<String> = printed
        .skip_while(|line| line != "1")
        .take_while(|line| line != "the-end")
        .collect();
    stalls.join().expect("no panic");
    let expected: Vec<String> = (1..=last).map(|number| number.to_string()).collect();
    let differs = numbers
        .iter()
        .zip(&expected)
        .find(|(number, expected)| number != expected);
    assert!(
        numbers == expected,
        "{} lines, first difference {differs:?}",
        numbers.len()
    );
}

/// The output of a VM stays readable after its end, and writing says why it fails.
pub async fn a_dead_vm_keeps_its_console(backend: BackendChoice) {
    let mut guest = Guest::boot(kit_vm(backend)).await;
    guest.type_line("echo last-'words'; poweroff -f").await;
    assert_eq!(
        guest.vm.wait().await.expect("wait"),
        VmStatus::Stopped { exit_code: None }
    );
    let mut console = guest.vm.console().await.expect("a console after the end");
    let text = console
        .wait_for_timeout("last-words", LIMIT)
        .await
        .expect("the output");
    assert!(text.contains(capsa::kit::PROMPT));
    match console.wait_for_timeout("never", LIMIT).await {
        Err(Error::PatternNotFound { .. }) => {}
        other => panic!("{other:?}"),
    }
    match console.write_line("anyone?").await {
        Err(Error::NotRunning { status, .. }) => {
            assert_eq!(*status, VmStatus::Stopped { exit_code: None });
        }
        other => panic!("{other:?}"),
    }
}

/// All byte values pass to the guest and back through the split halves.
pub async fn bytes_pass_both_ways_unchanged(backend: BackendChoice) {
    let mut guest = Guest::boot(kit_vm(backend)).await;
    // The terminal passes every byte and echoes none; `head` ends the exchange. The kernel, which may
    // have to complain of a clock on a busy host, prints nothing in between.
    guest
        .type_line("dmesg -n 1; stty raw -echo; echo re''ady; head -c 4096; stty sane; echo do''ne")
        .await;
    guest
        .console
        .wait_for_timeout("ready\n", LIMIT)
        .await
        .expect("raw mode");
    let (mut reader, mut writer) = guest.console.split();
    let sent: Vec<u8> = (0..=255).cycle().take(4096).collect();
    writer.write_all(&sent).await.expect("write");
    let mut received = vec![0; sent.len()];
    let reading = tokio::time::timeout(LIMIT, reader.read_exact(&mut received)).await;
    reading.expect("in time").expect("read");
    let changed = (0..sent.len()).find(|&at| received[at] != sent[at]);
    let shown = changed.map(|at| received[at.saturating_sub(8)..].escape_ascii().take(400));
    let shown = shown.map(|shown| shown.map(char::from).collect::<String>());
    assert_eq!(shown, None, "the bytes changed on their way at {changed:?}");
    guest.vm.kill().await.expect("kill");
}

/// Without a console for the program there is still something to show when the VM fails.
pub async fn a_vm_without_a_console_keeps_its_last_lines(backend: BackendChoice) {
    let builder = kit_vm(backend).console(ConsoleMode::Disabled);
    let vm = builder
        .cmdline_arg("rdinit=/none")
        .build()
        .await
        .expect("build");
    assert_eq!(vm.console().await.err().map(|e| e.code()), Some("E0401"));
    vm.start().await.expect("start");
    vm.wait().await.expect("wait");
    let tail = vm.console_tail();
    assert!(tail.contains("Kernel Offset"), "{tail}");
}
