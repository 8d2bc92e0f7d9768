//! The program in the kernel and the data path on the host do the same: byte for byte, counter for
//! counter, flow for flow.
//!
//! Time is the one thing that the two do not share to the tick. The host is given the kernel's
//! clock before each frame, and entries are made older by hand on both sides: every entry is then
//! either younger than the shortest age that matters, or much older than it.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use lb_common::wire::l4::ACK;
use lb_common::{
    abi::{
        Address, Answered, BackendId, BackendState, Event, EventKind, Fate, Flow, FlowKey,
        Fragment, Reason, ServiceId, Ticks,
    },
    datapath::{
        Verdict,
        parse::{self, Parsed, Part},
    },
    host::{
        self, HostFlows, HostPacket, Outcome, fixtures,
        flows::Lru,
        frame::{self, Frame},
        traffic::Traffic,
        world::{BACKENDS, CLIENTS, World, at},
    },
};
use lb_tests::kernel::{Kernel, coarse_time, entries, every_event, isolated};

/// Random frames, and the seed they come from.
const FRAMES: u32 = 120_000;
const SEED: u64 = 0x1b;

/// Frames between two changes of the world, and the longest time between them: well below the
/// second that the data path counts.
const EPOCH: u32 = 4_000;
const EPOCH_TIME: Duration = Duration::from_millis(400);

/// How far two clocks of one moment may be apart: an entry's time is written again only when it is
/// 1/8 s old, and the coarse clock moves between its reading here and in the program.
const TOLERANCE: Ticks = Ticks(Ticks::PER_SECOND / 4);

/// The two, in step.
struct Both {
    kernel: Kernel,
    world: World,
    flows: HostFlows,
}

impl Both {
    fn new(cpu: u32, world: World) -> Result<Self> {
        let mut kernel = Kernel::load()?;
        kernel.fill(&world.tables)?;
        let mut flows = HostFlows::new();
        flows.cpu = cpu;
        flows.settings = every_event();
        Ok(Self {
            kernel,
            world,
            flows,
        })
    }

    /// Runs a frame on both sides.
    fn run(&mut self, ifindex: u32, frame: &[u8]) -> Result<Outcome> {
        self.flows.time = coarse_time()?;
        let before = self.kernel.interface(ifindex)?;
        let ran = self.kernel.run(ifindex, frame)?;
        let outcome = host::process(frame, ifindex, &self.world.tables, &mut self.flows);
        let after = self.kernel.interface(ifindex)?;
        let counted: Vec<Reason> = Reason::ALL
            .iter()
            .copied()
            .filter(|&r| after.reasons[r as usize] != before.reasons[r as usize])
            .collect();
        ensure!(
            ran.action == action(outcome.verdict)
                && ran.frame == outcome.frame
                && counted == [outcome.reason],
            "on interface {ifindex}\n\
             in      {}\n\
             kernel  action {} {counted:?}: {}\n\
             host    action {} {:?}: {}",
            frame::describe(frame),
            ran.action,
            frame::describe(&ran.frame),
            action(outcome.verdict),
            outcome.reason,
            frame::describe(&outcome.frame),
        );
        Ok(outcome)
    }

    /// Empties the flow tables; counters and round-robin's wheels go on.
    fn forget(&mut self) -> Result<()> {
        self.kernel.forget()?;
        self.flows.confirmed = Lru::new(None);
        self.flows.new = Lru::new(None);
        self.flows.direct = Lru::new(None);
        self.flows.fragments = Lru::new(None);
        self.flows.answered = Lru::new(None);
        Ok(())
    }

