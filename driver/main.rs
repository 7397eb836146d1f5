//! The command `virtfold`.

fn main() {}
