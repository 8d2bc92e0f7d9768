//! The compiled BPF objects, as `build.rs` left them.

/// The load balancer's XDP program and its maps.
pub static LB: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// What `cargo xtask bench datapath` measures with: harness, generator, floors and sink. The agent
/// never loads it.
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-bench-ebpf"));