    /// Compares all that was written meanwhile.
    fn compare(&mut self) -> Result<()> {
        let confirmed = entries(&self.kernel.confirmed)?;
        same(
            "confirmed flows",
            &confirmed,
            &self.flows.confirmed,
            flow_differs,
        )?;
        let new = entries(&self.kernel.new)?;
        same("new flows", &new, &self.flows.new, flow_differs)?;
        let direct = entries(&self.kernel.direct)?;
        same(
            "direct conversations",
            &direct,
            &self.flows.direct,
            |a, b| apart(a.seen, b.seen),
        )?;
        let fragments = entries(&self.kernel.fragments)?;
        same("fragments", &fragments, &self.flows.fragments, |a, b| {
            let timeless = |fragment: &Fragment| Fragment {
                seen: Ticks(0),
                ..*fragment
            };
            timeless(a) != timeless(b) || apart(a.seen, b.seen)
        })?;
        let answered = entries(&self.kernel.answered)?;
        same(
            "answered prefixes",
            &answered,
            &self.flows.answered,
            |a, b| a.count != b.count || apart(a.since, b.since),
        )?;
        for ifindex in [CLIENTS, BACKENDS] {
            let host = self.flows.interfaces.get(&ifindex).copied();
            ensure!(
                self.kernel.interface(ifindex)? == host.unwrap_or_default(),
                "the counters of interface {ifindex} differ"
            );
        }
        for id in (0..64).map(ServiceId) {
            let host = self.flows.services.get(&id).copied().unwrap_or_default();
            let kernel = self.kernel.service(id)?;
            ensure!(
                kernel == host,
                "counters of {id:?}: {kernel:?}, not {host:?}"
            );
        }
        for id in (0..256).map(BackendId) {
            let host = self.flows.backends.get(&id).copied().unwrap_or_default();
            let kernel = self.kernel.backend(id)?;
            ensure!(
                kernel == host,
                "counters of {id:?}: {kernel:?}, not {host:?}"
            );
        }
        self.compare_events()
    }

    /// Requests for neighbours are spaced by the clock, and so are left out.
    fn compare_events(&mut self) -> Result<()> {
        let timeless = |events: Vec<Event>| -> Vec<Event> {
            events
                .into_iter()
                .filter(|event| event.kind != EventKind::NEIGHBOUR)
                .map(|event| Event { time: 0, ..event })
                .collect()
        };
        let kernel = timeless(self.kernel.events()?);
        let host = timeless(std::mem::take(&mut self.flows.events));
        ensure!(
            kernel.len() == host.len(),
            "{} events, not {}",
            kernel.len(),
            host.len()
        );
        for (kernel, host) in kernel.iter().zip(&host) {
            ensure!(kernel == host, "event {kernel:?}, not {host:?}");
        }
        Ok(())
    }

    /// Makes the entries older on both sides, each by an age that its key decides.
    fn age(&mut self) -> Result<()> {
        let now = Ticks::from_nanos(coarse_time()?);
        let flow = |key: &FlowKey, flow: &mut Flow| {
            let then = older(now, u32::from(key.client_port.number()) + key.service.0);
            (flow.made, flow.seen) = (then, then);
        };
        age(&mut self.kernel.confirmed, &mut self.flows.confirmed, flow)?;
        age(&mut self.kernel.new, &mut self.flows.new, flow)?;
        age(
            &mut self.kernel.fragments,
            &mut self.flows.fragments,
            |key, fragment| {
                let [.., last] = key.source.0;
                fragment.seen = older(now, u32::from(last));
            },
        )?;
        let answered = |_: &Address, answered: &mut Answered| answered.since = older(now, 2);
        age(
            &mut self.kernel.answered,
            &mut self.flows.answered,
            answered,
        )?;
        age(
            &mut self.kernel.direct,
            &mut self.flows.direct,
            |key, direct| {
                direct.seen = older(now, u32::from(key.client_port.number()));
            },
        )
    }
}

/// A time before `now`: just now, or before one of the ages that the data path tells apart.
fn older(now: Ticks, choice: u32) -> Ticks {
    let seconds = [0, 0, 2, 2, 20, 400][choice as usize % 6];
    Ticks(now.0.wrapping_sub(seconds * Ticks::PER_SECOND))
}

fn age<K: Pod + Ord, V: Pod>(
    kernel: &mut HashMap<MapData, K, V>,
    host: &mut Lru<K, V>,
    change: impl Fn(&K, &mut V),
) -> Result<()> {
    for (key, value) in host.iter_mut() {
        change(key, value);
        kernel.insert(key, *value, 0)?;
    }
    Ok(())
}

fn apart(a: Ticks, b: Ticks) -> bool {
    a.age(b) > TOLERANCE && b.age(a) > TOLERANCE
}

fn flow_differs(a: &Flow, b: &Flow) -> bool {
    let timeless = |flow: &Flow| Flow {
        made: Ticks(0),
        seen: Ticks(0),
        ..*flow
    };
    timeless(a) != timeless(b) || apart(a.made, b.made) || apart(a.seen, b.seen)
}

