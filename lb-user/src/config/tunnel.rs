//! What packets in tunnels look like: `[tunnel]`, checked.

use std::net::IpAddr;

use lb_common::abi::{self, Port, decap::GUE_PORT};

use super::{Error, parse, raw::RawTunnel};

/// The outer headers of `dsr-ipip` and `dsr-gue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Source of outer IPv4 headers.
    pub v4: Source,
    /// Source of outer IPv6 headers.
    pub v6: Source,
    /// UDP destination port of GUE.
    pub gue_port: u16,
}

/// Where outer headers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The address that the route to the backend prefers.
    Route,
    /// This address.
    Address(IpAddr),
    /// One of this network's, given by its first address and the length of its prefix, by flow.
    Prefix(IpAddr, u8),
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            v4: Source::Route,
            v6: Source::Route,
            gue_port: GUE_PORT,
        }
    }
}

impl Tunnel {
    /// Checks what was written.
    pub(super) fn check(raw: &RawTunnel) -> Result<Self, Error> {
        let RawTunnel {
            source4,
            source_prefix4,
            source6,
            source_prefix6,
            gue_port,
        } = raw;
        if *gue_port == Some(0) {
            return Err(Error::PortZero {
                of: "[tunnel] gue_port".into(),
            });
        }
        Ok(Self {
            v4: source(source4.as_deref(), source_prefix4.as_deref(), &V4)?,
            v6: source(source6.as_deref(), source_prefix6.as_deref(), &V6)?,
            gue_port: gue_port.unwrap_or(GUE_PORT),
        })
    }

    /// The source of outer headers towards `backend`.
    pub const fn source(&self, backend: IpAddr) -> Source {
        match backend {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }

    /// A source in words: an address, or the prefix in which it varies.
    pub fn named(&self, source: IpAddr) -> String {
        match self.source(source) {
            Source::Prefix(network, length) if network == source => format!("{network}/{length}"),
            _ => source.to_string(),
        }
    }

    /// As the maps hold it.
    pub fn abi(&self) -> abi::Tunnel {
        abi::Tunnel {
            vary4: varying(self.v4, 32),
            vary6: varying(self.v6, 128),
            gue_port: Port::from(self.gue_port),
            ..abi::Tunnel::default()
        }
    }
}

/// The bits of an address's last four bytes in which a source varies.
fn varying(source: Source, bits: u32) -> [u8; 4] {
    let free = match source {
        Source::Prefix(_, length) => bits - u32::from(length),
        Source::Route | Source::Address(_) => 0,
    };
    let mask = u32::MAX.checked_shl(free).unwrap_or(0);
    (!mask).to_be_bytes()
}

/// A family's keys, and what may stand there.
struct Keys {
    address: &'static str,
    prefix: &'static str,
    example: &'static str,
    is_v4: bool,
    /// Shortest and longest prefix.
    lengths: (u8, u8),
}

const V4: Keys = Keys {
    address: "source4",
    prefix: "source_prefix4",
    example: "10.99.0.0/24",
    is_v4: true,
    lengths: (8, 31),
};

const V6: Keys = Keys {
    address: "source6",
    prefix: "source_prefix6",
    example: "fd00:99::/64",
    is_v4: false,
    lengths: (16, 127),
};

fn source(address: Option<&str>, prefix: Option<&str>, keys: &Keys) -> Result<Source, Error> {
    match (address, prefix) {
        (None, None) => Ok(Source::Route),
        (Some(_), Some(_)) => Err(Error::TunnelSourceTwice {
            address: keys.address,
            prefix: keys.prefix,
        }),
        (Some(text), None) => {
            let address = parse::ip(text, || format!("[tunnel] {}", keys.address))?;
            if address.is_ipv4() != keys.is_v4 {
                return Err(Error::TunnelFamily {
                    key: keys.address,
                    address,
                    family: if keys.is_v4 { "IPv4" } else { "IPv6" },
                });
            }
            Ok(Source::Address(address))
        }
        (None, Some(text)) => network(text, keys),
    }
}

fn network(text: &str, keys: &Keys) -> Result<Source, Error> {
    let wrong = || Error::TunnelPrefix {
        key: keys.prefix,
        text: text.into(),
        example: keys.example,
        shortest: keys.lengths.0,
        longest: keys.lengths.1,
    };
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let length: u8 = length.parse().map_err(|_| wrong())?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let is_legal = (keys.lengths.0..=keys.lengths.1).contains(&length);
    if address.is_ipv4() != keys.is_v4 || !is_legal || first(address, length) != address {
        return Err(wrong());
    }
    let address = parse::ip(&address.to_string(), || format!("[tunnel] {}", keys.prefix))?;
    Ok(Source::Prefix(address, length))
}

/// The first address of the network that `address` is in.
fn first(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Tunnel, Error> {
        Tunnel::check(&toml::from_str(text).expect("it is TOML"))
    }

    #[test]
    fn a_source_varies_in_the_bits_behind_its_prefix() {
        let tunnel = check("source_prefix4 = '10.99.0.0/20'\nsource_prefix6 = 'fd00:99::/64'")
            .expect("it is right");
        let abi = tunnel.abi();
        assert_eq!(abi.vary4, [0, 0, 0x0f, 0xff]);
        assert_eq!(abi.vary6, [0xff; 4]);
        assert_eq!(abi.gue_port, Port::from(6080));
        assert_eq!(tunnel.named([10, 99, 0, 0].into()), "10.99.0.0/20");
        let fixed = check("source4 = '10.0.0.1'\ngue_port = 7000").expect("it is right");
        assert_eq!(fixed.abi().vary4, [0; 4]);
        assert_eq!(fixed.abi().gue_port, Port::from(7000));
        assert_eq!(
            fixed.source([10, 0, 0, 9].into()),
            Source::Address([10, 0, 0, 1].into())
        );
    }

    #[test]
    fn what_cannot_be_is_refused_in_one_line() {
        for (text, says) in [
            ("gue_port = 0", "[tunnel] gue_port: port 0"),
            (
                "source4 = 'fd00::1'",
                "[tunnel] source4: fd00::1 is no IPv4 address",
            ),
            (
                "source6 = '10.0.0.1'",
                "[tunnel] source6: 10.0.0.1 is no IPv6 address",
            ),
            ("source4 = '127.0.0.1'", "a loopback address"),
            (
                "source4 = '10.0.0.1'\nsource_prefix4 = '10.0.0.0/24'",
                "give source4 or source_prefix4",
            ),
            ("source_prefix4 = '10.99.0.1/24'", "write 10.99.0.0/24"),
            ("source_prefix4 = '10.99.0.0/32'", "from /8 to /31"),
            ("source_prefix4 = '10.99.0.0'", "[tunnel] source_prefix4"),
            ("source_prefix6 = '10.99.0.0/24'", "[tunnel] source_prefix6"),
        ] {
            let line = check(text).expect_err(text).to_string();
            assert!(
                line.contains(says) && !line.contains('\n'),
                "{text}: {line}"
            );
        }
    }
}
