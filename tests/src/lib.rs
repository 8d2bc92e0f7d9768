//! What the tests of the load balancer are made of.

pub mod kernel;
