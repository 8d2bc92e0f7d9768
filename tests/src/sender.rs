//! A load balancer of a few lines: what clients send to the service comes in as raw frames, and goes
//! to a backend in a tunnel. The kernel's own checksums and retransmissions, somebody else's headers.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_common::{
    abi::{Mac, decap::GUE_PORT},
    host::frame::{Frame, Transport},
    wire::{eth, ip},
};

use crate::{
    frames::Wire,
    topology::{Family, Network, service},
};

/// How packets are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// IP in IP.
    Ipip,
    /// GUE variant 1, with a checksum or without.
    Gue {
        /// Destination port.
        port: u16,
        /// Whether the outer UDP header has a checksum.
        checksum: bool,
    },
}

impl Tunnel {
    /// Every kind, GUE to the usual port.
    pub const ALL: [Self; 3] = [
        Self::Ipip,
        Self::Gue {
            port: GUE_PORT,
            checksum: true,
        },
        Self::Gue {
            port: GUE_PORT,
            checksum: false,
        },
    ];

    /// `packet`, an IP packet, on its way from `from` to `to`.
    #[must_use]
    pub fn around(self, from: IpAddr, to: IpAddr, packet: &[u8]) -> Frame {
        match self {
            Self::Ipip => {
                let is_v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
                let protocol = if is_v4 { ip::IPV4 } else { ip::IPV6 };
                Frame::new(from, to, Transport::Other(protocol))
            }
            Self::Gue { port, checksum } => {
                let frame = Frame::udp(SocketAddr::new(from, 50_001), SocketAddr::new(to, port));
                if checksum {
                    frame
                } else {
                    frame.without_checksum()
                }
            }
        }
        .payload(packet)
    }
}

/// Sends what clients send to [`service`] on to the first backend, until it is dropped. Needs a
/// network with two arms and direct return, whose balancer does not forward.
#[derive(Debug)]
pub struct Sender {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Sender {
    /// Begins: wraps as `tunnel` says, in packets of family `outer` from the balancer's own inner
    /// address ([`Sender::source`]).
    ///
    /// # Errors
    ///
    /// When an interface is missing.
    pub fn start(network: &Network, tunnel: Tunnel, outer: Family) -> Result<Self> {
        let clients = Wire::open(&network.balancer.netns, "eth0")?;
        let backends = Wire::open(&network.balancer.netns, "eth1")?;
        let backend = &network.backends[0];
        let destination = Mac(backend.netns.mac("eth0")?);
        let source = Mac(backends.mac());
        let (from, to) = (Self::source(outer), backend.address(outer));
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let work = move || -> Result<()> {
            while !told.load(Ordering::Relaxed) {
                let Some(frame) = clients.receive(Duration::ZERO, is_for_the_service)? else {
                    continue;
                };
                let wrapped = tunnel.around(from, to, &frame[14..]);
                backends.send(&wrapped.macs(source, destination).bytes())?;
            }
            Ok(())
        };
        Ok(Self {
            ends,
            thread: Some(thread::spawn(work)),
        })
    }

    /// Where the outer packets are from.
    #[must_use]
    pub const fn source(outer: Family) -> IpAddr {
        match outer {
            Family::V4 => IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 1)),
            Family::V6 => IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 1)),
        }
    }

    /// Ends.
    ///
    /// # Errors
    ///
    /// When a frame could not be sent.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.ends.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let ended = thread.join();
        ensure!(ended.is_ok(), "the load balancer of the test panicked");
        ended.unwrap_or(Ok(()))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("the load balancer of the test: {error:#}");
        }
    }
}

fn is_for_the_service(frame: &[u8]) -> bool {
    let (family, destination) = match frame.get(12..14) {
        Some(kind) if *kind == eth::IPV4 => (Family::V4, frame.get(30..34)),
        Some(kind) if *kind == eth::IPV6 => (Family::V6, frame.get(38..54)),
        _ => return false,
    };
    match (service(family), destination) {
        (IpAddr::V4(service), Some(destination)) => service.octets() == *destination,
        (IpAddr::V6(service), Some(destination)) => service.octets() == *destination,
        (_, None) => false,
    }
}
