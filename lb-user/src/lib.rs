//! The userspace half of the load balancer.
//!
//! What was written ([`config::raw`]) becomes what is meant ([`config`]), that becomes what the
//! maps should hold, and [`plan`] says what must change for it; `kernel` and [`network`] carry it
//! out.

pub mod api;
pub mod cli;
pub mod config;
pub mod instance;
pub mod network;
pub mod output;
pub mod plan;
pub mod state;
