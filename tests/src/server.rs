//! Servers for the backends: each says which one it is and how the client looks from where it stands.
//!
//! * [`Nginx`]: a real web server, with an access log of JSON lines that is read back.
//! * [`Mirror`]: TCP and UDP; every line or datagram is answered with the server's name, the
//!   client's address and port, the address asked, and what was said.
//! * [`iperf3`]: for bulk.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{self, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    runtime::{self, Runtime},
};

use crate::{netns::Netns, process::Process, wait};

/// One line of nginx's access log.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Access {
    /// The client's address as the backend saw it.
    pub remote_addr: IpAddr,
    /// The client's port as the backend saw it.
    pub remote_port: u16,
    /// Request line, such as `GET / HTTP/1.1`.
    pub request: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// The address that the backend was asked at.
    pub server_addr: IpAddr,
    /// The port that the backend was asked at.
    pub server_port: u16,
    /// Length of the answer's body in bytes.
    pub bytes: u64,
}

/// An nginx in a namespace. `GET /` answers with its name and a newline, `GET /big` with a file.
#[derive(Debug)]
pub struct Nginx {
    name: String,
    folder: TempDir,
    process: Process,
}

impl Nginx {
    /// Starts nginx in `netns`, waits until it listens on each of `addresses`. `big` is the file
    /// behind `/big`, sent with sendfile(2).
    ///
    /// # Errors
    ///
    /// When nginx is missing or does not come up; the message has its error log.
    pub fn start(
        netns: &Netns,
        name: &str,
        addresses: &[SocketAddr],
        big: Option<&Path>,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("{name}-nginx-"))
            .tempdir()
            .context("cannot make a folder for nginx")?;
        let config = folder.path().join("nginx.conf");
        fs::write(&config, configuration(name, addresses, big))?;
        let process = netns
            .spawn(
                Command::new("nginx")
                    .arg("-p")
                    .arg(folder.path())
                    .arg("-c")
                    .arg(&config)
                    .args(["-e", "error.log"]),
            )
            .context("nginx is needed")?;
        let mut nginx = Self {
            name: name.to_owned(),
            folder,
            process,
        };
        nginx.wait_until_up(netns, addresses)?;
        Ok(nginx)
    }

    /// The name it answers with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The access log so far, oldest first.
    ///
    /// # Errors
    ///
    /// When a line is not the JSON it should be.
    pub fn accesses(&self) -> Result<Vec<Access>> {
        let log = fs::read_to_string(self.folder.path().join("access.log"))?;
        // The last piece is either empty or a line that is just being written.
        let (whole, _) = log.rsplit_once('\n').unwrap_or_default();
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("access log: {line}")))
            .collect()
    }

    /// The access log as soon as it has at least `count` lines (nginx writes a line after the
    /// client has its answer).
    ///
    /// # Errors
    ///
    /// When the lines do not come.
    pub fn accesses_once(&self, count: usize) -> Result<Vec<Access>> {
        let what = format!("{count} lines in the access log of {}", self.name);
        wait::until(&what, wait::LONG, || {
            let accesses = self.accesses()?;
            Ok((accesses.len() >= count).then_some(accesses))
        })
    }

    fn wait_until_up(&mut self, netns: &Netns, addresses: &[SocketAddr]) -> Result<()> {
        for &address in addresses {
            let what = format!("nginx on {address}");
            let answers = || {
                self.process.still_runs()?;
                let connected = netns.run(|| {
                    Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
                })?;
                Ok(connected)
            };
            wait::until_true(&what, wait::LONG, answers)?;
        }
        Ok(())
    }
}

/// One process without daemon and master, so that ending it ends all of it; its log is written
/// line by line.
fn configuration(name: &str, addresses: &[SocketAddr], big: Option<&Path>) -> String {
    let mut listen = String::new();
    for address in addresses {
        let _ = write!(listen, "listen {address}; ");
    }
    let big = big.map_or_else(String::new, |file| {
        format!("location = /big {{ alias {}; }}", file.display())
    });
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {kind};\n"))
        .collect();
    format!(
        r#"daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
{temporary}
log_format seen escape=json '{{"remote_addr":"$remote_addr","remote_port":$remote_port,"request":"$request","status":$status,"server_addr":"$server_addr","server_port":$server_port,"bytes":$body_bytes_sent}}';
access_log access.log seen;
default_type text/plain;
sendfile on;
keepalive_timeout 300;
keepalive_requests 1000000;
server {{
{listen}
location = / {{ return 200 "{name}\n"; }}
{big}
}}
}}
"#
    )
}

