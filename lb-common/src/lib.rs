//! What the XDP programs and the agent share: [`datapath`] is the load balancer's side, [`decap`] the
//! side of a backend behind a tunnel.

#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod abi;
pub mod datapath;
pub mod decap;
#[cfg(feature = "host")]
pub mod host;
pub mod wire;
