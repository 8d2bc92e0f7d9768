//! Placeholder.

pub mod objects;
