//! The command tcpr.
fn main() {}
