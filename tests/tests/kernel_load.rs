//! The kernel takes the program, and the verifier has little to do for it.

use anyhow::Result;
use lb_common::host::world::World;
use lb_tests::kernel::{Kernel, isolated};

/// Instructions that the verifier may look at: a tenth over what the program needs, and far below
/// the kernel's own limit of a million. Raise it knowingly.
const VERIFIED_INSTRUCTIONS: u32 = 80_000;

#[test]
fn the_kernel_loads_the_program_within_its_budget() -> Result<()> {
    isolated(|_| {
        let mut kernel = Kernel::load()?;
        let verified = kernel.verified_instructions()?;
        println!("verified instructions: {verified} of at most {VERIFIED_INSTRUCTIONS}");
        assert!(
            verified > 0 && verified <= VERIFIED_INSTRUCTIONS,
            "{verified}"
        );
        Ok(())
    })
}

#[test]
fn the_maps_take_every_entry_of_the_standard_world() -> Result<()> {
    isolated(|_| Kernel::load()?.fill(&World::standard().tables))
}
