//! The capsa command.
fn main() {}
