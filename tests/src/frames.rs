//! Frames made by hand, sent and received as bytes past the kernel's IP stack (packet(7)).
//!
//! Promise: what [`Wire::send`] is given goes out as it is; what [`Wire::receive`] gives is what came in,
//! after any XDP program of the interface let it pass. VLAN tags are the exception: the kernel
//! takes them out of what it hands over.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom,
            send, setsockopt, socket,
            sockopt::{RcvBuf, ReceiveTimeout},
        },
        time::{TimeVal, TimeValLike},
    },
};

use crate::netns::Netns;

/// `sll_pkttype` of a frame that this host sends itself (packet(7)).
const OUTGOING: u8 = 4;

/// Time after which [`Wire::receive`] looks at its deadline.
const SLICE: Duration = Duration::from_millis(100);

/// A network interface as raw frames.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Wire {
    /// Opens interface `device` of `netns`. What comes in from now on is kept for [`Wire::receive`].
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        let link = netns.link(device)?;
        let socket = netns.run(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )?;
            bind(socket.as_raw_fd(), &link).with_context(|| format!("cannot bind to {device}"))?;
            Ok(socket)
        })?;
        setsockopt(
            &socket,
            ReceiveTimeout,
            &TimeVal::milliseconds(i64::try_from(SLICE.as_millis())?),
        )?;
        setsockopt(&socket, RcvBuf, &(4 << 20))?;
        Ok(Self { socket, link })
    }

    /// Hardware address of the interface.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.link.addr().unwrap_or_default()
    }

    /// Sends one frame, Ethernet header first.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, for example as too long.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        ensure!(sent == frame.len(), "{sent} of {} bytes sent", frame.len());
        Ok(())
    }

    /// The next frame that comes in and that `wanted` says yes to; others are thrown away.
    /// None when `limit` is over.
    ///
    /// # Errors
    ///
    /// When the interface is gone.
    pub fn receive(
        &self,
        limit: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    let incoming = from.is_none_or(|from| from.pkttype() != OUTGOING);
                    if incoming && wanted(&buffer[..length]) {
                        buffer.truncate(length);
                        return Ok(Some(buffer));
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot receive frames"),
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }
}

/// The three fields of an Ethernet header.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    /// Destination MAC address.
    pub to: [u8; 6],
    /// Source MAC address.
    pub from: [u8; 6],
}

impl Ethernet {
    /// A frame with this header, `ethertype` and `payload`; no padding, no checksum.
    #[must_use]
    pub fn frame(self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&self.to, &self.from, &ethertype.to_be_bytes()[..], payload].concat()
    }
}

/// Bytes of one fragment, but for the last; a multiple of 8.
const FRAGMENT: usize = 256;

/// The IP packets (without Ethernet header) that carry UDP from `from` to `to` with `payload` in
/// fragments of 256 bytes, first fragment first.
///
/// # Errors
///
/// When the two addresses are not of one family, or the payload is too long for UDP.
pub fn udp_fragments(
    from: std::net::SocketAddr,
    to: std::net::SocketAddr,
    identification: u16,
    payload: &[u8],
) -> Result<Vec<Vec<u8>>> {
    use std::net::SocketAddr::{V4, V6};
    match (from, to) {
        (V4(from), V4(to)) => {
            let (source, destination) = (from.ip().octets(), to.ip().octets());
            let udp = etherparse::UdpHeader::with_ipv4_checksum(
                from.port(),
                to.port(),
                &Ipv4Header::new(0, 64, IpNumber::UDP, source, destination)?,
                payload,
            )?;
            pieces(
                &[&udp.to_bytes()[..], payload].concat(),
                |offset, more, part| {
                    let length = u16::try_from(part.len())?;
                    let mut ip = Ipv4Header::new(length, 64, IpNumber::UDP, source, destination)?;
                    ip.identification = identification;
                    ip.dont_fragment = false;
                    ip.more_fragments = more;
                    ip.fragment_offset = offset;
                    ip.header_checksum = ip.calc_header_checksum();
                    Ok([&ip.to_bytes()[..], part].concat())
                },
            )
        }
        (V6(from), V6(to)) => {
            let mut ip = Ipv6Header {
                hop_limit: 64,
                source: from.ip().octets(),
                destination: to.ip().octets(),
                next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
                ..Ipv6Header::default()
            };
            let udp =
                etherparse::UdpHeader::with_ipv6_checksum(from.port(), to.port(), &ip, payload)?;
            pieces(
                &[&udp.to_bytes()[..], payload].concat(),
                |offset, more, part| {
                    let fragment = Ipv6FragmentHeader::new(
                        IpNumber::UDP,
                        offset,
                        more,
                        u32::from(identification),
                    );
                    let fragment = fragment.to_bytes();
                    ip.payload_length = u16::try_from(fragment.len() + part.len())?;
                    Ok([&ip.to_bytes()[..], &fragment, part].concat())
                },
            )
        }
        _ => anyhow::bail!("{from} and {to} are not of one family"),
    }
}

/// Cuts `whole` and makes a packet of every piece: its offset, whether more follow, its bytes.
fn pieces(
    whole: &[u8],
    mut packet: impl FnMut(IpFragOffset, bool, &[u8]) -> Result<Vec<u8>>,
) -> Result<Vec<Vec<u8>>> {
    let last = whole.len().div_ceil(FRAGMENT) - 1;
    whole
        .chunks(FRAGMENT)
        .enumerate()
        .map(|(index, part)| {
            let offset = IpFragOffset::try_new(u16::try_from(index * FRAGMENT / 8)?)?;
            packet(offset, index < last, part)
        })
        .collect()
}
