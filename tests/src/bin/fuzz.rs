//! `cargo xtask fuzz SECONDS`: random frames through the data path on the host.
//!
//! Looks for a frame that breaks a promise of the data path: it never panics; what is not ours
//! leaves as it came; a frame keeps its length, the outer headers of tunnels not counted, which are
//! whole and right; checksums that were right still are. Backends,
//! lookup tables and idle times change meanwhile. A finding is printed with its seed, which makes
//! the same frames again.

use std::{
    cell::RefCell,
    panic,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use lb_common::{
    abi::{BackendId, BackendState, Fate, Neighbour, ServiceId, Ticks},
    datapath::Verdict,
    host::{
        Balancer, HostFlows, Outcome,
        frame::{checksums, describe, inner, l3},
        traffic::Traffic,
        world::{GUE_PORT, World},
    },
};

/// Frames between two looks at the clock.
const BATCH: u64 = 1024;

/// Frames until the load balancer starts anew, so that a finding is reached quickly from its seed.
const RUN: u64 = 200_000;

thread_local! {
    /// What is being run, for the report of a panic.
    static NOW: RefCell<(u64, u64, Vec<u8>)> = const { RefCell::new((0, 0, Vec::new())) };
}

/// Sends random frames through the data path and checks what it promises.
#[derive(Parser)]
#[command(name = "fuzz")]
struct Arguments {
    /// How long to search
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where the random numbers start; from the clock if not given
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let Arguments { seconds, seed } = Arguments::parse();
    let seed = seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |time| time.as_nanos() as u64)
    });
    println!("seed {seed}, {seconds} s");
    report_panics();
    let begin = Instant::now();
    let end = begin + Duration::from_secs(seconds);
    let (mut frames, mut run) = (0, seed);
    while Instant::now() < end {
        match search(run, end) {
            Ok(searched) => frames += searched,
            Err(finding) => {
                println!("found: {finding:#}");
                println!("again: fuzz --seconds {seconds} --seed {run}");
                return ExitCode::FAILURE;
            }
        }
        run = run.wrapping_add(1);
    }
    let rate = frames as f64 / begin.elapsed().as_secs_f64();
    println!("{frames} frames, {rate:.0} a second: nothing found");
    ExitCode::SUCCESS
}

/// A panic ends the program, which says first what it was doing.
fn report_panics() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        default(panic);
        NOW.with_borrow(|(seed, number, frame)| {
            println!(
                "found: a panic at frame {number} of seed {seed}: {}",
                describe(frame)
            );
            println!("again: fuzz --seed {seed}");
        });
        std::process::exit(1);
    }));
}

/// The frames of one seed. Returns how many.
fn search(seed: u64, end: Instant) -> Result<u64> {
    let mut traffic = Traffic::new(seed);
    let mut lb = Balancer::new(World::standard());
    lb.flows = HostFlows::bounded(Some(512), Some(128));
    for number in 0..RUN {
        if number % BATCH == 0 && Instant::now() >= end {
            return Ok(number);
        }
        if traffic.rng().u8(..) == 0 {
            change(&mut lb, &mut traffic);
        }
        let (ifindex, frame) = traffic.next(&lb.world);
        let frame = cut(frame, &mut traffic);
        NOW.set((seed, number, frame.clone()));
        let outcome = lb.receive(ifindex, &frame);
        if let Err(broken) = check(&frame, &outcome) {
            bail!(
                "{broken} at frame {number} of seed {seed}: {:?} {:?}\nin   {}\nout  {}",
                outcome.verdict,
                outcome.reason,
                describe(&frame),
                describe(&outcome.frame)
            );
        }
        if frame != outcome.frame {
            traffic.forwarded(&outcome.frame);
        }
        lb.flows.events.clear();
    }
    Ok(RUN)
}

/// Now and then a frame of any length, shorter than a header too.
fn cut(mut frame: Vec<u8>, traffic: &mut Traffic) -> Vec<u8> {
    if traffic.rng().u8(..) < 4 {
        frame.truncate(traffic.rng().usize(..=frame.len()));
    }
    frame
}

