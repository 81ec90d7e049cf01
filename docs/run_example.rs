// The last line of the examples in FAILURES.md: runs `example` on a VM without a guest.
{
    let folder = tempfile::tempdir().expect("a folder");
    let kernel = folder.path().join("vmlinuz");
    std::fs::write(&kernel, capsa::fake::kernel_image()).expect("a kernel");
    let builder = capsa::Capsa::with_backend(capsa::BackendChoice::Fake)
        .linux(capsa::LinuxBoot::new(kernel))
        .console_enabled();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(example(builder))
        .expect("the example works");
}
