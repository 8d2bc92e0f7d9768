//! What every object for the kernel has besides its programs: a licence, and an end for panics.

/// Never reached: the verifier takes no program that could panic.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends some helpers only to programs under a licence that includes the GPL.
#[expect(
    unsafe_code,
    reason = "the kernel looks for this section, which holds nothing else"
)]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
