//! Addresses as `bpf_fib_lookup` takes them.

use lb_common::abi::Address;

/// Address families (Linux `include/linux/socket.h`).
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

/// An IPv6 address in words of network order.
#[inline(always)]
pub(crate) fn words(address: &Address) -> [u32; 4] {
    let a = &address.0;
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}
