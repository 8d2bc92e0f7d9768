//! What must hold in every mode: claims about a [`Scene`] that tests of several modes make.
//!
//! Each panics or fails with what it saw instead.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{Address, BackendId, Port, limits},
    datapath::select::{self, Algorithm, Candidate, maglev},
    wire::ip,
};

use crate::{
    client::{self, Conversation, Datagrams, converse_many, curl},
    scene::{Mode, SERVICES, Scene},
    server::Nginx,
    topology::{Arms, Family, Return, service},
};

/// Connections that a measured share is taken from.
pub const MANY: u16 = 10_000;

/// How far a share may be from what the weights say.
const TOLERANCE: f64 = 0.03;

/// The tests that [`true_addresses`] holds in a mode: with two arms and with one, over IPv4 and IPv6.
#[macro_export]
macro_rules! addresses_are_true {
    ($mode:expr) => {
        $crate::addresses_are_true! { $mode;
            both_ends_see_true_addresses_two_arms_v4: Two, V4;
            both_ends_see_true_addresses_two_arms_v6: Two, V6;
            both_ends_see_true_addresses_one_arm_v4: One, V4;
            both_ends_see_true_addresses_one_arm_v6: One, V6;
        }
    };
    ($mode:expr; $($test:ident: $arms:ident, $family:ident;)+) => {$(
        #[test]
        fn $test() -> ::anyhow::Result<()> {
            use $crate::topology::{Arms, Family};
            $crate::claims::true_addresses($mode, Arms::$arms, Family::$family)
        }
    )+};
}

pub use addresses_are_true;

/// Both ends see each other's true addresses, mirrors and nginx alike, and what they send takes the
/// mode's way: requests through the data path, answers through it or past it.
///
/// # Errors
///
/// When a packet is lost or somebody saw something else.
pub fn true_addresses(mode: Mode, arms: Arms, family: Family) -> Result<()> {
    let scene = Scene::build(mode, arms, family, &[1, 1])?;
    both_ends_see_true_addresses(&scene)?;
    access_logs_have_the_clients_address(&scene, mode)?;
    let web = scene.agent.carried("web")?;
    assert!(web.forward > 0, "not through the data path: {web:?}");
    match mode.way_back() {
        Return::ThroughBalancer => {
            assert!(web.back > 0, "answers not through the data path: {web:?}");
        }
        Return::Direct => assert_eq!(
            web.back, 0,
            "answers went through the load balancer: {web:?}"
        ),
    }
    Ok(())
}

/// Backends see the client's own address and port and are asked at theirs; the client is
/// connected to the service's. With TCP and with UDP.
///
/// # Errors
///
/// When a packet is lost or somebody saw something else.
pub fn both_ends_see_true_addresses(scene: &Scene) -> Result<()> {
    let client = &scene.network.client.netns;
    for port in [40_001, 40_002, 40_003] {
        let from = scene.client(port);
        let tcp = Conversation::open(client, from, scene.service())?.ask("over TCP")?;
        let udp = Datagrams::open(client, from, scene.service())?.ask("over UDP")?;
        for answer in [tcp, udp] {
            let index = index_of(&answer.server);
            assert_eq!(
                answer.peer, from,
                "what {} saw of the client",
                answer.server
            );
            assert_eq!(
                answer.local,
                scene.asked_at(index),
                "where {} was asked",
                answer.server
            );
        }
    }
    Ok(())
}

/// As [`both_ends_see_true_addresses`], for a web service with nginx and its access log: 20
/// requests by curl, each in the log of the one backend that answered.
fn access_logs_have_the_clients_address(scene: &Scene, mode: Mode) -> Result<()> {
    let (family, agent) = (scene.family(), &scene.agent);
    let to = SocketAddr::new(service(family), 80);
    agent.ok(&format!(
        "service add {to}/tcp --name http --mode {}",
        mode.name()
    ))?;
    let mut servers = Vec::new();
    for host in &scene.network.backends {
        let (at, asked) = match mode {
            Mode::Nat => (host.at(family, 8080), host.at(family, 8080)),
            Mode::DsrL2 => (host.at(family, 80), to),
        };
        servers.push(Nginx::start(&host.netns, &host.name, &[asked], None)?);
        agent.ok(&format!("backend add http {at}"))?;
    }
    agent.resolved()?;
    let mut expected: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
    for _ in 0..20 {
        let page = curl(&scene.network.client.netns, to)?;
        assert_eq!((page.status, page.to), (200, to));
        assert_eq!(page.from.ip(), scene.client(0).ip());
        expected.entry(page.body).or_default().push(page.from);
    }
    assert!(
        expected.len() > 1,
        "one backend got everything: {expected:?}"
    );
    for server in &servers {
        let expected = expected.remove(server.name()).unwrap_or_default();
        let logged: Vec<SocketAddr> = server
            .accesses_once(expected.len())?
            .iter()
            .map(|access| SocketAddr::new(access.remote_addr, access.remote_port))
            .collect();
        assert_eq!(logged, expected, "access log of {}", server.name());
    }
    Ok(())
}

