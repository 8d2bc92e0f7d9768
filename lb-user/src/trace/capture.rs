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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A block of a pcapng file: type, length, body, length.
    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let body = [body, &vec![0; body.len().next_multiple_of(4) - body.len()]].concat();
        let length = (body.len() as u32 + 12).to_le_bytes();
        [&kind.to_le_bytes()[..], &length, &body, &length].concat()
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Packet>> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(bytes)?;
        let mut capture = open(file.path())?;
        let mut packets = Vec::new();
        while let Some(packet) = capture.next()? {
            packets.push(packet);
        }
        Ok(packets)
    }

    fn place() -> Place {
        Place {
            ifindex: 3,
            name: "eth1".into(),
            own: lb_common::abi::Mac([2, 0, 0, 0, 0, 1]),
            sender: lb_common::abi::Mac([2, 0, 0, 0, 0, 2]),
            is_attached: true,
        }
    }

    /// Two interfaces: Ethernet in microseconds (the default), raw IP in units of 2^-10 s.
    #[test]
    fn pcapng_times_and_links_are_those_of_each_interface() {
        let ethernet = [&[2; 12][..], &[0x86, 0xdd], &[0x60; 40]].concat();
        let raw = [0x45; 21];
        let packet = |interface: u32, time: u32, data: &[u8], length: u32| {
            let head = words(&[interface, 0, time, data.len() as u32, length]);
            block(6, &[&head, data].concat())
        };
        let file = [
            block(PCAPNG_KIND, &words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX])),
            block(1, &words(&[1, 0])),
            // Link type 101; option 9 (if_tsresol), one byte, 2^-10; end of options.
            block(1, &words(&[101, 0, 1 << 16 | 9, 0x8a, 0])),
            packet(0, 1_500_000, &ethernet, ethernet.len() as u32),
            packet(1, 2_048, &raw, 30),
        ]
        .concat();
        let packets = read(&file).expect("a capture");
        assert_eq!(packets.len(), 2);
        assert_eq!(packets[0].time, Duration::from_millis(1_500));
        assert_eq!(packets[0].frame(&place()), ethernet);
        assert_eq!(packets[0].source(), Some([0x6060; 8].into()));
        assert_eq!(packets[1].time, Duration::from_secs(2));
        assert_eq!(packets[1].missing, 9);
        let frame = packets[1].frame(&place());
        assert_eq!(frame.len(), 14 + 30);
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
        assert_eq!(frame[14..35], raw);
        assert_eq!(frame[35..], [0; 9]);
    }

    const PCAPNG_KIND: u32 = 0x0a0d_0d0a;

    fn pcap(link: u32, data: &[u8]) -> Vec<u8> {
        let length = data.len() as u32;
        let head = words(&[
            0xa1b2_c3d4,
            4 << 16 | 2,
            0,
            0,
            65_535,
            link,
            9,
            5,
            length,
            length,
        ]);
        [&head, data].concat()
    }

    #[test]
    fn captures_of_any_interface_have_headers_of_their_own() {
        let ip = [0x45; 20];
        let first = [&[0; 14][..], &[8, 0], &ip].concat();
        let second = [&[8, 0][..], &[0; 18], &ip].concat();
        for (link, data) in [(113, first), (276, second)] {
            let packets = read(&pcap(link, &data)).expect("a capture");
            assert_eq!(packets[0].time, Duration::new(9, 5_000));
            assert_eq!(packets[0].source(), Some([0x45; 4].into()));
            assert_eq!(
                packets[0].frame(&place())[12..],
                [&[8, 0][..], &ip].concat()
            );
        }
    }

    #[test]
    fn another_kind_of_file_or_link_is_refused() {
        let told = |bytes: &[u8]| read(bytes).expect_err("no capture").to_string();
        assert!(told(b"").contains("is no capture"));
        assert!(told(b"GIF89a").contains("is no capture"));
        assert!(told(&pcap(1, &[0; 60])[..70]).contains("damaged"));
        assert!(told(&pcap(105, &[0; 60])).contains("link type 105"));
    }
}
