//! The decapsulating program in the kernel, one frame at a time, as [`crate::kernel`] has the load
//! balancer's. To be used within [`crate::kernel::isolated`].

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key},
    programs::Xdp,
};
use lb_common::{
    abi::{
        Address,
        decap::{Counters, Settings, VERSION},
    },
    datapath::parse::Family,
    host::decap::HostReceiver,
};
use lb_user::objects;

use crate::kernel::Ran;

/// The loaded program and its counters.
pub struct Decap {
    ebpf: Ebpf,
    counters: PerCpuArray<MapData, Counters>,
}

impl Decap {
    /// Loads the program with the sources and the port of `receiver`. Addresses and routes are the
    /// kernel's own.
    ///
    /// # Errors
    ///
    /// If the kernel refuses it; with the verifier's last words.
    pub fn load(receiver: &HostReceiver) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .load(objects::DECAP)
            .context("cannot load lb-decap-ebpf")?;
        let mut sources: LpmTrie<_, Address, u32> = take(&mut ebpf, "sources")?.try_into()?;
        for source in &receiver.sources {
            let version = match source.family {
                Family::V4 => 4,
                Family::V6 => 6,
            };
            sources.insert(&Key::new(source.bits, source.address), version, 0)?;
        }
        let mut settings: Array<_, Settings> = take(&mut ebpf, "settings")?.try_into()?;
        let wanted = Settings {
            version: VERSION,
            gue_port: receiver.gue_port,
            ..Settings::default()
        };
        settings.set(0, wanted, 0)?;
        program(&mut ebpf)?
            .load()
            .context("the kernel refuses lb-decap-ebpf")?;
        Ok(Self {
            counters: take(&mut ebpf, "counters")?.try_into()?,
            ebpf,
        })
    }

    /// How many instructions the verifier looked at.
    ///
    /// # Errors
    ///
    /// If the kernel does not say.
    pub fn verified_instructions(&mut self) -> Result<u32> {
        let info = program(&mut self.ebpf)?.info()?;
        info.verified_instruction_count()
            .context("the kernel does not tell how many instructions it has verified")
    }

    /// Runs the program on a frame that came in on an interface.
    ///
    /// # Errors
    ///
    /// If the kernel does not take the frame (it must have an Ethernet header and fit a page).
    pub fn run(&mut self, ifindex: u32, frame: &[u8]) -> Result<Ran> {
        Ran::of(program(&mut self.ebpf)?, ifindex, frame)
    }

    /// What came in.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        let per_cpu = self.counters.get(&0, 0)?;
        Ok(per_cpu
            .iter()
            .fold(Counters::default(), |sum, counters| sum.plus(counters)))
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf
        .program_mut("lb_decap")
        .context("lb-decap-ebpf has no program lb_decap")?;
    Ok(program.try_into()?)
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("lb-decap-ebpf has no map {name}"))
}
