//! `capsa backends`.

use std::fmt::{self, Write};

use capsa::{BackendCapabilities, BackendStatus, BootMethod};

use crate::exit::Done;
use crate::stdout;

/// Lists what every backend of this build can do on this machine, the best first.
pub(crate) fn backends(json: bool) -> Done {
    let backends = capsa::backends();
    match json {
        true => stdout::json(&backends),
        false => stdout::text(&backends.iter().map(describe).collect::<String>()),
    }
}

fn describe(status: &BackendStatus) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = match &status.info {
        Ok(info) => writeln!(text, "{info}"),
        Err(refusal) => writeln!(text, "{refusal}"),
    };
    if let Err(refusal) = &status.info
        && let Some(hint) = &refusal.hint
    {
        let _ = writeln!(text, "  mend:       {hint}");
    }
    if let Some(capabilities) = &status.capabilities {
        let _ = writeln!(text, "{}", Lines(capabilities));
    }
    text
}

struct Lines<'a>(&'a BackendCapabilities);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let capabilities = self.0;
        let boot = capabilities.boot_methods.iter().map(|method| match method {
            BootMethod::LinuxDirect => "direct",
            BootMethod::Uefi => "uefi",
            _ => "other",
        });
        let disks = capabilities
            .image_formats
            .iter()
            .map(|format| format.name());
        let networks = capabilities.network_modes.iter().map(ToString::to_string);
        let shares = named([
            (capabilities.virtio_fs, "virtio-fs"),
            (capabilities.virtio_9p, "9p"),
        ]);
        let more = named([
            (capabilities.pause, "pause"),
            (capabilities.snapshot, "snapshot"),
            (capabilities.vsock, "vsock"),
        ]);
        writeln!(f, "  isolation:  {}", capabilities.isolation)?;
        writeln!(f, "  boots:      {}", list(boot))?;
        writeln!(f, "  disks:      {}", list(disks))?;
        writeln!(f, "  shares:     {}", list(shares))?;
        writeln!(f, "  networks:   {}", list(networks))?;
        writeln!(f, "  more:       {}", list(more))?;
        let (cpus, memory) = (capabilities.max_cpus, capabilities.max_memory_mb);
        write!(f, "  at most:    {cpus} vCPUs, {memory} MiB")
    }
}

fn named<const N: usize>(
    features: [(bool, &'static str); N],
) -> impl Iterator<Item = &'static str> {
    features
        .into_iter()
        .filter_map(|(has, name)| has.then_some(name))
}

fn list(names: impl Iterator<Item = impl Into<String>>) -> String {
    let names: Vec<String> = names.map(Into::into).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}
