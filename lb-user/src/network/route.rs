//! Routes: where a packet goes next.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
        RouteNextHopFlags, RouteType, RouteVia,
    },
};

use super::{Network, errno, refusal};

/// A neighbour that packets are handed to: a gateway, or the destination itself if it is on-link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// Index of the interface it is reached through.
    pub ifindex: u32,
    /// Its address. Of the other family than the destination's where a route says so
    /// (`via inet6`, RFC 5549).
    pub address: IpAddr,
}

/// The kernel's way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where packets go next.
    pub hop: NextHop,
    /// The address of this host that the kernel would send from.
    pub source: Option<IpAddr>,
    /// The longest packet, in bytes, if the route has a word on it (`mtu 1400`, or what ICMP has
    /// told); the interface has one too.
    pub mtu: Option<u32>,
}

impl Network {
    /// Where a packet to `destination` goes next; nothing if there is no route to it, or if it is
    /// this host's own address. Of a multipath route one of the paths that are up.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn resolve(&self, destination: IpAddr) -> Result<Option<NextHop>> {
        Ok(self.way(destination).await?.map(|route| route.hop))
    }

    /// As [`Self::resolve`], with all that the kernel says of the way.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn way(&self, destination: IpAddr) -> Result<Option<Route>> {
        let question = match destination {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        let answer = self.handle.route().get(question).execute().try_next().await;
        match answer {
            Ok(Some(route)) => Ok(next_hop(&route, destination).map(|hop| Route {
                hop,
                source: preferred_source(&route.attributes),
                mtu: mtu(&route.attributes),
            })),
            Ok(None) => Ok(None),
            Err(error) if is_no_route(&error) => Ok(None),
            Err(error) => {
                Err(refusal(error).context(format!("cannot look up the route to {destination}")))
            }
        }
    }

    /// Where a packet from `source` to `destination` that has come in on interface `from` goes
    /// next, and the route's own MTU if it has one; nothing if there is no route to it, or if it
    /// is this host's own address.
    ///
    /// The kernel's check of the source address (`rp_filter`, the host's own address as a source)
    /// refuses some packets that `bpf_fib_lookup` takes: these are asked for without interface and
    /// source.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn forwarded(
        &self,
        from: u32,
        tos: u8,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<Option<(NextHop, Option<u32>)>> {
        let mut questions = Vec::new();
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let question = || {
                    RouteMessageBuilder::<Ipv4Addr>::new()
                        .destination_prefix(destination, 32)
                        .tos(tos & DSCP)
                };
                let exact = question().source_prefix(source, 32).input_interface(from);
                questions.extend([exact.build(), question().build()]);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let question =
                    || RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(destination, 128);
                let exact = question().source_prefix(source, 128).input_interface(from);
                questions.extend([exact.build(), question().build()]);
            }
            _ => return Ok(None),
        }
        for question in questions {
            let answer = self.handle.route().get(question).execute().try_next().await;
            match answer {
                Ok(Some(route)) => {
                    return Ok(
                        next_hop(&route, destination).map(|hop| (hop, mtu(&route.attributes)))
                    );
                }
                Ok(None) => {}
                Err(error) if is_no_route(&error) || errno(&error) == Some(libc::EXDEV) => {}
                Err(error) => {
                    return Err(refusal(error)
                        .context(format!("cannot look up the route to {destination}")));
                }
            }
        }
        Ok(None)
    }

    /// Every gateway of a route that leaves through one of `interfaces`, in all routing tables.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn gateways(&self, interfaces: &BTreeSet<u32>) -> Result<BTreeSet<NextHop>> {
        let mut gateways = BTreeSet::new();
        for question in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut question = question;
            question.header.table = RouteHeader::RT_TABLE_UNSPEC;
            let mut routes = std::pin::pin!(self.handle.route().get(question).execute());
            while let Some(route) = routes
                .try_next()
                .await
                .map_err(refusal)
                .context("cannot list the routes")?
            {
                if route.header.kind == RouteType::Unicast {
                    gateways.extend(hops(&route));
                }
            }
        }
        gateways.retain(|hop| interfaces.contains(&hop.ifindex));
        Ok(gateways)
    }

    /// The default routes of the family of `like` in the main table, a route of several paths as
    /// several: the one that counts first.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn default_routes(&self, like: IpAddr) -> Result<Vec<DefaultRoute>> {
        let question = match like {
            IpAddr::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpAddr::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut found = Vec::new();
        let mut routes = std::pin::pin!(self.handle.route().get(question).execute());
        while let Some(route) = routes
            .try_next()
            .await
            .map_err(refusal)
            .context("cannot list the routes")?
        {
            let header = &route.header;
            if header.destination_prefix_length == 0
                && header.kind == RouteType::Unicast
                && header.table == RouteHeader::RT_TABLE_MAIN
            {
                found.extend(default_routes(&route, like.is_ipv4()));
            }
        }
        // Of equal metrics the kernel takes the one it lists first.
        found.sort_by_key(|route| route.metric);
        Ok(found)
    }
}