/// A server that tells the asker how it looks from here, over TCP (line by line, for as long as
/// the connection stands) and UDP (datagram by datagram). Stops when dropped.
#[derive(Debug)]
pub struct Mirror {
    runtime: Option<Runtime>,
}

impl Mirror {
    /// Starts it in `netns` under `name`, which must not have spaces, on every one of `addresses`.
    ///
    /// # Errors
    ///
    /// When an address cannot be listened on.
    pub fn start(netns: &Netns, name: &str, addresses: &[SocketAddr]) -> Result<Self> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(name)
            .enable_all()
            .build()?;
        for &address in addresses {
            let (tcp, udp) = netns.run(|| sockets(address))?;
            let _inside = runtime.enter();
            let tcp = tokio::net::TcpListener::from_std(tcp)?;
            let udp = tokio::net::UdpSocket::from_std(udp)?;
            runtime.spawn(serve_connections(tcp, name.to_owned()));
            runtime.spawn(serve_datagrams(udp, name.to_owned(), address));
        }
        Ok(Self {
            runtime: Some(runtime),
        })
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Both sockets of one address; made inside the namespace, they stay there.
fn sockets(address: SocketAddr) -> Result<(TcpListener, UdpSocket)> {
    let tcp = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    tcp.set_nonblocking(true)?;
    let udp = UdpSocket::bind(address).with_context(|| format!("cannot bind to {address}"))?;
    udp.set_nonblocking(true)?;
    Ok((tcp, udp))
}

async fn serve_connections(listener: tokio::net::TcpListener, name: String) {
    while let Ok((stream, peer)) = listener.accept().await {
        tokio::spawn(answer_lines(stream, peer, name.clone()));
    }
}

/// Ends with the connection, whichever way that ends.
async fn answer_lines(stream: tokio::net::TcpStream, peer: SocketAddr, name: String) {
    let Ok(local) = stream.local_addr() else {
        return;
    };
    let _ = stream.set_nodelay(true);
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(said)) = lines.next_line().await {
        let answer = format!("{name} {peer} {local} {said}\n");
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn serve_datagrams(socket: tokio::net::UdpSocket, name: String, local: SocketAddr) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An ICMP error to an earlier answer shows up here; it is the client's, not ours.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let mut answer = format!("{name} {peer} {local} ").into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&answer, peer).await;
    }
}

/// Starts an iperf3 server on `address` and waits until it listens.
///
/// # Errors
///
/// When iperf3 is missing or does not come up.
pub fn iperf3(netns: &Netns, address: SocketAddr) -> Result<Process> {
    let mut process = netns
        .spawn(
            Command::new("iperf3")
                .args(["--server", "--forceflush"])
                .args(["--bind", &address.ip().to_string()])
                .args(["--port", &address.port().to_string()]),
        )
        .context("iperf3 is needed")?;
    wait::until_true("iperf3 to listen", wait::LONG, || {
        process.still_runs()?;
        Ok(process.log().contains("Server listening"))
    })?;
    Ok(process)
}

/// A file of random bytes, for [`Nginx`]'s `/big`. It has no name: it goes with this process,
/// however that ends.
#[derive(Debug)]
pub struct BigFile {
    path: PathBuf,
    /// SHA-256 of the content, in lower-case hex.
    pub sha256: String,
    // What the path leads to.
    _file: File,
}

impl BigFile {
    /// Makes a file of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// When the disk is full or a tool is missing.
    pub fn random(bytes: u64) -> Result<Self> {
        let file = tempfile::tempfile().context("cannot make a big file")?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
        let made = Command::new("head")
            .args(["--bytes", &bytes.to_string(), "/dev/urandom"])
            .stdout(file.try_clone()?)
            .status()?;
        ensure!(made.success(), "cannot fill a file with {bytes} bytes");
        let sha256 = crate::client::sha256(File::open(&path)?)?;
        Ok(Self {
            path,
            sha256,
            _file: file,
        })
    }

    /// Where it can be opened while this lives.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
