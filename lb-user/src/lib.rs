//! The userspace half of the load balancer.
//!
//! What was written ([`config::raw`]) becomes what is meant ([`config`]), that becomes what the
//! maps should hold, and [`plan`] says what must change for it; [`kernel`] and [`network`] carry it
//! out. [`agent`] is the process that holds all of this together, [`commands`] what can be typed,
//! and [`api`] what the two say to each other.

pub mod agent;
pub mod api;
pub mod cli;
pub mod commands;
pub mod config;
pub mod events;
pub mod instance;
pub mod kernel;
pub mod network;
pub mod objects;
pub mod output;
pub mod plan;
pub mod recipe;
pub mod state;
pub mod trace;
