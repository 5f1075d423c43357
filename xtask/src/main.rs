//! Chores of the repository that need more than a line of shell.
fn main() {}
