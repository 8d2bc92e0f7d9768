//! What the XDP program and the agent share.

#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod abi;
pub mod datapath;
pub mod decap;
#[cfg(feature = "host")]
pub mod host;
pub mod wire;
