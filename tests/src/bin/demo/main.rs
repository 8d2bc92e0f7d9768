//! The main job, shown: real HTTP clients reach real nginx backends through the XDP program, and
//! the backends' access logs have the client's own address.
//!
//! Everything is done with the commands an operator would type, each printed before it runs. Exits
//! with 1 if a client's address was not kept or a request was lost.
//!
//! [`balancer`] is what is shown, [`client`] and [`logs`] are its two ends, [`measure`] says what a
//! packet costs.

mod balancer;
mod client;
mod logs;
mod measure;

use std::{
    mem,
    net::SocketAddr,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Result, ensure};
use balancer::LoadBalancer;
use clap::Parser;
use client::{judge, requests};
use lb_tests::{
    scene::Mode,
    server::Nginx,
    topology::{Arms, Family, Network, service},
};
use measure::Measure;

/// Requests of each part.
const REQUESTS: usize = 400;
const BACKENDS: u8 = 2;

/// Shows the load balancer between real clients and servers, in namespaces of its own
#[derive(Parser)]
#[command(
    after_help = "Example:\n  cargo xtask demo --keep    look around in the network afterwards"
)]
struct Arguments {
    /// Leave the last network up and say how to enter it and how to end it
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and needs root: sudo -E cargo xtask demo"
    );
    show_part(Mode::Nat, Keep::No)?;
    let keep = if arguments.keep { Keep::Yes } else { Keep::No };
    show_part(Mode::DsrL2, keep)?;
    println!(
        "\nEvery request was answered and every access log line has the client's address. {:.0} s.",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Yes,
    No,
}

/// One mode, in a network of its own.
fn show_part(mode: Mode, keep: Keep) -> Result<()> {
    let name = mode.name();
    heading(&format!("mode {name}"));
    let network = Network::build(Arms::Two, mode.way_back(), BACKENDS)?;
    describe(&network, mode);
    let vip = SocketAddr::new(service(Family::V4), 80);
    let mut servers = Vec::new();
    for backend in &network.backends {
        let own = backend.at(Family::V4, port(mode));
        let mut listens = vec![own];
        if mode == Mode::DsrL2 {
            listens.push(vip);
        }
        servers.push(Nginx::start(&backend.netns, &backend.name, &listens, None)?);
    }
    // The waiting for nginx has left lines of its own.
    let before: Vec<usize> = servers
        .iter()
        .map(|s| Ok(s.accesses()?.len()))
        .collect::<Result<_>>()?;

    let lb = LoadBalancer::new(name)?;
    lb.command(&format!(
        "attach --netns {} eth0 eth1",
        network.balancer.netns.name()
    ))?;
    lb.command(&format!("service add {vip}/tcp --name web --mode {name}"))?;
    for backend in &network.backends {
        lb.command(&format!(
            "backend add web {}",
            backend.at(Family::V4, port(mode))
        ))?;
    }
    lb.wait_until_resolved()?;

    let stats = Measure::start(&lb)?;
    let answers = requests(&network, vip, REQUESTS)?;
    let cost = stats.end()?;
    judge(&answers)?;
    let seen = logs::since(&servers, &before, answers.len())?;
    logs::show_shares(&network, &servers, &seen)?;
    logs::check_addresses(&network, &seen, &answers)?;
    println!(
        "\n{} requests, {} packets through the program, {:.0} ns each (with about 65 ns for measuring it)",
        answers.len(),
        cost.packets,
        cost.nanos_per_packet
    );
    show_disabling(&lb, &network, vip, port(mode))?;
    println!();
    lb.command("status")?;

    if keep == Keep::Yes {
        say_how_to_enter(&lb, &network);
        lb.forget();
        mem::forget(servers);
        mem::forget(network);
        return Ok(());
    }
    lb.end()
}

const fn port(mode: Mode) -> u16 {
    match mode {
        Mode::Nat => 8080,
        Mode::DsrL2 => 80,
    }
}

fn heading(text: &str) {
    println!(
        "\n── {text} {}\n",
        "─".repeat(70_usize.saturating_sub(text.len()))
    );
}

fn describe(network: &Network, mode: Mode) {
    let client = network.client.address(Family::V4);
    let gateway = match mode {
        Mode::Nat => "default route: the balancer",
        Mode::DsrL2 => "own 203.0.113.10, default route: the router",
    };
    println!("client {client} ── eth0 [balancer] eth1 ──┬── b1 10.0.1.11 nginx");
    println!(
        "                                              └── b2 10.0.1.12 nginx   ({gateway})\n"
    );
}

/// Requests go on while a backend is disabled and enabled again.
fn show_disabling(lb: &LoadBalancer, network: &Network, vip: SocketAddr, port: u16) -> Result<()> {
    let first = network.backends[0].at(Family::V4, port);
    println!("\nRequests go on while b1 is disabled and enabled again:");
    let stop = AtomicBool::new(false);
    let answers = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                answers.extend(requests(network, vip, REQUESTS / 4)?);
            }
            anyhow::Ok(answers)
        });
        let mut beside = Vec::new();
        let changes = (|| {
            beside.extend(requests(network, vip, REQUESTS / 4)?);
            lb.command(&format!("backend set web {first} --state disabled"))?;
            beside.extend(requests(network, vip, REQUESTS / 4)?);
            lb.command(&format!("backend set web {first} --state enabled"))?;
            beside.extend(requests(network, vip, REQUESTS / 4)?);
            anyhow::Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let answers = client
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?;
        changes?;
        let mut answers = answers?;
        answers.append(&mut beside);
        anyhow::Ok(answers)
    })?;
    judge(&answers)?;
    println!("{} requests meanwhile, 0 lost", answers.len());
    Ok(())
}

fn say_how_to_enter(lb: &LoadBalancer, network: &Network) {
    println!("\nThe network stays. To enter it:");
    let hosts = [&network.client, &network.balancer];
    for host in hosts
        .into_iter()
        .chain(&network.backends)
        .chain(&network.router)
    {
        println!(
            "  {:<10} sudo nsenter --net=/run/netns/{}",
            host.name,
            host.netns.name()
        );
    }
    println!("To use the load balancer:");
    println!("  sudo {} status", lb.invocation());
    println!("To end it:");
    println!("  sudo {} detach", lb.invocation());
    println!("  sudo rm -r {}", lb.state().display());
    let prefix = format!("lbt-{}-", std::process::id());
    println!(
        "  for n in $(ip netns list | grep -o '^{prefix}[^ ]*'); do sudo ip netns pids $n | xargs -r sudo kill; sudo ip netns del $n; done"
    );
}
