//! Bounds that are part of the layout. Sizes of maps are set at run time and have only defaults
//! here.

/// How many services may share one backend address, port and protocol in `nat` mode: what the
/// way back tries, one flow lookup each, before it gives up.
pub const SHARED_RETURNS: u8 = 8;

/// How often a backend that is not eligible is passed over before the service's fallback serves.
pub const ATTEMPTS: u32 = 8;

/// Extension headers that are followed to find the ports of an IPv6 packet.
pub const EXTENSION_HEADERS: usize = 4;

/// VLAN tags that are looked behind.
pub const VLAN_TAGS: usize = 2;

/// All headers of a packet that is forwarded begin below this offset of the frame, less one: a
/// mask. Two VLAN tags, an IPv6 header and [`EXTENSION_HEADERS`] of the greatest length fit.
pub const HEADERS_MASK: usize = 0x3fff;

/// ICMP messages that the clients of one prefix get in a second.
pub const ANSWERS_PER_SECOND: u32 = 64;
/// Prefixes of clients that have lately got ICMP messages.
pub const ANSWERED: u32 = 4096;

/// Services, ids from 1. Default size of the maps indexed by service.
pub const SERVICES: u32 = 1024;
/// Backends of all services, ids from 1. Default size of the maps indexed by backend.
pub const BACKENDS: u32 = 4096;
/// Service addresses and `nat` backends together. Default size of the endpoint map.
pub const ENDPOINTS: u32 = 16384;
/// Addresses of this host. Default size.
pub const LOCALS: u32 = 16384;
/// Confirmed flows. Default size.
pub const FLOWS: u32 = 1 << 20;
/// Flows that the other side has not yet answered. Default size.
pub const NEW_FLOWS: u32 = 1 << 16;
/// Conversations opened directly with a backend. Default size.
pub const DIRECT: u32 = 1 << 16;
/// Datagrams of which the first fragment was sent on. Default size.
pub const FRAGMENTS: u32 = 1 << 14;
/// Attached interfaces. Default size.
pub const INTERFACES: u32 = 64;
/// Bytes of the event ring; a power of two and a multiple of the page size.
pub const EVENT_BYTES: u32 = 1 << 18;
/// Cells of a service's lookup table (Eisenbud et al., NSDI 2016, section 3.4): a prime well over
/// a hundred times the number of backends. Default size.
pub const SLOTS: u32 = 65_537;
