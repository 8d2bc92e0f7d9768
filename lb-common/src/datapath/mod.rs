//! What happens to a packet.

pub mod select;