/// A route to everywhere, or one path of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Whether it is of IPv4.
    pub is_ipv4: bool,
    /// Index of the interface it goes out of.
    pub ifindex: u32,
    /// Its router; none if everything is on-link.
    pub gateway: Option<IpAddr>,
    /// The lowest counts.
    pub metric: u32,
    /// The MTU it sets, in bytes.
    pub mtu: Option<u32>,
    /// The MSS it has TCP announce, in bytes.
    pub advmss: Option<u32>,
}

/// The paths of a default route.
fn default_routes(route: &RouteMessage, is_ipv4: bool) -> Vec<DefaultRoute> {
    let mut all = DefaultRoute {
        is_ipv4,
        ifindex: interface(&route.attributes).unwrap_or_default(),
        gateway: gateway(&route.attributes),
        metric: 0,
        mtu: None,
        advmss: None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(metric) => all.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => all.mtu = Some(*mtu),
                        RouteMetric::Advmss(advmss) => all.advmss = Some(*advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let several: Vec<DefaultRoute> = paths(route)
        .map(|path| DefaultRoute {
            ifindex: path.interface_index,
            gateway: gateway(&path.attributes),
            ..all
        })
        .collect();
    if several.is_empty() {
        vec![all]
    } else {
        several
    }
}

/// The kernel's answer about `destination` as a next hop.
fn next_hop(route: &RouteMessage, destination: IpAddr) -> Option<NextHop> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    if let Some(hop) = hops(route).next() {
        return Some(hop);
    }
    let on_link = |attributes: &[RouteAttribute]| interface(attributes);
    let ifindex = on_link(&route.attributes).or_else(|| {
        paths(route)
            .find(|path| is_usable(path))
            .map(|path| path.interface_index)
    })?;
    Some(NextHop {
        ifindex,
        address: destination,
    })
}

/// The gateways of a route, each with its interface: one, or one for each path.
fn hops(route: &RouteMessage) -> impl Iterator<Item = NextHop> + '_ {
    let single = interface(&route.attributes)
        .zip(gateway(&route.attributes))
        .map(|(ifindex, address)| NextHop { ifindex, address });
    let several = paths(route)
        .filter(|path| is_usable(path))
        .filter_map(|path| {
            Some(NextHop {
                ifindex: path.interface_index,
                address: gateway(&path.attributes)?,
            })
        });
    single.into_iter().chain(several)
}

/// The paths of a multipath route.
fn paths(route: &RouteMessage) -> impl Iterator<Item = &RouteNextHop> {
    route
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::MultiPath(paths) => Some(paths),
            _ => None,
        })
        .flatten()
}

/// Whether packets can take the path now.
fn is_usable(path: &RouteNextHop) -> bool {
    !path
        .flags
        .intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown)
}

/// The part of the TOS byte that routes look at (Linux `INET_DSCP_MASK`).
const DSCP: u8 = 0xfc;

fn interface(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn preferred_source(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

fn mtu(attributes: &[RouteAttribute]) -> Option<u32> {
    let metrics = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    })?;
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(0) => None,
        RouteMetric::Mtu(bytes) => Some(*bytes),
        _ => None,
    })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4))
        | RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6))
        | RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

/// Whether the kernel says that nothing leads there: no route, or one of type `unreachable`,
/// `prohibit` or `blackhole`.
fn is_no_route(error: &rtnetlink::Error) -> bool {
    matches!(
        errno(error),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::ENETDOWN)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(ifindex: u32, gateway: [u8; 4], flags: RouteNextHopFlags) -> RouteNextHop {
        let mut path = RouteNextHop::default();
        path.interface_index = ifindex;
        path.flags = flags;
        path.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway.into()))];
        path
    }

    fn unicast(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.attributes = attributes;
        route
    }

    #[test]
    fn a_path_that_is_down_is_passed_over() {
        let route = unicast(vec![RouteAttribute::MultiPath(vec![
            via(2, [10, 0, 0, 1], RouteNextHopFlags::Linkdown),
            via(3, [10, 0, 1, 1], RouteNextHopFlags::empty()),
        ])]);
        let expected = NextHop {
            ifindex: 3,
            address: IpAddr::from([10, 0, 1, 1]),
        };
        assert_eq!(
            next_hop(&route, IpAddr::from([192, 0, 2, 1])),
            Some(expected)
        );
        assert_eq!(hops(&route).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn an_ipv4_route_may_have_an_ipv6_gateway() {
        let gateway: Ipv6Addr = "fe80::1".parse().expect("an address");
        let route = unicast(vec![
            RouteAttribute::Oif(7),
            RouteAttribute::Via(RouteVia::Inet6(gateway)),
        ]);
        let hop = next_hop(&route, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(
            hop,
            Some(NextHop {
                ifindex: 7,
                address: gateway.into()
            })
        );
    }

    #[test]
    fn an_own_address_has_no_next_hop() {
        let mut route = unicast(vec![RouteAttribute::Oif(1)]);
        route.header.kind = RouteType::Local;
        assert_eq!(next_hop(&route, IpAddr::from([127, 0, 0, 1])), None);
    }
}