/// Of [`MANY`] connections from as many ports, each backend gets what its weight says, within 3
/// percentage points, and each connection the backend that the slots say, without exception.
///
/// # Errors
///
/// When a connection fails, a share is off, or a connection reached another backend.
pub fn shares_follow_weights(
    mode: Mode,
    arms: Arms,
    family: Family,
    weights: &[u16],
) -> Result<()> {
    let scene = Scene::build(mode, arms, family, weights)?;
    let from = client::ports(scene.client(0).ip(), 20_000, MANY);
    let answers = converse_many(&scene.network.client.netns, &from, scene.service())?;
    assert!(answers.iter().map(|answer| answer.peer).eq(from));
    let sum: u16 = weights.iter().sum();
    for (index, &weight) in weights.iter().enumerate() {
        let got = answers
            .iter()
            .filter(|answer| index_of(&answer.server) == index)
            .count();
        let share = got as f64 / f64::from(MANY);
        let due = f64::from(weight) / f64::from(sum);
        println!("b{}: {share:.4}, due {due:.4}", index + 1);
        ensure!(
            (share - due).abs() <= TOLERANCE,
            "b{}: {share}, due {due}",
            index + 1
        );
    }
    let (slots, seed) = (slots(&scene, weights), select::seed(SERVICES[0].0));
    for answer in &answers {
        let (client, port) = (answer.peer.ip().into(), answer.peer.port().into());
        // All backends take new flows, so that the first attempt serves.
        let cell = maglev::pick(seed, &client, port, ip::TCP, 0, limits::SLOTS);
        let due = slots
            .get(cell as usize)
            .context("a cell beyond the slots")?;
        ensure!(
            index_of(&answer.server) + 1 == due.0 as usize,
            "{} reached {}, its cell {cell} says b{}",
            answer.peer,
            answer.server,
            due.0
        );
    }
    Ok(())
}

/// The slots that the services of `scene` have, with backend `b1` as number 1 and so on.
fn slots(scene: &Scene, weights: &[u16]) -> Vec<BackendId> {
    let candidates: Vec<Candidate> = (1..)
        .zip(weights)
        .enumerate()
        .map(|(index, (number, &weight))| {
            let backend = scene.backend(index);
            Candidate {
                id: BackendId(number),
                identity: select::identity(Address::from(backend.ip()), Port::from(backend.port())),
                weight: weight.into(),
            }
        })
        .collect();
    select::build(Algorithm::Maglev, limits::SLOTS, &candidates)
}

/// New connections and datagrams, without a pause, while `work` runs. None may be lost; the number
/// of connections is returned with what `work` gives.
///
/// # Errors
///
/// When `work` fails, or one connection or datagram does.
pub fn under_load<T>(scene: &Scene, work: impl FnOnce() -> Result<T>) -> Result<(u32, T)> {
    let over = AtomicBool::new(false);
    let load = || {
        let mut count = 0;
        while !over.load(Ordering::Relaxed) {
            scene.conversation()?.ask("load")?;
            scene.datagrams()?.ask("load")?;
            count += 1;
            // Leaves the two cores something for what the test is about.
            thread::sleep(Duration::from_millis(1));
        }
        Ok(count)
    };
    thread::scope(|scope| {
        let load = scope.spawn(load);
        let result = {
            // Also when `work` panics: the scope waits for the load to end.
            let _end = OnDrop(&over);
            work()
        };
        let count: Result<u32> = load
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // What went wrong first in the test's own words, then what the load met.
        let result = result?;
        Ok((count?, result))
    })
}

/// Sets its flag when dropped.
struct OnDrop<'f>(&'f AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The index, from 0, of backend `b1`, `b2`, …
#[must_use]
pub fn index_of(name: &str) -> usize {
    name.trim_start_matches('b')
        .parse::<usize>()
        .map_or(usize::MAX, |number| number - 1)
}
