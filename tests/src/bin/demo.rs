//! The main job, shown: real HTTP clients reach real nginx backends through the XDP program, and
//! the backends' access logs have the client's own address.
//!
//! Everything is done with the commands an operator would type, each printed before it runs. Exits
//! with 1 if a client's address was not kept or a request was lost.

use std::{
    collections::BTreeMap,
    env, mem,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{programs::ProgramInfo, sys::Stats};
use clap::Parser;
use comfy_table::{Table, presets};
use lb_tests::{
    process::finish,
    server::{Access, Nginx},
    topology::{Arms, Family, Network, Return, service},
    wait,
};
use serde::Deserialize;

/// Requests of each part.
const REQUESTS: usize = 400;
/// How long a command of `lb-user` may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
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
    show_part("nat", Mode::Nat, Keep::No)?;
    let keep = if arguments.keep { Keep::Yes } else { Keep::No };
    show_part("dsr-l2", Mode::DsrL2, keep)?;
    println!(
        "\nEvery request was answered and every access log line has the client's address. {:.0} s.",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// How the packets are forwarded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nat,
    DsrL2,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Yes,
    No,
}

/// One mode, in a network of its own.
fn show_part(name: &str, mode: Mode, keep: Keep) -> Result<()> {
    heading(&format!("mode {name}"));
    let way_back = match mode {
        Mode::Nat => Return::ThroughBalancer,
        Mode::DsrL2 => Return::Direct,
    };
    let network = Network::build(Arms::Two, way_back, BACKENDS)?;
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
    let seen = access_logs(&servers, &before, answers.len())?;
    table_of_shares(&network, &servers, &seen)?;
    check_addresses(&network, &seen, &answers)?;
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

/// `lb-user`, run as an operator would.
struct LoadBalancer {
    program: PathBuf,
    instance: String,
    ended: bool,
}

/// The parts of `status -o json` that are read here.
#[derive(Deserialize)]
struct Status {
    services: Vec<ServiceStatus>,
}

#[derive(Deserialize)]
struct ServiceStatus {
    backends: Vec<BackendStatus>,
}

#[derive(Deserialize)]
struct BackendStatus {
    mac: Option<String>,
}

impl LoadBalancer {
    fn new(mode: &str) -> Result<Self> {
        let program = env::var_os("LB_USER")
            .map(PathBuf::from)
            .or_else(|| Some(env::current_exe().ok()?.with_file_name("lb-user")))
            .filter(|program| program.exists())
            .context("lb-user is not built: cargo xtask demo")?;
        Ok(Self {
            program,
            instance: format!("demo-{mode}-{}", std::process::id()),
            ended: false,
        })
    }

    /// Shows a command, runs it and shows what it printed.
    fn command(&self, line: &str) -> Result<()> {
        println!("$ sudo lb-user --instance {} {line}", self.instance);
        print!("{}", self.output(line)?);
        Ok(())
    }

    fn output(&self, line: &str) -> Result<String> {
        let mut command = Command::new(&self.program);
        command
            .args(["--instance", &self.instance])
            .args(line.split_whitespace());
        finish(&mut command, COMMAND_LIMIT)?
            .text()
            .with_context(|| format!("lb-user {line}"))
    }

    fn wait_until_resolved(&self) -> Result<()> {
        wait::until_true("the backends' MAC addresses", wait::LONG, || {
            let status: Status = serde_json::from_str(&self.output("status -o json")?)?;
            Ok(status
                .services
                .iter()
                .flat_map(|s| &s.backends)
                .all(|b| b.mac.is_some()))
        })
    }

    fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/lb-user").join(&self.instance)
    }

    fn state(&self) -> PathBuf {
        Path::new("/var/lib/lb-user").join(&self.instance)
    }

    /// Takes the program off the interfaces and forgets the configuration.
    fn end(mut self) -> Result<()> {
        self.command("detach")?;
        self.ended = true;
        std::fs::remove_dir_all(self.state()).context("cannot remove the demo's state")
    }

    fn forget(mut self) {
        self.ended = true;
    }
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        if !self.ended {
            // The demo has failed and says why; this only tidies up.
            let _ = self.output("detach");
            let _ = std::fs::remove_dir_all(self.state());
        }
    }
}

/// What curl says of one request.
#[derive(Clone, Debug, Deserialize)]
struct Answer {
    http_code: u16,
    local_ip: String,
    errormsg: Option<String>,
}

