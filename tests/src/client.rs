//! Clients: what they send from, and what they learn from the answer.
//!
//! * [`Conversation`] (TCP) and [`Datagrams`] (UDP) talk to a [`crate::server::Mirror`] from a
//!   chosen address and port; [`converse_many`] opens thousands one after the other on few threads.
//! * [`curl`] and [`Download`] are real HTTP clients, for [`crate::server::Nginx`].
//! * [`iperf3`] is for bulk, [`ping`] for ICMP.
//!
//! Promise: a lost answer is an error within seconds, never a hang.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Command,
    str::FromStr,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{errno::Errno, libc};
use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    netns::Netns,
    process::{Process, finish},
    wait,
};

/// How long an answer may take: three SYNs' worth, so that a test fails on loss, not on load.
const PATIENCE: Duration = Duration::from_secs(8);

/// Threads of [`converse_many`]: enough to keep two cores busy.
const WORKERS: usize = 8;

/// How the server saw a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Name of the server that answered.
    pub server: String,
    /// The client as the server saw it.
    pub peer: SocketAddr,
    /// The server's address that was asked, as the server saw it.
    pub local: SocketAddr,
    /// What was said, sent back.
    pub said: String,
}

impl FromStr for Answer {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        let [server, peer, local, said] = parts[..] else {
            return Err(anyhow!("not an answer of a mirror: {line:?}"));
        };
        Ok(Self {
            server: server.to_owned(),
            peer: peer.parse()?,
            local: local.parse()?,
            said: said.to_owned(),
        })
    }
}

/// A TCP connection to a mirror. The connected socket takes only what comes from the address it
/// was opened to, so an answer means that the client saw the service's own address and port.
#[derive(Debug)]
pub struct Conversation {
    stream: BufReader<TcpStream>,
    from: SocketAddr,
}

impl Conversation {
    /// Connects from `from` (port 0: any) to `to`.
    ///
    /// # Errors
    ///
    /// When the connection is refused or nobody answers.
    pub fn open(netns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        netns.run(|| Self::open_here(from, to))
    }

    /// As [`Self::open`], with eight bytes of IPv4 options ("no operation", RFC 791 section 3.1) in
    /// every packet.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; and when the family is not IPv4.
    pub fn open_with_options(netns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        netns.run(|| Self::open_as(from, to, |socket| send_with_options(socket, &[1; 8])))
    }

    fn open_here(from: SocketAddr, to: SocketAddr) -> Result<Self> {
        Self::open_as(from, to, |_| Ok(()))
    }

    fn open_as(
        from: SocketAddr,
        to: SocketAddr,
        prepare: impl FnOnce(&Socket) -> Result<()>,
    ) -> Result<Self> {
        let told = || format!("TCP {from} -> {to}");
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into()).with_context(told)?;
        prepare(&socket).with_context(told)?;
        socket
            .connect_timeout(&to.into(), PATIENCE)
            .with_context(told)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let from = stream.local_addr()?;
        Ok(Self {
            stream: BufReader::new(stream),
            from,
        })
    }

    /// The client's own address and port.
    #[must_use]
    pub const fn from(&self) -> SocketAddr {
        self.from
    }

    /// Says a line and waits for the answer to it.
    ///
    /// # Errors
    ///
    /// When the connection breaks, nobody answers, or the answer is to something else.
    pub fn ask(&mut self, said: &str) -> Result<Answer> {
        let told = || format!("TCP from {}, asking {said:?}", self.from);
        let line = format!("{said}\n");
        let mut stream = self.stream.get_ref();
        stream.write_all(line.as_bytes()).with_context(told)?;
        let mut answer = String::new();
        let length = self.stream.read_line(&mut answer).with_context(told)?;
        ensure!(length > 0, "{}: closed by the other side", told());
        let answer: Answer = answer.trim_end().parse().with_context(told)?;
        ensure!(answer.said == said, "{}: {answer:?}", told());
        Ok(answer)
    }
}

