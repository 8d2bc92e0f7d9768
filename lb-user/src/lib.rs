//! The userspace half of the load balancer.
//!
//! What was written  becomes what is meant , that becomes what the
//! maps should hold, and [`plan`] says what must change for it; `kernel` and `network` carry it
//! out.

pub mod events;
pub mod kernel;
pub mod network;
pub mod plan;