fn same<K: Pod + Ord + Debug, V: Pod + Debug>(
    what: &str,
    kernel: &BTreeMap<K, V>,
    host: &Lru<K, V>,
    differs: impl Fn(&V, &V) -> bool,
) -> Result<()> {
    for (key, theirs) in kernel {
        match host.peek(key) {
            None => anyhow::bail!("{what}: only the kernel has {key:?} {theirs:?}"),
            Some(ours) => ensure!(
                !differs(theirs, ours),
                "{what}: {key:?} is\n{theirs:?}\nin the kernel and\n{ours:?}\non the host"
            ),
        }
    }
    for (key, ours) in host.iter() {
        ensure!(
            kernel.contains_key(key),
            "{what}: only the host has {key:?} {ours:?}"
        );
    }
    Ok(())
}

/// The XDP action of a verdict (Linux `include/uapi/linux/bpf.h`).
const fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop => 1,
        Verdict::Pass => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect(_) => 4,
    }
}

#[test]
fn every_fixture_holds_in_the_kernel() -> Result<()> {
    isolated(|cpu| {
        let mut both = Both::new(cpu, World::standard())?;
        for fixture in fixtures::all(&World::standard()) {
            both.forget()?;
            for (ifindex, frame) in &fixture.before {
                both.run(*ifindex, frame).context(fixture.name.clone())?;
            }
            let got = both
                .run(fixture.ifindex, &fixture.frame)
                .context(fixture.name.clone())?;
            ensure!(
                (got.verdict, got.reason) == (fixture.verdict, fixture.reason)
                    && got.frame == fixture.out,
                "{}: {:?} {:?}",
                fixture.name,
                got.verdict,
                got.reason
            );
            both.compare().context(fixture.name)?;
        }
        Ok(())
    })
}

#[test]
fn clients_are_told_of_long_packets_as_often_in_the_kernel() -> Result<()> {
    isolated(|cpu| {
        let mut world = World::standard();
        world.tables.answers_per_second = 2;
        let mut both = Both::new(cpu, world)?;
        for to in ["203.0.113.50:80", "[2001:db8::60]:80"] {
            let is_v4 = at(to).is_ipv4();
            let client = at(if is_v4 {
                "198.51.100.7:20000"
            } else {
                "[2001:db8:c::7]:20000"
            });
            let frame = Frame::tcp(client, at(to), ACK)
                .payload(&[7; 1500])
                .dont_fragment();
            let mut told = || Ok(both.run(CLIENTS, &frame.bytes())?.reason);
            for due in [Reason::TooBig, Reason::TooBig, Reason::TooBigSuppressed] {
                let reason: Result<Reason> = told();
                ensure!(reason? == due, "{to}: not {due:?}");
            }
            both.age()?;
            let again = both.run(CLIENTS, &frame.bytes())?.reason;
            ensure!(again == Reason::TooBig, "{to}: {again:?} after a second");
        }
        both.compare()
    })
}

#[test]
fn random_frames_fare_alike_in_the_kernel_and_on_the_host() -> Result<()> {
    isolated(|cpu| {
        let mut both = Both::new(cpu, World::standard())?;
        let mut traffic = Traffic::new(SEED);
        let mut tally = Tally::default();
        let mut epoch = (Instant::now(), 0);
        for number in 0..FRAMES {
            if epoch.1 == EPOCH || epoch.0.elapsed() > EPOCH_TIME {
                both.compare()
                    .with_context(|| format!("seed {SEED} before frame {number}"))?;
                change(&mut both.world, &mut traffic);
                both.kernel.fill(&both.world.tables)?;
                both.age()?;
                epoch = (Instant::now(), 0);
                tally.epochs += 1;
            }
            let (ifindex, frame) = traffic.next(&both.world);
            let outcome = both
                .run(ifindex, &frame)
                .with_context(|| format!("seed {SEED} frame {number}"))?;
            epoch.1 += 1;
            if frame != outcome.frame {
                traffic.forwarded(&outcome.frame);
            }
            tally.add(&outcome, &frame);
            // The ring holds a few thousand events.
            if number % 1000 == 0 {
                both.compare_events()
                    .with_context(|| format!("seed {SEED} frame {number}"))?;
            }
        }
        both.compare()?;
        tally.print(&both.flows);
        tally.check();
        Ok(())
    })
}

