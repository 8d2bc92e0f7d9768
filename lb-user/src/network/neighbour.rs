//! Neighbours: the MAC addresses of backends and gateways, kept resolved by the kernel.
//!
//! An entry with `NTF_EXT_MANAGED` (Linux 5.16) is resolved and probed by the kernel for as long as
//! it stands, without traffic of the host's own. Entries that an administrator has made permanent
//! are never touched: setting the flag would make them expire.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context, Result};
use futures_util::TryStreamExt as _;
use lb_common::abi::{Mac, Neighbour};
use rtnetlink::{
    packet_core::NLM_F_CREATE,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags,
            NeighbourMessage, NeighbourState,
        },
        route::{RouteProtocol, RouteType},
    },
};

use super::{Link, Network, NextHop, errno, refusal};

/// Marks the entries that a load balancer keeps resolved (`proto 108` in `ip neigh`), so that one
/// that was killed finds them again.
const PROTOCOL: u8 = 108;

/// How well a neighbour is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Its MAC address is known and was lately confirmed, or is being confirmed again.
    Resolved(Mac),
    /// An administrator has set its MAC address.
    Permanent(Mac),
    /// The kernel is asking.
    Resolving,
    /// It has not answered.
    Failed,
    /// The interface has no MAC addresses.
    None,
}

impl Reachability {
    /// The MAC address, where frames can be addressed to it.
    pub const fn mac(self) -> Option<Mac> {
        match self {
            Self::Resolved(mac) | Self::Permanent(mac) => Some(mac),
            Self::Resolving | Self::Failed | Self::None => None,
        }
    }
}

/// One entry of the kernel's neighbour tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How well it is known.
    pub reachability: Reachability,
    /// Whether the kernel keeps it resolved.
    pub managed: bool,
    /// Whether a load balancer has asked for that.
    pub ours: bool,
}

/// The kernel's neighbour tables, as they were when they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours(pub BTreeMap<NextHop, Entry>);

impl Neighbours {
    /// What is known of `hop`; nothing if there is no entry.
    pub fn find(&self, hop: NextHop) -> Option<Reachability> {
        self.0.get(&hop).map(|entry| entry.reachability)
    }

    /// What the data path needs to address frames to `hop`. Unresolved (all zero) if its MAC
    /// address is not known, or its interface is gone, down or no Ethernet.
    pub fn frame_addresses(&self, hop: NextHop, links: &[Link]) -> Neighbour {
        let destination = self.find(hop).and_then(Reachability::mac);
        let source = links
            .iter()
            .find(|link| link.index == hop.ifindex && link.up)
            .and_then(|link| link.mac);
        match (destination, source) {
            (Some(destination), Some(source)) => Neighbour {
                ifindex: hop.ifindex,
                destination,
                source,
            },
            _ => Neighbour::default(),
        }
    }
}

impl Network {
    /// The kernel's neighbour tables of both families.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn neighbours(&self) -> Result<Neighbours> {
        let entries = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_filter_map(|message| async move { Ok(entry(&message)) })
            .try_collect()
            .await
            .map_err(refusal)
            .context("cannot list the neighbours")?;
        Ok(Neighbours(entries))
    }

    /// What the kernel knows of one neighbour.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn neighbour(&self, hop: NextHop) -> Result<Option<Reachability>> {
        Ok(self.neighbours().await?.find(hop))
    }

    /// Makes the kernel keep exactly `wanted` resolved, of those that load balancers have asked
    /// for: new ones are asked at once, ones that are no longer wanted become ordinary entries,
    /// which the kernel forgets in time. To be called again when neighbours or links have changed:
    /// entries vanish when an interface goes down.
    ///
    /// Returns the neighbours that the kernel refuses, and why (an interface that is gone or down).
    ///
    /// # Errors
    ///
    /// When the kernel does not answer at all.
    pub async fn keep_resolved(
        &mut self,
        wanted: &BTreeSet<NextHop>,
    ) -> Result<Vec<(NextHop, anyhow::Error)>> {
        let present = self.neighbours().await?;
        if !self.adopted {
            let ours = present.0.iter().filter(|(_, e)| e.ours && e.managed);
            self.kept.extend(ours.map(|(hop, _)| *hop));
            self.adopted = true;
        }

        for hop in self.kept.difference(wanted).copied().collect::<Vec<_>>() {
            if present.0.get(&hop).is_some_and(|e| e.ours && e.managed) {
                self.let_go(hop).await?;
            }
            self.kept.remove(&hop);
        }

        let mut refused = Vec::new();
        for &hop in wanted {
            let needs_asking = match present.0.get(&hop) {
                Some(entry) => {
                    !entry.managed
                        && !matches!(
                            entry.reachability,
                            Reachability::Permanent(_) | Reachability::None
                        )
                }
                None => true,
            };
            if !needs_asking {
                self.kept.insert(hop);
                continue;
            }
            match self.command(managed(hop), NLM_F_CREATE).await {
                Ok(()) => {
                    self.kept.insert(hop);
                }
                Err(error) => refused.push((
                    hop,
                    refusal(error).context(format!(
                        "cannot keep neighbour {} on interface {} resolved",
                        hop.address, hop.ifindex
                    )),
                )),
            }
        }
        Ok(refused)
    }

    /// Asks the kernel to resolve `hop` now, and no longer than a look at it takes. Does nothing
    /// to an entry that is permanent.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: the interface is gone or down.
    pub async fn ask(&self, hop: NextHop) -> Result<()> {
        let known = self.neighbour(hop).await?;
        if matches!(known, Some(Reachability::Permanent(_) | Reachability::None)) {
            return Ok(());
        }
        let message = if self.kept.contains(&hop) {
            managed(hop)
        } else {
            ordinary(hop)
        };
        self.command(message, NLM_F_CREATE)
            .await
            .map_err(refusal)
            .with_context(|| {
                format!(
                    "cannot resolve neighbour {} on interface {}",
                    hop.address, hop.ifindex
                )
            })
    }

    /// Lets go of every neighbour that is kept resolved.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn release_neighbours(&mut self) -> Result<()> {
        self.keep_resolved(&BTreeSet::new()).await.map(drop)
    }

    /// Makes an ordinary entry of one that is kept resolved. It is not deleted: it may have been
    /// there before, and the host may be using it.
    async fn let_go(&self, hop: NextHop) -> Result<()> {
        match self.command(ordinary(hop), 0).await {
            Ok(()) => Ok(()),
            Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            Err(error) => Err(refusal(error).context(format!(
                "cannot let go of neighbour {} on interface {}",
                hop.address, hop.ifindex
            ))),
        }
    }
}

