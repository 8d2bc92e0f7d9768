//! Frames that every packet of a run of [`crate::programs`] starts as.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use lb_common::{abi::Mac, datapath::parse::Family, wire::ip};

/// A frame to be built: minimal, padded with payload to [`Template::length`].
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// The station it is for.
    pub destination_mac: Mac,
    /// The station that sends it.
    pub source_mac: Mac,
    /// Address and port it comes from.
    pub source: (IpAddr, u16),
    /// Address and port it goes to.
    pub destination: (IpAddr, u16),
    /// [`ip::TCP`] or [`ip::UDP`].
    pub protocol: u8,
    /// TCP: whether it opens a connection. Otherwise it is an acknowledgement.
    pub opens: Opens,
}

/// Whether a TCP packet opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// A SYN.
    Yes,
    /// A bare ACK.
    No,
}

impl Template {
    /// IP version of both ends.
    #[must_use]
    pub fn family(&self) -> Family {
        match self.source.0 {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Bytes of the frame: the smallest multiple of 16 that holds the headers.
    #[must_use]
    pub fn length(&self) -> usize {
        match self.family() {
            Family::V4 => 64,
            Family::V6 => 80,
        }
    }

    /// The frame, with valid checksums.
    ///
    /// # Errors
    ///
    /// If the two ends are of different families.
    pub fn frame(&self) -> Result<Vec<u8>> {
        let builder = PacketBuilder::ethernet2(self.source_mac.0, self.destination_mac.0);
        let builder = match (self.source.0, self.destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                builder.ipv4(source.octets(), destination.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                builder.ipv6(source.octets(), destination.octets(), 64)
            }
            _ => anyhow::bail!("a frame between two address families"),
        };
        let mut frame = Vec::with_capacity(self.length());
        if self.protocol == ip::UDP {
            let builder = builder.udp(self.source.1, self.destination.1);
            let payload = vec![0; self.length() - builder.size(0)];
            builder.write(&mut frame, &payload)?;
        } else {
            let builder = builder.tcp(self.source.1, self.destination.1, 1000, 64000);
            let builder = match self.opens {
                Opens::Yes => builder.syn(),
                Opens::No => builder.ack(2000),
            };
            let payload = vec![0; self.length() - builder.size(0)];
            builder.write(&mut frame, &payload)?;
        }
        ensure!(
            frame.len() == self.length(),
            "a frame of {} bytes",
            frame.len()
        );
        Ok(frame)
    }

    /// The frame as the words that the program copies.
    ///
    /// # Errors
    ///
    /// As [`Template::frame`].
    pub fn words(&self) -> Result<[u64; 10]> {
        let mut words = [0; 10];
        for (word, bytes) in words.iter_mut().zip(self.frame()?.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            *word = u64::from_ne_bytes(eight);
        }
        Ok(words)
    }
}
