//! Placeholder.
#[expect(dead_code, reason = "setup uses it next")]
mod toolchain;

fn main() {}