/// Sends `count` requests, each over a connection of its own, eight at a time.
fn requests(network: &Network, to: SocketAddr, count: usize) -> Result<Vec<Answer>> {
    let mut command = Command::new("curl");
    command
        .args([
            "--silent",
            "--parallel",
            "--parallel-max",
            "8",
            "--max-time",
            "10",
        ])
        .args(["--header", "Connection: close", "--output", "/dev/null"])
        .args(["--write-out", "%{json}\\n"])
        .arg(format!("http://{to}/?[1-{count}]"));
    let finished = network
        .client
        .netns
        .finish(&mut command, Duration::from_secs(60))?;
    // curl ends with an error if any request failed; which ones, its lines tell.
    let text = String::from_utf8(finished.stdout).context("curl")?;
    let answers: Vec<Answer> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("curl: {line}")))
        .collect::<Result<_>>()?;
    ensure!(
        answers.len() == count,
        "curl told of {} requests, not {count}",
        answers.len()
    );
    Ok(answers)
}

/// Fails if a request was lost.
fn judge(answers: &[Answer]) -> Result<()> {
    let lost: Vec<&Answer> = answers.iter().filter(|a| a.http_code != 200).collect();
    match lost.first() {
        None => Ok(()),
        Some(first) => bail!(
            "{} of {} requests were lost, the first with status {} ({})",
            lost.len(),
            answers.len(),
            first.http_code,
            first.errormsg.as_deref().unwrap_or("no message")
        ),
    }
}

/// The access log lines of each server since `before`, once all `count` are written.
fn access_logs(servers: &[Nginx], before: &[usize], count: usize) -> Result<Vec<Vec<Access>>> {
    wait::until(
        "a line for every request in the access logs",
        wait::LONG,
        || {
            let logs: Vec<Vec<Access>> = servers
                .iter()
                .zip(before)
                .map(|(server, &before)| Ok(server.accesses()?.split_off(before)))
                .collect::<Result<_>>()?;
            let lines: usize = logs.iter().map(Vec::len).sum();
            Ok((lines >= count).then_some(logs))
        },
    )
}

/// Prints the share of each backend and the addresses in its log, beside the client's own.
fn table_of_shares(network: &Network, servers: &[Nginx], logs: &[Vec<Access>]) -> Result<()> {
    let total: usize = logs.iter().map(Vec::len).sum();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "backend",
        "requests",
        "share",
        "remote_addr in its access log",
        "the client's own address",
    ]);
    for (server, log) in servers.iter().zip(logs) {
        let mut addresses: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for access in log {
            *addresses.entry(access.remote_addr).or_default() += 1;
        }
        let seen: Vec<String> = addresses
            .iter()
            .map(|(address, lines)| format!("{address} ({lines} lines)"))
            .collect();
        table.add_row([
            server.name().to_owned(),
            log.len().to_string(),
            format!("{:.1} %", 100.0 * log.len() as f64 / total as f64),
            seen.join(", "),
            network.client.address(Family::V4).to_string(),
        ]);
    }
    println!("\n{table}");
    Ok(())
}

/// Fails if a backend saw another address than the client's.
fn check_addresses(network: &Network, logs: &[Vec<Access>], answers: &[Answer]) -> Result<()> {
    let own: IpAddr = network.client.address(Family::V4);
    ensure!(
        answers.iter().all(|a| a.local_ip == own.to_string()),
        "curl did not use the client's address {own}"
    );
    for access in logs.iter().flatten() {
        ensure!(
            access.remote_addr == own,
            "an access log has {} where the client's address {own} should be",
            access.remote_addr
        );
    }
    Ok(())
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

/// Packets and run time of the program, as the kernel counts them.
struct Measure {
    pin: PathBuf,
    runs: u64,
    time: Duration,
    /// The kernel measures as long as this is open.
    _switch: std::os::fd::OwnedFd,
}

struct Cost {
    packets: u64,
    nanos_per_packet: f64,
}

impl Measure {
    fn start(lb: &LoadBalancer) -> Result<Self> {
        let switch = aya::sys::enable_stats(Stats::RunTime)?;
        let pin = lb.pins().join("program");
        let info = ProgramInfo::from_pin(&pin)?;
        Ok(Self {
            pin,
            runs: info.run_count(),
            time: info.run_time(),
            _switch: switch,
        })
    }

    fn end(self) -> Result<Cost> {
        let info = ProgramInfo::from_pin(&self.pin)?;
        let packets = info.run_count() - self.runs;
        ensure!(packets > 0, "no packet went through the program");
        let nanos = (info.run_time() - self.time).as_nanos();
        Ok(Cost {
            packets,
            nanos_per_packet: nanos as f64 / packets as f64,
        })
    }
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
    println!(
        "  sudo {} --instance {} status",
        lb.program.display(),
        lb.instance
    );
    println!("To end it:");
    println!(
        "  sudo {} --instance {} detach",
        lb.program.display(),
        lb.instance
    );
    println!("  sudo rm -r {}", lb.state().display());
    let prefix = format!("lbt-{}-", std::process::id());
    println!(
        "  for n in $(ip netns list | grep -o '^{prefix}[^ ]*'); do sudo ip netns pids $n | xargs -r sudo kill; sudo ip netns del $n; done"
    );
}
