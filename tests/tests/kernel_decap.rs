//! The program that takes packets out of tunnels does in the kernel what the data path does on the
//! host: byte for byte, counter for counter.

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::decap::Reason,
    datapath::Verdict,
    host::{
        decap::{HostReceiver, Outcome, fixtures, process, traffic},
        frame,
        world::BACKENDS,
    },
};
use lb_tests::{decap::Decap, kernel::isolated};

/// Instructions that the verifier may look at: a quarter over what the program needs. Raise it
/// knowingly.
const VERIFIED_INSTRUCTIONS: u32 = 6_500;

/// Random frames, and the seed they come from.
const FRAMES: u32 = 200_000;
const SEED: u64 = 0xdeca;

/// `XDP_DROP` and `XDP_PASS` (Linux `include/uapi/linux/bpf.h`).
const fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop => 1,
        _ => 2,
    }
}

/// Runs a frame on both sides.
fn run(kernel: &mut Decap, host: &mut HostReceiver, frame: &[u8]) -> Result<Outcome> {
    let ran = kernel.run(BACKENDS, frame)?;
    let outcome = process(frame, BACKENDS, host);
    let counters = kernel.counters()?;
    ensure!(
        ran.action == action(outcome.verdict)
            && ran.frame == outcome.frame
            && counters == host.counters,
        "in      {}\nkernel  action {}: {}\nhost    {:?} {:?}: {}",
        frame::describe(frame),
        ran.action,
        frame::describe(&ran.frame),
        outcome.verdict,
        outcome.reason,
        frame::describe(&outcome.frame),
    );
    Ok(outcome)
}

#[test]
fn the_kernel_loads_the_program_within_its_budget() -> Result<()> {
    isolated(|_| {
        let verified = Decap::load(&HostReceiver::standard())?.verified_instructions()?;
        println!("verified instructions: {verified} of at most {VERIFIED_INSTRUCTIONS}");
        assert!(
            verified > 0 && verified <= VERIFIED_INSTRUCTIONS,
            "{verified}"
        );
        Ok(())
    })
}

#[test]
fn every_fixture_holds_in_the_kernel() -> Result<()> {
    isolated(|_| {
        let mut host = HostReceiver::standard();
        let mut kernel = Decap::load(&host)?;
        for fixture in fixtures::all() {
            let got = run(&mut kernel, &mut host, &fixture.frame).context(fixture.name.clone())?;
            ensure!(
                (got.verdict, got.reason) == (fixture.verdict, fixture.reason)
                    && got.frame == fixture.out,
                "{}: {:?} {:?}",
                fixture.name,
                got.verdict,
                got.reason
            );
        }
        Ok(())
    })
}

#[test]
fn random_frames_fare_alike_in_the_kernel_and_on_the_host() -> Result<()> {
    isolated(|_| {
        let mut host = HostReceiver::standard();
        let mut kernel = Decap::load(&host)?;
        let mut rng = fastrand::Rng::with_seed(SEED);
        for number in 0..FRAMES {
            let frame = traffic::frame(&mut rng);
            run(&mut kernel, &mut host, &frame)
                .with_context(|| format!("seed {SEED} frame {number}"))?;
        }
        println!("{FRAMES} random frames, seed {SEED}");
        for &reason in Reason::ALL {
            let met = host.counters.reasons[reason as usize].packets;
            println!("{:>20} {met:>7}", reason.name());
            assert!(met >= 50, "{} was met {met} times", reason.name());
        }
        Ok(())
    })
}

/// With an empty list nothing is taken: an all-zero map value means that nothing is known.
#[test]
fn without_sources_nothing_is_taken() -> Result<()> {
    isolated(|_| {
        let mut host = HostReceiver {
            sources: Vec::new(),
            ..HostReceiver::standard()
        };
        let mut kernel = Decap::load(&host)?;
        for fixture in fixtures::all() {
            let got = run(&mut kernel, &mut host, &fixture.frame).context(fixture.name)?;
            ensure!(got.frame == fixture.frame);
        }
        Ok(())
    })
}
