//! Addresses on interfaces.
//!
//! A service's address stands alone (`/32`, `/128`), so that it brings no route to its
//! neighbours, and is announced at once: IPv6 without duplicate address detection, since a peer
//! load balancer may hold the same address on purpose, and deprecated, so that the host does not
//! choose it as a source (IPv4 chooses an address of the next hop's network).

use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    AddressMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        address::{
            AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
            CacheInfo,
        },
    },
};

use super::{Network, errno, refusal};

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// Index of the interface it is on.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix in bits.
    pub prefix: u8,
}

/// Whether an address had to be put on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It was put there now: whoever asked takes it away again.
    Added,
    /// It was there before and is not ours.
    WasThere,
}

impl Network {
    /// Every address of the namespace, in ascending order.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn addresses(&self) -> Result<Vec<InterfaceAddress>> {
        let mut addresses: Vec<InterfaceAddress> = self
            .handle
            .address()
            .get()
            .execute()
            .try_filter_map(|message| async move { Ok(interface_address(&message)) })
            .try_collect()
            .await
            .map_err(refusal)
            .context("cannot list the addresses")?;
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// Puts `address` on an interface, alone. Does nothing if the interface has it already, with
    /// whatever prefix.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: no such interface, IPv6 turned off on it.
    pub async fn add_address(&self, ifindex: u32, address: IpAddr) -> Result<Placed> {
        let is_there = self
            .addresses()
            .await?
            .iter()
            .any(|a| a.ifindex == ifindex && a.address == address);
        if is_there {
            return Ok(Placed::WasThere);
        }
        let message = RouteNetlinkMessage::NewAddress(lone(ifindex, address));
        match self.command(message, NLM_F_CREATE | NLM_F_EXCL).await {
            Ok(()) => Ok(Placed::Added),
            Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(Placed::WasThere),
            Err(error) => {
                Err(refusal(error).context(format!("cannot put {address} on interface {ifindex}")))
            }
        }
    }

    /// Takes away an address that [`Network::add_address`] has put there. Does nothing if it, or
    /// the interface, is gone.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn remove_address(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        let message = RouteNetlinkMessage::DelAddress(lone(ifindex, address));
        match self.command(message, 0).await {
            Ok(()) => Ok(()),
            Err(error) if matches!(errno(&error), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => {
                Ok(())
            }
            Err(error) => {
                Err(refusal(error)
                    .context(format!("cannot take {address} from interface {ifindex}")))
            }
        }
    }
}

/// The message that adds or removes `address` by itself.
fn lone(ifindex: u32, address: IpAddr) -> AddressMessage {
    let mut message = match address {
        IpAddr::V4(v4) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
            .index(ifindex)
            .address(v4, 32)
            .build(),
        IpAddr::V6(v6) => AddressMessageBuilder::<std::net::Ipv6Addr>::new()
            .index(ifindex)
            .address(v6, 128)
            .build(),
    };
    message.header.scope = AddressScope::Universe;
    if address.is_ipv6() {
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(
            AddressFlags::Nodad | AddressFlags::Noprefixroute,
        ));
        // Deprecated (RFC 4862 section 5.5.4): it answers, and is no source of the host's own
        // connections, nor of those that it masquerades. A backend's answer to one would be taken
        // for a packet to the service.
        let mut lifetimes = CacheInfo::default();
        lifetimes.ifa_preferred = 0;
        lifetimes.ifa_valid = u32::MAX;
        message
            .attributes
            .push(AddressAttribute::CacheInfo(lifetimes));
    }
    message
}

/// The kernel's message as an address. On a point-to-point interface `Local` is ours and
/// `Address` the other side's.
fn interface_address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    let address = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some(InterfaceAddress {
        ifindex: message.header.index,
        address,
        prefix: message.header.prefix_len,
    })
}
