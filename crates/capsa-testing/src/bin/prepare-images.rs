//! Makes the guests and disks of the tests, so that none of them waits for a download.

fn main() {
    capsa_testing::images::prepare_all();
}
