//! The texts of a configuration that stand for addresses.

use std::net::{IpAddr, SocketAddr};

use super::{Error, Protocol};

/// Where a service is, as the command line writes it: `203.0.113.10:80/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceEndpoint {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl std::str::FromStr for ServiceEndpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Endpoint { text: text.into() };
        let (place, protocol) = text.split_once('/').ok_or_else(wrong)?;
        let protocol = protocol.parse().map_err(|_| wrong())?;
        let place: SocketAddr = place.parse().map_err(|_| wrong())?;
        Ok(Self {
            address: place.ip(),
            port: place.port(),
            protocol,
        })
    }
}

impl std::fmt::Display for ServiceEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = SocketAddr::new(self.address, self.port);
        write!(f, "{place}/{}", self.protocol)
    }
}

/// Each of a service's addresses as the command line writes it.
pub(crate) fn places(addresses: &[IpAddr], port: u16, protocol: Protocol) -> Vec<String> {
    addresses
        .iter()
        .map(|&address| {
            let place = ServiceEndpoint {
                address,
                port,
                protocol,
            };
            place.to_string()
        })
        .collect()
}

impl ServiceEndpoint {
    /// A name for a service that was given none: `203-0-113-10-80-tcp`.
    pub fn name(&self) -> String {
        let address = self.address.to_string().replace(['.', ':'], "-");
        format!(
            "{}-{}-{}",
            address.trim_matches('-'),
            self.port,
            self.protocol
        )
    }
}

/// An address, IPv6 with or without brackets.
pub(super) fn ip(text: &str, of: impl Fn() -> String) -> Result<IpAddr, Error> {
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    let address = bare.parse().map_err(|_| Error::Address {
        of: of(),
        text: text.into(),
    })?;
    usable(address, of)?;
    Ok(address)
}

/// A backend's address, with its port or without.
pub(super) fn socket(
    text: &str,
    default_port: u16,
    of: impl Fn() -> String,
) -> Result<SocketAddr, Error> {
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let bare = text
                .strip_prefix('[')
                .and_then(|t| t.strip_suffix(']'))
                .unwrap_or(text);
            let ip = bare.parse().map_err(|_| Error::Socket {
                of: of(),
                text: text.into(),
            })?;
            SocketAddr::new(ip, default_port)
        }
    };
    usable(address.ip(), &of)?;
    if address.port() == 0 {
        return Err(Error::PortZero { of: of() });
    }
    Ok(SocketAddr::new(address.ip(), address.port()))
}

fn usable(address: IpAddr, of: impl Fn() -> String) -> Result<(), Error> {
    let why = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        _ if address.is_loopback() => "a loopback address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if v4.octets()[0] == 0 => "in 0.0.0.0/8, which means this network",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => {
                return Err(Error::Mapped {
                    of: of(),
                    address,
                    v4: v4.into(),
                });
            }
            None => return Ok(()),
        },
        IpAddr::V4(_) => return Ok(()),
    };
    Err(Error::Unusable {
        of: of(),
        address,
        why,
    })
}