/// What the data path promises of every frame.
fn check(frame: &[u8], outcome: &Outcome) -> Result<()> {
    let inner = match outcome.frame.len().checked_sub(frame.len()) {
        _ if outcome.reason.fate() == Fate::Answered => None,
        Some(20 | 28 | 40 | 48) => Some(
            inner(&outcome.frame, GUE_PORT)
                .context("grown, and not by outer headers that are right")?,
        ),
        _ => None,
    };
    let after = inner.as_ref().unwrap_or(&outcome.frame);
    let fate = outcome.reason.fate();
    ensure!(
        frame.len() == after.len() || fate == Fate::Answered,
        "another length"
    );
    match fate {
        Fate::Passed => ensure!(outcome.verdict == Verdict::Pass, "not ours and not passed"),
        Fate::Dropped => ensure!(outcome.verdict == Verdict::Drop, "dropped and not dropped"),
        Fate::Forwarded => ensure!(outcome.verdict != Verdict::Drop, "forwarded and dropped"),
        Fate::Answered => return check_answer(frame, outcome),
    }
    if fate != Fate::Forwarded {
        ensure!(
            frame == after.as_slice(),
            "changed although it is not forwarded"
        );
        return Ok(());
    }
    let (before, now) = (checksums(frame), checksums(after));
    if before.ip == Some(true) {
        ensure!(now.ip == Some(true), "the header's checksum is wrong now");
    }
    match before.transport {
        Some(true) => ensure!(now.transport == Some(true), "the checksum is wrong now"),
        Some(false) => {}
        None => ensure!(now.transport.is_none(), "there is a checksum now"),
    }
    Ok(())
}

/// What it promises of a message about a frame: whole, and about that frame.
fn check_answer(frame: &[u8], outcome: &Outcome) -> Result<()> {
    let answer = &outcome.frame;
    ensure!(
        matches!(outcome.verdict, Verdict::Transmit | Verdict::Redirect(_)),
        "answered and not sent"
    );
    let sums = checksums(answer);
    ensure!(
        sums.ip != Some(false) && sums.transport == Some(true),
        "an answer with a wrong checksum"
    );
    let l3 = l3(frame).context("an answer to what is no IP")?;
    ensure!(answer[12..l3] == frame[12..l3], "other VLAN tags");
    let (head, longest) = match answer[l3 - 2..l3] {
        [0x08, 0x00] => (l3 + 20 + 8, l3 + 576),
        _ => (l3 + 40 + 8, l3 + 1280),
    };
    ensure!(answer.len() <= longest, "a long answer");
    let quoted = &answer[head..];
    ensure!(
        quoted.len() >= 28 && frame[l3..].starts_with(quoted),
        "an answer about another packet"
    );
    let is_back = answer[..6] == frame[6..12] && answer[6..12] == frame[..6];
    ensure!(is_back, "an answer to somebody else");
    Ok(())
}

/// Changes what the agent might change, also to what it should not.
fn change(lb: &mut Balancer, traffic: &mut Traffic) {
    let rng = traffic.rng();
    let id = BackendId(rng.u32(1..125));
    let service = ServiceId(rng.u32(1..21));
    match rng.u8(0..7) {
        0..2 => lb.world.set_state(id, BackendState(rng.u32(0..5))),
        2 => lb.world.rebuild(service, [2, 7, 251][rng.usize(..3)]),
        3 => {
            if let Some(backend) = lb.world.tables.backends.get_mut(&id) {
                backend.generation += 1;
                if rng.bool() {
                    backend.neighbour = Neighbour::default();
                }
            }
        }
        4 => {
            if let Some(service) = lb.world.tables.services.get_mut(&service) {
                service.timeouts.established = Ticks(rng.u32(..));
                service.slots = rng.u32(..300);
                service.fallback = id;
            }
        }
        5 => lb.flows.pass(Duration::from_millis(rng.u64(..40_000))),
        _ => lb.world = World::standard(),
    }
}