/// Changes the state of some backends, and now and then gives an id to a new backend.
fn change(world: &mut World, traffic: &mut Traffic) {
    let states = [
        BackendState::ENABLED,
        BackendState::ENABLED,
        BackendState::DRAINING,
        BackendState::DISABLED,
        BackendState::ABSENT,
    ];
    let ids: Vec<BackendId> = world.tables.backends.keys().copied().collect();
    for _ in 0..6 {
        let id = ids[traffic.rng().usize(..ids.len())];
        let state = states[traffic.rng().usize(..states.len())];
        world.set_state(id, state);
        if state == BackendState::ABSENT
            && let Some(backend) = world.tables.backends.get_mut(&id)
        {
            backend.generation += 1;
            backend.state = BackendState::ENABLED;
        }
    }
}

/// How often each verdict and mode was met.
#[derive(Default)]
struct Tally {
    shares: BTreeMap<&'static str, u32>,
    frames: u32,
    epochs: u32,
}

impl Tally {
    /// What at least one frame in twenty must meet.
    const MET: [&str; 9] = [
        "pass",
        "drop",
        "transmit",
        "redirect",
        "nat towards",
        "nat back",
        "dsr-l2",
        "dsr-ipip",
        "dsr-gue",
    ];

    /// What at least one frame in a hundred must be, and be forwarded.
    const RARE: [&str; 4] = ["VLAN tags", "options", "first fragment", "later fragment"];

    fn add(&mut self, outcome: &Outcome, frame: &[u8]) {
        self.frames += 1;
        if outcome.reason.fate() == Fate::Forwarded {
            self.add_shapes(frame);
        }
        let verdict = match outcome.verdict {
            Verdict::Pass => "pass",
            Verdict::Drop => "drop",
            Verdict::Transmit => "transmit",
            Verdict::Redirect(_) => "redirect",
        };
        *self.shares.entry(verdict).or_default() += 1;
        let mode = match outcome.reason {
            Reason::ToClient | Reason::ToClientRouted => "nat back",
            Reason::ToBackend | Reason::ToBackendRouted if outcome.frame.len() > frame.len() => {
                match outcome.frame.len() - frame.len() {
                    20 | 40 => "dsr-ipip",
                    28 | 48 => "dsr-gue",
                    bytes => panic!("grown by {bytes} bytes"),
                }
            }
            Reason::ToBackendRouted | Reason::ToBackendViaKernel => "nat towards",
            // Of the others only nat changes anything behind the Ethernet header.
            Reason::ToBackend if frame[14..] == outcome.frame[14..] => "dsr-l2",
            Reason::ToBackend => "nat towards",
            _ => return,
        };
        *self.shares.entry(mode).or_default() += 1;
    }

    fn add_shapes(&mut self, frame: &[u8]) {
        let mut parsed = Parsed::default();
        let packet = HostPacket::new(frame, CLIENTS);
        if parse::packet(&packet, frame.len() as u32, &mut parsed).is_err() {
            return;
        }
        let l3 = parsed.l3();
        let plain = parsed.family.header_length();
        let shapes = [
            l3 > 14,
            parsed.l4() - l3 > plain && parsed.part == Part::Whole,
            parsed.part == Part::First,
            parsed.part == Part::Later,
        ];
        for (name, has) in Self::RARE.into_iter().zip(shapes) {
            *self.shares.entry(name).or_default() += u32::from(has);
        }
    }

    fn print(&self, flows: &HostFlows) {
        println!(
            "{} random frames, {} epochs, seed {SEED}",
            self.frames, self.epochs
        );
        for (what, count) in &self.shares {
            println!("{what:>14} {count:>7} {:5.1} %", self.percent(*count));
        }
        for &reason in Reason::ALL {
            println!("{:>20} {:>7}", reason.name(), flows.packets(reason));
        }
        println!(
            "{} confirmed flows, {} new ones, {} direct conversations at the end",
            flows.confirmed.len(),
            flows.new.len(),
            flows.direct.len()
        );
    }

    fn percent(&self, count: u32) -> f64 {
        f64::from(count) * 100.0 / f64::from(self.frames)
    }

    fn check(&self) {
        let met = Self::MET.map(|what| (what, 5.0));
        for (what, least) in met.into_iter().chain(Self::RARE.map(|what| (what, 1.0))) {
            let count = self.shares.get(what).copied().unwrap_or_default();
            assert!(
                self.percent(count) >= least,
                "{what}: {count} of {}",
                self.frames
            );
        }
    }
}
