//! A rig for tests of the load balancer on real networks: namespaces, veth, servers and clients.
//!
//! Nothing in it sends a packet outside the namespaces it made. Reading order: [`topology`] (the
//! networks, with a drawing), [`server`] and [`client`] (who talks), [`frames`] (frames made by
//! hand); below them [`netns`], [`process`] and [`wait`].

pub mod client;
pub mod frames;
pub mod netns;
pub mod process;
pub mod server;
pub mod topology;
pub mod wait;
