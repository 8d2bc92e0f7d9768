//! What the program tells the agent, as it happens: the other end of the ring buffer.

use anyhow::{Context, Result, anyhow};
use aya::maps::{MapData, RingBuf};
use lb_common::abi::Event;
use tokio::io::{Interest, unix::AsyncFd};
use zerocopy::FromBytes as _;

/// The program's events, in the order in which they were sent. While nobody reads, the ring fills
/// up and further events are lost; packets are not held up.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    pub(crate) fn new(ring: RingBuf<MapData>) -> Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types whose descriptor may change; this one owns its own"
        )]
        let ring = AsyncFd::with_interest(ring, Interest::READABLE)
            .context("cannot wait for the program's events")?;
        Ok(Self { ring })
    }

    /// Waits for the next event. Cancel safe: none is lost if the wait is given up.
    ///
    /// # Errors
    ///
    /// When the ring cannot be waited for, or holds something else than events.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            let mut ready = self
                .ring
                .readable_mut()
                .await
                .context("cannot wait for the program's events")?;
            if let Some(item) = ready.get_inner_mut().next() {
                return Event::read_from_bytes(&item)
                    .map_err(|_| anyhow!("an event of {} bytes, not of 64", item.len()));
            }
            ready.clear_ready();
        }
    }
}
