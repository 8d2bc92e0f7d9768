//! The program and its maps in the kernel: what is pinned outlives the agent, attaching, events.
//!
//! Every test has a bpffs and namespaces of its own, so none sees another's pins.

mod attach;
mod events;
mod maps;
mod rig;
mod takeover;
