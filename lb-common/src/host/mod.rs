//! The data path on the host: a byte buffer and std maps behind the traits that the XDP program
//! implements over a frame and BPF maps.
//!
//! Runs the very code that runs in the kernel, for tests, fuzzing and tracing. Promises that a
//! frame meets the same maps here as there: [`HostTables`] and [`HostFlows`] behave as the BPF maps
//! do, down to the cell that lies beyond a table's end.
//!
//! Reading order: [`packet`], [`tables`], [`flows`] (the traits); [`world`] (a fixed set-up);
//! [`Balancer`] (both together); [`frame`] (frames made, read and described), [`traffic`] (random ones), [`fixtures`] (frames
//! whose fate is written down). [`decap`] has the same for a backend.

mod balancer;
pub mod decap;
pub mod fixtures;
pub mod flows;
pub mod frame;
pub mod packet;
pub mod tables;
pub mod traffic;
pub mod world;

pub use balancer::Balancer;
pub use flows::HostFlows;
pub use packet::HostPacket;
pub use tables::{HostTables, Route};

use crate::{
    abi::Reason,
    datapath::{self, End, Flows, Tables, Verdict, parse::Parsed},
};

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Where it goes.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Its bytes afterwards.
    pub frame: Vec<u8>,
}

/// A frame's whole way, as [`datapath::process`] in the XDP program.
pub fn process<T: Tables, F: Flows>(
    frame: &[u8],
    ifindex: u32,
    tables: &T,
    flows: &mut F,
) -> Outcome {
    let mut packet = HostPacket::new(frame, ifindex);
    let mut parsed = Parsed::default();
    let end = datapath::process(&mut packet, &mut parsed, tables, flows);
    let (verdict, reason) = match end {
        End::Sent(verdict, reason) => (verdict, reason),
        End::Answer(answer) => datapath::answer(&mut packet, &parsed, &answer, tables, flows),
        End::Later => datapath::fragment::follow(&mut packet, &parsed, tables, flows),
    };
    Outcome {
        verdict,
        reason,
        frame: packet.bytes().to_vec(),
    }
}
