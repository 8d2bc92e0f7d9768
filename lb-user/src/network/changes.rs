//! Notifications: that links, neighbours, addresses or routes have changed.
//!
//! What exactly has changed is not told: the agent looks again. So any number of notifications
//! between two looks costs one flag each, and an overrun of the kernel's buffer (ENOBUFS) means
//! that everything may have changed, and loses nothing.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use anyhow::{Context, Result};
use futures_util::StreamExt as _;
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload, packet_route::RouteNetlinkMessage};
use rtnetlink::{proto::Connection, sys::AsyncSocket as _};
use tokio::{sync::Notify, task::JoinHandle};

/// Room for notifications that the agent has not yet read, in bytes; the kernel doubles it.
const BUFFER_BYTES: libc::c_int = 1 << 20;

const LINKS: u8 = 1;
const NEIGHBOURS: u8 = 2;
const ADDRESSES: u8 = 4;
const ROUTES: u8 = 8;
const ALL: u8 = LINKS | NEIGHBOURS | ADDRESSES | ROUTES;
/// No more notifications will come.
const CLOSED: u8 = 16;

/// What has changed since the last time it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// An interface: new, gone, up, down, renamed, its MAC address, MTU or XDP program.
    pub links: bool,
    /// A neighbour's MAC address or reachability.
    pub neighbours: bool,
    /// An address of this host.
    pub addresses: bool,
    /// A route.
    pub routes: bool,
}

impl Changed {
    const fn from_bits(bits: u8) -> Self {
        Self {
            links: bits & LINKS != 0,
            neighbours: bits & NEIGHBOURS != 0,
            addresses: bits & ADDRESSES != 0,
            routes: bits & ROUTES != 0,
        }
    }
}

/// A subscription to changes of the network; ends when dropped.
#[derive(Debug)]
pub struct Changes {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug, Default)]
struct Shared {
    bits: AtomicU8,
    wake: Notify,
}

impl Shared {
    fn set(&self, bits: u8) {
        if bits != 0 {
            self.bits.fetch_or(bits, Ordering::AcqRel);
            self.wake.notify_one();
        }
    }
}

impl Changes {
    pub(super) fn subscribe() -> Result<Self> {
        let (mut connection, _, mut messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .context("cannot subscribe to changes of the network")?;
        enlarge(&mut connection);

        let shared = Arc::new(Shared::default());
        let sink = Arc::clone(&shared);
        let fold = tokio::spawn(async move {
            while let Some((message, _)) = messages.next().await {
                sink.set(kind(&message.payload));
            }
            sink.set(CLOSED);
        });
        Ok(Self {
            shared,
            tasks: [tokio::spawn(connection), fold],
        })
    }

    /// Waits until something has changed and tells what, all that has come together so far.
    /// Cancel safe: nothing is lost if the wait is given up.
    ///
    /// # Errors
    ///
    /// When the kernel has closed the subscription: subscribe again.
    pub async fn next(&mut self) -> Result<Changed> {
        loop {
            let bits = self.shared.bits.fetch_and(CLOSED, Ordering::AcqRel);
            if bits & ALL != 0 {
                return Ok(Changed::from_bits(bits));
            }
            if bits & CLOSED != 0 {
                anyhow::bail!("the kernel no longer tells of changes of the network");
            }
            self.shared.wake.notified().await;
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Gives the socket more room. Without it overruns are more frequent, which costs time only.
fn enlarge(connection: &mut Connection<RouteNetlinkMessage>) {
    let _ = connection
        .socket_mut()
        .socket_ref()
        .set_rx_buf_sz(BUFFER_BYTES);
}

/// What a message tells of.
fn kind(payload: &NetlinkPayload<RouteNetlinkMessage>) -> u8 {
    use RouteNetlinkMessage as Message;
    match payload {
        NetlinkPayload::InnerMessage(message) => match message {
            Message::NewLink(_) | Message::DelLink(_) | Message::SetLink(_) => LINKS,
            Message::NewNeighbour(_) | Message::DelNeighbour(_) => NEIGHBOURS,
            Message::NewAddress(_) | Message::DelAddress(_) => ADDRESSES,
            Message::NewRoute(_) | Message::DelRoute(_) => ROUTES,
            _ => 0,
        },
        NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => ALL,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overrun_means_that_everything_may_have_changed() {
        let all = Changed {
            links: true,
            neighbours: true,
            addresses: true,
            routes: true,
        };
        assert_eq!(
            Changed::from_bits(kind(&NetlinkPayload::Overrun(vec![]))),
            all
        );
        assert_eq!(
            Changed::from_bits(kind(&NetlinkPayload::Noop)),
            Changed::default()
        );
    }
}