/// The message that makes an entry, or an entry that is there, managed.
fn managed(hop: NextHop) -> RouteNetlinkMessage {
    let mut message = about(hop);
    message
        .attributes
        .push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    message
        .attributes
        .push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    RouteNetlinkMessage::NewNeighbour(message)
}

/// The message that makes an entry be resolved once, and takes the flag from one that is managed
/// (`NTF_USE` keeps its state).
fn ordinary(hop: NextHop) -> RouteNetlinkMessage {
    let mut message = about(hop);
    message.header.flags = NeighbourFlags::Use;
    RouteNetlinkMessage::NewNeighbour(message)
}

fn about(hop: NextHop) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = match hop.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = hop.ifindex;
    message.header.state = NeighbourState::None;
    message.header.kind = RouteType::Unspec;
    message
        .attributes
        .push(NeighbourAttribute::Destination(hop.address.into()));
    message
}

/// The kernel's message as an entry; none if it is not one of IPv4 or IPv6.
fn entry(message: &NeighbourMessage) -> Option<(NextHop, Entry)> {
    let mut address = None;
    let mut mac = None;
    let mut managed = false;
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            NeighbourAttribute::ExtFlags(flags) => {
                managed = flags.contains(NeighbourExtFlags::Managed);
            }
            NeighbourAttribute::Protocol(protocol) => {
                ours = *protocol == RouteProtocol::Other(PROTOCOL);
            }
            _ => {}
        }
    }
    let hop = NextHop {
        ifindex: message.header.ifindex,
        address: address?,
    };
    let reachability = match (message.header.state, mac) {
        (NeighbourState::Noarp, _) => Reachability::None,
        (NeighbourState::Permanent, Some(mac)) => Reachability::Permanent(mac),
        (
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe,
            Some(mac),
        ) => Reachability::Resolved(mac),
        (NeighbourState::Failed, _) => Reachability::Failed,
        _ => Reachability::Resolving,
    };
    Some((
        hop,
        Entry {
            reachability,
            managed,
            ours,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: NextHop = NextHop {
        ifindex: 4,
        address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)),
    };

    fn message(state: NeighbourState) -> NeighbourMessage {
        let mut message = about(HOP);
        message.header.state = state;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]));
        message
    }

    #[test]
    fn a_failed_entry_has_no_mac_even_if_the_kernel_still_shows_one() {
        let (_, failed) = entry(&message(NeighbourState::Failed)).expect("an entry");
        assert_eq!(failed.reachability.mac(), None);
        let (_, stale) = entry(&message(NeighbourState::Stale)).expect("an entry");
        assert_eq!(stale.reachability.mac(), Some(Mac([2, 0, 0, 0, 0, 9])));
    }

    #[test]
    fn frames_are_addressed_only_over_an_interface_that_is_up() {
        let neighbours =
            Neighbours([entry(&message(NeighbourState::Reachable)).expect("an entry")].into());
        let mut link = Link {
            name: "eth1".into(),
            index: 4,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: 1500,
            up: true,
            is_veth: false,
            xdp: None,
        };
        let resolved = neighbours.frame_addresses(HOP, std::slice::from_ref(&link));
        assert_eq!(resolved.destination, Mac([2, 0, 0, 0, 0, 9]));
        assert_eq!(resolved.source, Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(resolved.ifindex, 4);
        link.up = false;
        assert!(!neighbours.frame_addresses(HOP, &[link]).is_resolved());
    }
}
