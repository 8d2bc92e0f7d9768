//! Programs that make packets, and that packets are measured against (`lb-bench-ebpf`), with their
//! maps: for the benchmark, and for tests that need packets by the hundred thousand.
//!
//! Promise: what [`Programs::run_generator`] sends is the [`Template`] but for the client's address
//! (in 198.18.0.0/15, RFC 2544 appendix C.2.2; in 2001:2::/48, RFC 5180 section 8) and port; with
//! [`Globals::flows`] 0, no two packets of one object are of the same flow.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use lb_common::abi::{Flow, FlowKey, Mac};

use crate::template::Template;

/// Frames that the generator sends before it lets the kernel deliver them.
const BATCH: u32 = 64;

/// What the programs' variables are set to.
#[derive(Clone, Copy, Debug)]
pub struct Globals {
    /// Flows that packets are spread over; 0: each is of its own.
    pub flows: u32,
    /// Which end of the packets the client is.
    pub client: Client,
    /// Where the generator and the floors send to.
    pub interface: u32,
    /// Entries of the table floor's table.
    pub table: u32,
}

/// An end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// What came of a test run.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// Average for each packet, to the nanosecond, as the kernel gives it.
    pub each: Duration,
    /// The last packet's verdict.
    pub verdict: u32,
}

/// A loaded object.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    frame: Vec<u8>,
}

impl Programs {
    /// Makes the maps; programs are loaded when they are first asked for.
    ///
    /// # Errors
    ///
    /// Without root, or if the kernel or the template refuses.
    pub fn load(globals: &Globals, template: &Template) -> Result<Self> {
        let frame = template.frame()?;
        let to_client = u8::from(globals.client == Client::Destination);
        let ebpf = EbpfLoader::new()
            .override_global("FLOWS", &globals.flows, true)
            .override_global("LENGTH", &(frame.len() as u32), true)
            .override_global("TO_CLIENT", &to_client, true)
            .override_global("INTERFACE", &globals.interface, true)
            .map_max_entries("table", globals.table.max(1))
            .load(lb_user::objects::BENCH)
            .context("cannot load the benchmark's object")?;
        let mut programs = Self { ebpf, frame };
        programs.put("template", template.words()?)?;
        Ok(programs)
    }

    /// Makes all packets from now on of another kind, as long as the first.
    ///
    /// # Errors
    ///
    /// If the frame is of another length.
    pub fn send_instead(&mut self, template: &Template) -> Result<()> {
        let frame = template.frame()?;
        ensure!(
            frame.len() == self.frame.len(),
            "a frame of {} bytes after one of {}",
            frame.len(),
            self.frame.len()
        );
        self.frame = frame;
        self.put("template", template.words()?)
    }

    /// Attaches a program to an interface of the current network namespace, in the driver.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the program, or there is no such interface.
    pub fn attach(&mut self, name: &str, interface: &str) -> Result<()> {
        self.program(name)?
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("cannot attach {name} to {interface}"))?;
        Ok(())
    }

    /// Runs the harness `packets` times, with a program behind it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the harness or the run.
    pub fn run_harness(&mut self, program: &ProgramFd, packets: u32) -> Result<Ran> {
        let mut programs: ProgramArray<&mut MapData> = self
            .ebpf
            .map_mut("programs")
            .context("no map programs")?
            .try_into()?;
        programs
            .set(0, program, 0)
            .context("cannot put a program behind the harness")?;
        let frame = self.frame.clone();
        let result = self.program("harness")?.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: packets,
            ..TestRunOptions::default()
        })?;
        Ok(Ran {
            each: result.duration,
            verdict: result.return_value,
        })
    }

    /// Sends `packets` frames out of the interface of the generator, which is one of the current
    /// network namespace. Returns the average for each, without the time in which the thread
    /// waited for the CPU.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the generator or the run.
    pub fn run_generator(&mut self, packets: u32) -> Result<Duration> {
        let frame = self.frame.clone();
        let result = self
            .program("generate")?
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })
            .context("cannot send live frames")?;
        Ok(result.duration)
    }

    /// How many packets the harness and the generator have made.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn given(&self) -> Result<u64> {
        self.number("given", 0)
    }

    /// How many frames have come to the sink that were addressed as expected.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn arrived(&self) -> Result<u64> {
        self.number("arrived", 0)
    }

    /// Sets the network (/24) that frames in the sink must be addressed to.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn expect(&mut self, network: [u8; 4]) -> Result<()> {
        self.put("expected", network)
    }

    /// Sets what the floors write over MAC addresses.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn address(&mut self, destination: Mac, source: Mac) -> Result<()> {
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&destination.0);
        macs[6..].copy_from_slice(&source.0);
        self.put("macs", macs)
    }

    /// Puts flows into the table of the table floor.
    ///
    /// # Errors
    ///
    /// If the table is full.
    pub fn fill(&mut self, keys: impl Iterator<Item = FlowKey>, flow: &Flow) -> Result<()> {
        let mut table: HashMap<&mut MapData, FlowKey, Flow> = self
            .ebpf
            .map_mut("table")
            .context("no map table")?
            .try_into()?;
        for key in keys {
            table
                .insert(key, flow, 0)
                .context("cannot fill the table of the table floor")?;
        }
        Ok(())
    }

    /// A program, loaded.
    ///
    /// # Errors
    ///
    /// If there is none of this name, or the kernel refuses it.
    pub fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program: &mut Xdp = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name} in the object"))?
            .try_into()?;
        if program.fd().is_err() {
            program
                .load()
                .with_context(|| format!("the kernel refuses program {name}"))?;
        }
        Ok(program)
    }

    fn number(&self, map: &str, index: u32) -> Result<u64> {
        let map: Array<&MapData, u64> = self
            .ebpf
            .map(map)
            .with_context(|| format!("no map {map}"))?
            .try_into()?;
        Ok(map.get(&index, 0)?)
    }

    fn put<V: Pod>(&mut self, map: &str, value: V) -> Result<()> {
        let mut map: Array<&mut MapData, V> = self
            .ebpf
            .map_mut(map)
            .with_context(|| format!("no map {map}"))?
            .try_into()?;
        Ok(map.set(0, value, 0)?)
    }
}