/// Has a socket's IPv4 packets carry these options (ip(7), `IP_OPTIONS`), for which there is no safe
/// call.
fn send_with_options(socket: &Socket, options: &[u8]) -> Result<()> {
    let length = libc::socklen_t::try_from(options.len())?;
    #[expect(unsafe_code, reason = "no crate has a safe call for IP_OPTIONS")]
    // SAFETY: the descriptor is open as long as `socket` is lent, and the kernel only reads the
    // `length` bytes of `options`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            length,
        )
    };
    Errno::result(result).context("cannot set IPv4 options")?;
    Ok(())
}

/// Opens a connection from each address of `from` to `to`, one question each, and closes it.
/// The result is in the order of `from`.
///
/// # Errors
///
/// With the first connection that fails.
pub fn converse_many(netns: &Netns, from: &[SocketAddr], to: SocketAddr) -> Result<Vec<Answer>> {
    // Threads made by a thread inside a namespace are inside, too.
    netns.run(|| {
        thread::scope(|scope| {
            let share = from.len().div_ceil(WORKERS).max(1);
            let workers: Vec<_> = from
                .chunks(share)
                .map(|part| {
                    scope.spawn(move || {
                        part.iter()
                            .map(|&from| Conversation::open_here(from, to)?.ask("who"))
                            .collect::<Result<Vec<_>>>()
                    })
                })
                .collect();
            let mut answers = Vec::with_capacity(from.len());
            for worker in workers {
                answers.extend(worker.join().map_err(|_| anyhow!("a client panicked"))??);
            }
            Ok(answers)
        })
    })
}

/// `count` ports of `address` from `first` on.
#[must_use]
pub fn ports(address: IpAddr, first: u16, count: u16) -> Vec<SocketAddr> {
    (first..first + count)
        .map(|port| SocketAddr::new(address, port))
        .collect()
}

/// A UDP socket that talks to one mirror and takes nothing from anybody else.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    from: SocketAddr,
}

impl Datagrams {
    /// Binds to `from` (port 0: any) and connects to `to`.
    ///
    /// # Errors
    ///
    /// When the address is taken or there is no route.
    pub fn open(netns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        netns.run(|| {
            // A program that another test starts just now holds a copy of every socket until its exec.
            let socket =
                wait::until(
                    &format!("UDP from {from}"),
                    wait::LONG,
                    || match UdpSocket::bind(from) {
                        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
                        bound => Ok(Some(bound?)),
                    },
                )?;
            socket
                .connect(to)
                .with_context(|| format!("UDP {from} -> {to}"))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let from = socket.local_addr()?;
            Ok(Self { socket, from })
        })
    }

    /// The client's own address and port.
    #[must_use]
    pub const fn from(&self) -> SocketAddr {
        self.from
    }

    /// Sends one datagram and waits for its answer; there is no second try.
    ///
    /// # Errors
    ///
    /// When no answer comes, or one to something else.
    pub fn ask(&self, said: &str) -> Result<Answer> {
        let told = || format!("UDP from {}, {} bytes", self.from, said.len());
        self.socket.send(said.as_bytes()).with_context(told)?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        // A signal to the process, such as the end of a child, may interrupt a receive with a
        // deadline, which the standard library does not repeat.
        let length = loop {
            match self.socket.recv(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received.with_context(told)?,
            }
        };
        let answer = std::str::from_utf8(&buffer[..length]).with_context(told)?;
        let answer: Answer = answer.parse().with_context(told)?;
        ensure!(answer.said == said, "{}: {} bytes back", told(), length);
        Ok(answer)
    }
}

/// A page fetched over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// Body as text, without the newline at its end.
    pub body: String,
    /// The client's own address and port.
    pub from: SocketAddr,
    /// The address and port that curl was connected to.
    pub to: SocketAddr,
}

/// What curl's `--write-out %{json}` says; more members than we read.
#[derive(Deserialize)]
struct WriteOut {
    http_code: u16,
    local_ip: IpAddr,
    local_port: u16,
    remote_ip: IpAddr,
    remote_port: u16,
}

