//! Packets of a capture file, pcap or pcapng.
//!
//! Frames are taken as they are; a packet captured without Ethernet header (`tcpdump -i any`,
//! tunnels) gets the one that it would have at the place where it is traced. What a short snapshot
//! length has cut off is put back as zeros, which the data path does not look at: it updates
//! checksums and does not compute them.

use std::{
    borrow::Cow,
    fs::File,
    io::{BufReader, Read as _, Seek as _},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use lb_common::wire::eth;
use pcap_file::{
    DataLink, PcapError,
    pcap::PcapReader,
    pcapng::{
        Block, PcapNgReader,
        blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
    },
};

use super::Place;

/// First bytes of a pcapng file: the section header's block type.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// First bytes of a pcap file: microseconds or nanoseconds, of either byte order.
const PCAP: [[u8; 4]; 4] = [
    [0xa1, 0xb2, 0xc3, 0xd4],
    [0xd4, 0xc3, 0xb2, 0xa1],
    [0xa1, 0xb2, 0x3c, 0x4d],
    [0x4d, 0x3c, 0xb2, 0xa1],
];

/// A file that is being read.
pub(super) struct Capture {
    path: PathBuf,
    format: Format,
}

enum Format {
    Pcap(PcapReader<BufReader<File>>),
    PcapNg(PcapNgReader<BufReader<File>>),
}

/// One packet of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// When it was captured, since an arbitrary moment.
    pub(super) time: Duration,
    /// How many of its bytes were not captured.
    pub(super) missing: usize,
    link: Link,
    bytes: Vec<u8>,
}

/// What a packet begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Ethernet,
    /// Nothing: IP, of this EtherType.
    Bare([u8; 2]),
}

/// Opens a capture.
pub(super) fn open(path: &Path) -> Result<Capture> {
    let name = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    let mut magic = [0; 4];
    let read = file.read_exact(&mut magic);
    file.rewind()
        .with_context(|| format!("cannot read {name}"))?;
    let broken = |error: PcapError| anyhow!("{name} is a damaged capture: {error}");
    let reader = BufReader::new(file);
    let format = if read.is_ok() && magic == PCAPNG {
        Format::PcapNg(PcapNgReader::new(reader).map_err(broken)?)
    } else if read.is_ok() && PCAP.contains(&magic) {
        Format::Pcap(PcapReader::new(reader).map_err(broken)?)
    } else {
        bail!("{name} is no capture: pcap and pcapng are read (tcpdump -w FILE)");
    };
    Ok(Capture {
        path: path.to_owned(),
        format,
    })
}

impl Capture {
    /// The next packet; none after the last.
    pub(super) fn next(&mut self) -> Result<Option<Packet>> {
        let name = self.path.display().to_string();
        let broken = |error: PcapError| anyhow!("{name} is a damaged capture: {error}");
        match &mut self.format {
            Format::Pcap(reader) => {
                let link = reader.header().datalink;
                match reader.next_packet() {
                    None => Ok(None),
                    Some(packet) => {
                        let packet = packet.map_err(broken)?;
                        packet_of(link, packet.timestamp, &packet.data, packet.orig_len).map(Some)
                    }
                }
            }
            Format::PcapNg(reader) => loop {
                let (interface, time, data, length) = match reader.next_block() {
                    None => return Ok(None),
                    Some(Err(error)) => return Err(broken(error)),
                    Some(Ok(Block::EnhancedPacket(block))) => (
                        block.interface_id as usize,
                        block.timestamp,
                        block.data.into_owned(),
                        block.original_len,
                    ),
                    Some(Ok(Block::SimplePacket(block))) => (
                        0,
                        Duration::ZERO,
                        block.data.into_owned(),
                        block.original_len,
                    ),
                    Some(Ok(_)) => continue,
                };
                let interface = reader
                    .interfaces()
                    .get(interface)
                    .ok_or_else(|| broken(PcapError::InvalidInterfaceId(interface as u32)))?;
                let time = scaled(time, interface);
                return packet_of(interface.linktype, time, &data, length).map(Some);
            },
        }
    }
}

/// A time in the units of its interface, which the reader gives as if they were nanoseconds.
fn scaled(time: Duration, interface: &InterfaceDescriptionBlock<'_>) -> Duration {
    let units = time.as_nanos();
    let resolution = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    });
    // pcapng, section 4.2: a power of two if the highest bit is set, else of ten; by default 10^6.
    let per_second = match resolution.unwrap_or(6) {
        power if power & 0x80 != 0 => 2u128.checked_pow(u32::from(power & 0x7f)),
        power => 10u128.checked_pow(u32::from(power)),
    };
    let nanos = per_second.and_then(|per_second| {
        let whole = units.checked_mul(1_000_000_000)? / per_second;
        u64::try_from(whole).ok()
    });
    Duration::from_nanos(nanos.unwrap_or_default())
}

/// A packet from its link-layer header on.
fn packet_of(link: DataLink, time: Duration, data: &[u8], length: u32) -> Result<Packet> {
    let (link, start) = match link {
        DataLink::ETHERNET => (Link::Ethernet, 0),
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => {
            let is_v6 = data.first().is_some_and(|first| first >> 4 == 6);
            (Link::Bare(if is_v6 { eth::IPV6 } else { eth::IPV4 }), 0)
        }
        // The protocol stands in the last two bytes of the one, the first two of the other.
        DataLink::LINUX_SLL => (Link::Bare(pair(data, 14)), 16),
        DataLink::LINUX_SLL2 => (Link::Bare(pair(data, 0)), 20),
        other => bail!(
            "the capture has link type {}, which is not read: capture Ethernet, or -i any",
            u32::from(other)
        ),
    };
    let mut bytes = data.get(start..).unwrap_or_default().to_vec();
    let missing = (length as usize).saturating_sub(data.len());
    bytes.resize(bytes.len() + missing, 0);
    Ok(Packet {
        time,
        missing,
        link,
        bytes,
    })
}

fn pair(data: &[u8], at: usize) -> [u8; 2] {
    match data.get(at..at + 2) {
        Some(&[a, b]) => [a, b],
        _ => [0; 2],
    }
}

impl Packet {
    /// Its source address; none if it is no IP packet.
    pub(super) fn source(&self) -> Option<IpAddr> {
        let (ether_type, packet) = match self.link {
            Link::Bare(ether_type) => (ether_type, self.bytes.as_slice()),
            Link::Ethernet => (pair(&self.bytes, 12), self.bytes.get(14..)?),
        };
        match ether_type {
            eth::IPV4 => {
                let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
                Some(source.into())
            }
            eth::IPV6 => {
                let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
                Some(source.into())
            }
            _ => None,
        }
    }

    /// As it comes in at a place.
    pub(super) fn frame(&self, place: &Place) -> Cow<'_, [u8]> {
        match self.link {
            Link::Ethernet => Cow::Borrowed(&self.bytes),
            Link::Bare(ether_type) => {
                let header = [&place.own.0[..], &place.sender.0, &ether_type].concat();
                Cow::Owned([header.as_slice(), &self.bytes].concat())
            }
        }
    }
}
