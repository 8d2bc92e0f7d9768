//! The packet that was typed, as a frame.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_common::{
    abi::Mac,
    host::frame::Frame,
    wire::{
        ip::{Ipv4Header, Ipv6Header, TCP, UDP},
        l4::{SYN, TcpHeader, UdpHeader},
    },
};

use super::Place;
use crate::{cli, config::Protocol};

/// Source MAC address of a packet whose sender's is not known: a locally administered one.
pub(super) const UNKNOWN_SENDER: Mac = Mac([2, 0, 0, 0, 0, 0]);

/// A packet that can be.
#[derive(Clone, Debug)]
pub(super) struct Question {
    from: SocketAddr,
    to: SocketAddr,
    protocol: Protocol,
    flags: u8,
    ttl: u8,
    payload: usize,
    may_be_cut: Cut,
}

/// Whether a router may cut a packet that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// DF is set, as most senders do.
    No,
    /// It is not.
    Yes,
}

impl Question {
    /// The packet of the command line; none if the packets are in a file.
    pub(super) fn checked(options: &cli::Trace) -> Result<Option<Self>> {
        let (Some(from), Some(to)) = (options.src, options.dst) else {
            return Ok(None);
        };
        let family = |ip: IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        ensure!(
            from.is_ipv4() == to.is_ipv4(),
            "--src is {} and --dst is {}: give two addresses of one family",
            family(from.ip()),
            family(to.ip())
        );
        let is_tcp = options.proto == Protocol::Tcp;
        ensure!(
            is_tcp || options.flags.is_none(),
            "UDP has no flags: leave out --flags or give --proto tcp"
        );
        let ip = if from.is_ipv4() {
            Ipv4Header::LEN
        } else {
            Ipv6Header::LEN
        };
        let headers = ip
            + if is_tcp {
                TcpHeader::LEN
            } else {
                UdpHeader::LEN
            };
        let size = options.size.map_or(headers, usize::from);
        ensure!(
            size >= headers,
            "--size {size} is too small: the headers alone have {headers} bytes"
        );
        Ok(Some(Self {
            from,
            to,
            protocol: options.proto,
            flags: options.flags.unwrap_or(SYN),
            ttl: options.ttl,
            payload: size - headers,
            may_be_cut: if options.no_df { Cut::Yes } else { Cut::No },
        }))
    }

    /// Where it comes from.
    pub(super) const fn source(&self) -> IpAddr {
        self.from.ip()
    }

    /// As it comes in at a place.
    pub(super) fn frame(&self, place: &Place) -> Vec<u8> {
        let number = match self.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        let mut frame = Frame::of(number, self.from, self.to, self.flags);
        frame.dont_fragment = self.from.is_ipv4() && self.may_be_cut == Cut::No;
        frame
            .macs(place.sender, place.own)
            .ttl(self.ttl)
            .payload(&vec![0; self.payload])
            .bytes()
    }
}
