//! A rig for tests of the load balancer on real networks: namespaces, veth, servers and clients.
//!
//! Nothing in it sends a packet outside the namespaces it made. Reading order: [`topology`] (the
//! networks, with a drawing), [`server`] and [`client`] (who talks), [`agent`] (the program under
//! test), [`scene`] (a network with it) and [`claims`] (what holds there in every mode), [`frames`]
//! (frames made by hand), [`tunnels`] (backends behind them); below them [`netns`], [`process`] and [`wait`]. [`kernel`] runs the
//! program alone, on single frames; [`programs`] make packets by the hundred thousand, each after a
//! [`template`].

pub mod agent;
pub mod claims;
pub mod client;
pub mod frames;
pub mod kernel;
pub mod netns;
pub mod process;
pub mod programs;
pub mod scene;
pub mod server;
pub mod template;
pub mod topology;
pub mod tunnels;
pub mod wait;
