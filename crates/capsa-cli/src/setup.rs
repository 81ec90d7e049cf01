//! `capsa setup`: makes the guest kit.

use capsa::kit::{self, Kit, KitOptions, KitSource};

use crate::cli::SetupArgs;
use crate::exit::Done;
use crate::progress::Steps;
use crate::{messages, stdout};

/// Makes the kit, and prints its folder.
pub(crate) fn setup(args: SetupArgs) -> Done {
    let source = match (args.kernel, args.modules) {
        (Some(kernel), Some(modules)) => KitSource::Files { kernel, modules },
        _ if args.host => KitSource::Host,
        _ => KitSource::DebianPackage,
    };
    let folder = match args.folder {
        Some(folder) => folder,
        None => kit::default_folder()?,
    };
    let options = KitOptions {
        source,
        busybox: args.busybox,
        folder: Some(folder.clone()),
        ..KitOptions::default()
    };
    let mut steps = Steps::new();
    let made = kit::make(&options, &mut |progress| steps.show(progress));
    drop(steps);
    messages::note(&description(&made?));
    stdout::text(&format!("{}\n", folder.display()))
}

fn description(kit: &Kit) -> String {
    let manifest = &kit.manifest;
    let packages = manifest
        .packages
        .iter()
        .map(|package| format!("{} {}", package.name, package.version))
        .collect::<Vec<_>>()
        .join(", ");
    let origin = match packages.is_empty() {
        true => String::new(),
        false => format!(", from {packages}"),
    };
    format!(
        "made a guest kit of Linux {} with {} modules and {}{origin}",
        manifest.kernel_release,
        manifest.modules.len(),
        manifest.busybox,
    )
}
