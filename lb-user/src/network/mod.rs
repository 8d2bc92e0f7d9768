//! The host's network as the agent needs it: links, addresses, routes and neighbours over
//! rtnetlink(7), masquerading over nft(8), kernel settings under `/proc/sys/net`, and network
//! namespaces.
//!
//! Everything happens in the network namespace of the thread that called [`Network::open`]
//! ([`sysctl`]: of the calling thread). Nothing here remembers what was there before, with one
//! exception: [`Network`] knows which neighbours it keeps resolved, so that it can let go of them.

pub mod address;
mod changes;
pub mod link;
pub mod masquerade;
pub mod neighbour;
pub mod netns;
pub mod route;
pub mod sysctl;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use rtnetlink::{
    Handle,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};
use tokio::task::JoinHandle;

pub use address::{InterfaceAddress, Placed};
pub use changes::{Changed, Changes};
pub use link::{Link, LinkXdp, XdpPlace};
pub use neighbour::{Neighbours, Reachability};
pub use route::{DefaultRoute, NextHop, Route};

/// A connection to the kernel's routing subsystem.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
    /// The neighbours that this process has asked the kernel to keep resolved.
    kept: BTreeSet<NextHop>,
    /// Whether neighbours that an earlier process kept have been looked for.
    adopted: bool,
    connection: JoinHandle<()>,
}

impl Network {
    /// Connects to the kernel, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made.
    #[expect(
        clippy::unused_async,
        reason = "must be called inside a tokio runtime, on which the connection is driven"
    )]
    pub async fn open() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("cannot open a netlink socket")?;
        Ok(Self {
            handle,
            kept: BTreeSet::new(),
            adopted: false,
            connection: tokio::spawn(connection),
        })
    }

    /// Tells of changes to links, neighbours, addresses and routes from now on.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made.
    pub fn changes(&self) -> Result<Changes> {
        Changes::subscribe()
    }

    /// Sends a request that the kernel answers with "done" or an error, and waits for it.
    async fn command(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), rtnetlink::Error> {
        use futures_util::StreamExt as _;
        use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};

        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The error number in the kernel's answer; none if the error is not the kernel's.
fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

/// A kernel's refusal in words.
fn refusal(error: rtnetlink::Error) -> anyhow::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => anyhow::Error::new(message.to_io()),
        other => anyhow::Error::new(other),
    }
}

/// `interface` as it may stand in a path: what the kernel allows, and no way out of a folder.
fn checked_name(interface: &str) -> Result<&str> {
    let is_legal = !interface.is_empty()
        && interface.len() < libc::IFNAMSIZ
        && interface != "."
        && interface != ".."
        && !interface.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if !is_legal {
        bail!("`{interface}` is not the name of an interface");
    }
    Ok(interface)
}
