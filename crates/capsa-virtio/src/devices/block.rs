//! The block device (5.2), over raw and qcow2 images.
