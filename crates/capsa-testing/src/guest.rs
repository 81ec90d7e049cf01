//! A VM with a shell, driven over its console.

use std::path::Path;
use std::time::Duration;

use capsa::{BackendChoice, Capsa, LinuxBoot, LinuxVmBuilder, VmConsole, VmHandle, kit};

use crate::images;

/// How long anything in a guest may take. An emulated guest boots in seconds; this is for a
/// machine that runs much else beside it, and only a test that fails waits so long.
pub const LIMIT: Duration = Duration::from_secs(180);

/// How long a VM whose console has ended may take to end.
const END_LIMIT: Duration = Duration::from_secs(20);

/// A variable with words for the kernel line of every [`kit_vm`]. `cargo xtask kvm` sets it where
/// KVM is emulated, to save guests what costs the most there.
const CMDLINE_VARIABLE: &str = "CAPSA_TEST_CMDLINE";

/// A variable with the number by which [`output`] divides, for the same reason: each byte of a console
/// takes up to a millisecond there.
const OUTPUT_DIVISOR_VARIABLE: &str = "CAPSA_TEST_OUTPUT_DIVISOR";

/// How much there is of what should be `amount`, of output or of other work: that, where a guest is not too
/// slow.
#[must_use]
pub fn output(amount: usize) -> usize {
    let divisor = std::env::var(OUTPUT_DIVISOR_VARIABLE).ok();
    amount / divisor.map_or(1, |text| text.parse().expect("a divisor"))
}

/// A builder for the guest kit on a backend, with a console, and without a network, whose driver takes a
/// guest's time.
pub fn kit_vm(backend: BackendChoice) -> LinuxVmBuilder {
    kit_vm_with(backend, &images::kit().initramfs)
}

/// The same with another initramfs.
pub fn kit_vm_with(backend: BackendChoice, initramfs: &Path) -> LinuxVmBuilder {
    let kit = images::kit();
    let more = std::env::var(CMDLINE_VARIABLE).unwrap_or_default();
    Capsa::with_backend(backend)
        .vm(LinuxBoot::new(&kit.kernel).initrd(initramfs))
        .memory_mb(256)
        .no_network()
        // The kernel's messages would stand between what programs print.
        .cmdline_arg("quiet")
        .cmdline_args(more.split_whitespace())
        .console_enabled()
}

/// A VM whose shell waits for a command.
pub struct Guest {
    /// The VM.
    pub vm: VmHandle,
    /// Its console; everything up to the prompt is read.
    pub console: VmConsole,
}

impl Guest {
    /// Builds and starts a VM of the guest kit, and waits for its shell.
    pub async fn boot(builder: LinuxVmBuilder) -> Self {
        Self::start(builder.build().await.expect("the VM can be built")).await
    }

    /// Starts a VM of the guest kit, and waits for its shell.
    pub async fn start(vm: VmHandle) -> Self {
        vm.start().await.expect("the VM starts");
        let mut console = vm.console().await.expect("the VM has a console");
        let boot = console.wait_for_timeout(kit::PROMPT, LIMIT).await;
        if let Err(error) = boot {
            // The console ends before it is known how the VM did.
            let end = vm.wait_timeout(END_LIMIT).await;
            let failure = vm.failure().map(|failure| failure.full_message());
            panic!(
                "the guest's shell does not prompt: {error}; the VM's end: {end:?}, {failure:?}"
            );
        }
        Self { vm, console }
    }

    /// Runs a command and returns its exit status and what it printed, the last line end
    /// excluded. The command must not read its standard input.
    pub async fn run(&mut self, command: &str) -> (u32, String) {
        // The echo of the line holds `<<$?>>`, so only the shell's own words can match.
        let line = format!("echo '<<'; {command}; echo \"<<$?>>\"");
        self.console
            .write_line(&line)
            .await
            .expect("the console takes a line");
        let output = self
            .console
            .wait_for_regex_timeout("<<[0-9]+>>", LIMIT)
            .await;
        let output = output.expect("the command ends").replace('\r', "");
        let (_, output) = output.rsplit_once("\n<<\n").expect("the command's mark");
        let (output, status) = output.rsplit_once("<<").expect("the status' mark");
        let status = status.trim_end_matches('>').parse().expect("a status");
        (status, output.trim_end_matches('\n').to_owned())
    }

    /// Runs a command that must succeed.
    pub async fn ok(&mut self, command: &str) -> String {
        let (status, output) = self.run(command).await;
        assert_eq!(status, 0, "{command} failed in the guest: {output}");
        output
    }

    /// Types a line without waiting for anything.
    pub async fn type_line(&mut self, line: &str) {
        self.console
            .write_line(line)
            .await
            .expect("the console takes a line");
    }
}
