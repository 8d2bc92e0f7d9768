//! The compiled BPF objects, as `build.rs` left them.

/// The load balancer's XDP program and its maps.
pub static LB: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// The XDP program that takes packets out of tunnels, for backends, and its maps.
pub static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-decap-ebpf"));

/// What `cargo xtask bench datapath` measures with: harness, generator, floors and sink. The agent
/// never loads it.
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-bench-ebpf"));