/// Fetches `http://TO/` with curl.
///
/// # Errors
///
/// When curl is missing, or no HTTP answer comes.
pub fn curl(netns: &Netns, to: SocketAddr) -> Result<Page> {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--max-time", "8"])
        .args(["--write-out", "%{stderr}%{json}"])
        .arg(format!("http://{to}/"));
    let finished = netns.finish(&mut command, PATIENCE + PATIENCE)?;
    let told = finished.stderr.clone();
    let body = finished.text()?.trim_end().to_owned();
    let seen: WriteOut = serde_json::from_str(&told).with_context(|| format!("curl: {told}"))?;
    Ok(Page {
        status: seen.http_code,
        body,
        from: SocketAddr::new(seen.local_ip, seen.local_port),
        to: SocketAddr::new(seen.remote_ip, seen.remote_port),
    })
}

/// A download that runs beside the test; its content goes through `sha256sum`, not to the disk.
#[derive(Debug)]
pub struct Download {
    process: Process,
}

impl Download {
    /// Starts fetching `http://TO/big` with curl at `rate` (as curl's `--limit-rate` takes it, such as
    /// `100M`: bytes per second).
    ///
    /// # Errors
    ///
    /// When curl is missing.
    pub fn start(netns: &Netns, to: SocketAddr, rate: &str) -> Result<Self> {
        let script = "set -o pipefail; curl --silent --show-error --fail --limit-rate \"$1\" \"$2\" | sha256sum";
        let process = netns.spawn(
            Command::new("bash")
                .args(["-c", script, "download", rate])
                .arg(format!("http://{to}/big")),
        )?;
        Ok(Self { process })
    }

    /// True while bytes are still coming.
    #[must_use]
    pub fn runs(&mut self) -> bool {
        self.process.still_runs().is_ok()
    }

    /// Waits for the end and gives the SHA-256 of what arrived.
    ///
    /// # Errors
    ///
    /// When the transfer broke off or does not end within `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<String> {
        let status = self.process.wait(limit)?;
        let log = self.process.log();
        ensure!(status.success(), "download: {status}: {log}");
        first_word(&log)
    }
}

/// SHA-256 of a file's content, in lower-case hex.
///
/// # Errors
///
/// When `sha256sum` is missing or the file cannot be read.
pub fn sha256(file: File) -> Result<String> {
    let output = Command::new("sha256sum").stdin(file).output()?;
    ensure!(output.status.success(), "sha256sum: {}", output.status);
    first_word(std::str::from_utf8(&output.stdout)?)
}

fn first_word(line: &str) -> Result<String> {
    let word = line.split_whitespace().next();
    Ok(word.context("no checksum was printed")?.to_owned())
}

/// Runs an iperf3 client against `to` with further `arguments`; gives its JSON report.
///
/// # Errors
///
/// When iperf3 is missing or the run fails.
pub fn iperf3(netns: &Netns, to: SocketAddr, arguments: &[&str]) -> Result<serde_json::Value> {
    let mut command = Command::new("iperf3");
    command
        .args(["--json", "--client", &to.ip().to_string()])
        .args(["--port", &to.port().to_string()])
        .args(arguments);
    let finished = netns.finish(&mut command, Duration::from_secs(60))?;
    Ok(serde_json::from_str(&finished.text()?)?)
}

/// Sends `count` pings with `payload` bytes each and fails if one stays unanswered.
///
/// # Errors
///
/// When ping is missing or an answer does not come.
pub fn ping(netns: &Netns, to: IpAddr, count: u8, payload: u16) -> Result<()> {
    let mut command = Command::new("ping");
    command
        .args(["-n", "-i", "0.02", "-W", "5", "-c", &count.to_string()])
        .args(["-s", &payload.to_string(), &to.to_string()]);
    let output = netns.run(|| finish(&mut command, Duration::from_secs(30)))?;
    let text = output.text()?;
    let whole = format!("{count} packets transmitted, {count} received");
    ensure!(text.contains(&whole), "{text}");
    Ok(())
}
