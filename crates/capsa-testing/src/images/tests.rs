//! The images themselves; what boots from them is tested by the behaviours.

use super::*;

#[test]
fn every_image_is_made_once_and_shared() {
    prepare_all();
    for image in [rootfs_raw(), rootfs_qcow2(), uefi_disk()] {
        let before = image.metadata().unwrap().modified().unwrap();
        prepare_all();
        assert_eq!(image.metadata().unwrap().modified().unwrap(), before);
        assert!(image.metadata().unwrap().permissions().readonly());
    }
}

#[test]
fn a_copy_can_be_written_to_and_goes_away() {
    let image = rootfs_raw();
    let copy = fresh_copy(&image);
    let path = copy.path();
    std::fs::File::options().write(true).open(&path).unwrap();
    assert_eq!(path.extension(), image.extension());
    assert_eq!(
        std::fs::read(&path).unwrap(),
        std::fs::read(&image).unwrap()
    );
    drop(copy);
    assert!(!path.exists());
}
